"""`allosr2 prepare`: encode a base's constant prompt, once for all training and inference."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from allosr2.cli.console import console
from allosr2.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Encode the empty prompt with a base's text encoders, which nothing needs after that.

    This runs on the CPU; FLUX.1's encoders take 10 GB of memory, and of disk if they are downloaded.
    Neither transformer nor VAE is read.
    """

    base: str
    """Base in diffusers layout: a folder, or a hub id such as `black-forest-labs/FLUX.1-dev`."""
    output: Path = Path("conditioning.safetensors")
    """File to write; one that is there is replaced. Training takes it as `--conditioning`."""
    tokens: int | None = None
    """Length that the text is padded to, from 1 to 512; without it the base's own (FLUX.1-dev: 512). Stable
    Diffusion 3 adds CLIP's 77, Z-Image keeps no padding, and short ones cut FLUX.2's and Z-Image's chat."""


def prepare(config: Prepare) -> int:
    """Write the encoded prompt; returns the exit code."""
    _check_output(config.output)  # before minutes of work, not after

    from allosr2.backbones.prompt import encode_prompt
    from allosr2.licenses import describe_license
    from allosr2.model import origin_of
    from allosr2.storage import save_tensors

    conditioning = encode_prompt(config.base, config.tokens)
    try:
        save_tensors(config.output, conditioning.tensors())
    except OSError as error:
        raise _refused(config.output, error) from error
    console().print(str(config.output))
    (length, width), (pooled,) = conditioning.prompt.shape, conditioning.pooled.shape
    logger.info("%d tokens of width %d, pooled embedding of width %d", length, width, pooled)
    logger.info("license of the base: %s", describe_license(origin_of(config.base)))
    return 0


def _check_output(output: Path) -> None:
    """Make the output's folder. Raises ConfigError if no file can be written there."""
    try:
        if output.exists() and not output.is_file():
            raise ConfigError(f"--output is {output}: that is no file; name one")
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):  # asks the disk, not the permissions alone
            pass
    except OSError as error:
        raise _refused(output, error) from error


def _refused(output: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"--output is {output}: {error.strerror}; choose a folder that is writable and has room"
    )
