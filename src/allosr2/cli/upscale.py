"""`allosr2 upscale`: enlarge image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from allosr2.cli.console import console, progress_bar
from allosr2.cli.files import for_each, plan
from allosr2.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Upscale:
    """Enlarge images with a model, in one step each.

    Transparency, ICC profile and EXIF are kept. A file that fails is listed at the end and stops no other.
    """

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, or one folder of them."""
    output: Path
    """A file for one input; else a folder, made if need be, that receives PNG files of the same names."""
    model: str = "mini"
    """A model folder (with `allosr2.json`), or `mini`, the model inside the package."""
    scale: int | None = None
    """Enlargement factor from 1 to 8; without it the one that the model was trained for (`mini`: 4)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: CUDA if there is a GPU."""
    tile: int = 512
    """Side of a tile in pixels of the result, a multiple of 16; smaller tiles need less memory."""
    seed: int = 0
    """Seed of PyTorch's generator. The models draw nothing: equal inputs give equal files with any seed."""


def upscale(config: Upscale) -> int:
    """Enlarge every input; returns the exit code."""
    if not config.inputs:
        raise ConfigError("no input; name image files or a folder of them")
    pairs = plan(config.inputs, config.output)

    import torch

    from allosr2.upscaler import Upscaler

    torch.manual_seed(config.seed)
    upscaler = Upscaler.from_pretrained(config.model, device=config.device, tile=config.tile)
    scale = upscaler.resolve_scale(config.scale)
    written: list[Path] = []
    with progress_bar() as bar:
        files = bar.add_task(f"{len(pairs)} images", total=len(pairs), visible=len(pairs) > 1)
        tiles = bar.add_task("", total=None)

        def enlarge(source: Path, target: Path) -> None:
            bar.reset(tiles, description=source.name, total=None)
            try:
                upscaler.upscale_file(
                    source,
                    target,
                    scale,
                    progress=lambda done, total: bar.update(tiles, completed=done, total=total),
                )
            finally:
                bar.advance(files)
            written.append(target)

        exit_code = for_each(pairs, enlarge)
    for target in written:
        console().print(str(target))
    return exit_code
