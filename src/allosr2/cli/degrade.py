"""`allosr2 degrade`: make LR images as training makes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from allosr2.cli.console import console
from allosr2.cli.files import for_each, plan
from allosr2.errors import ConfigError, ImageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Degrade:
    """Degrade HR images to LR images and say what was drawn for each.

    Image i of a folder, in the order of names, depends on (seed, i) alone; a single file is image 0.
    Sides are first cropped, at the bottom and on the right, to multiples of the scale.
    """

    input: Annotated[Path, tyro.conf.Positional]
    """An image file, or a folder of them."""
    output: Path
    """A file for a file; for a folder a folder, made if need be, that receives PNG files."""
    preset: str = "mild"
    """Degradation: `real-esrgan`, `mild`, `stablesr`, `camera`, `bicubic`, or several as `mild+camera`."""
    scale: int = 4
    """How many times smaller the sides become."""
    seed: int = 0
    """Seed of everything drawn."""


def degrade(config: Degrade) -> int:
    """Degrade every input; returns the exit code."""
    from allosr2.data.degradation import degrade as apply
    from allosr2.data.degradation import mixture, sample_degradation
    from allosr2.imaging.io import (
        check_target,
        image_from_any,
        read_image,
        to_array,
        write_image,
    )
    from allosr2.imaging.picture import Metadata, Picture

    if config.scale < 1:
        raise ConfigError(f"--scale is {config.scale}: use 1 or more")
    degradation = mixture(config.preset)
    pairs = plan([config.input], config.output)
    drawn_for = {
        source: sample_degradation(degradation, config.seed, index)
        for index, (source, _) in enumerate(pairs)
    }

    def degrade_file(source: Path, target: Path) -> None:
        picture = read_image(source)
        height, width = (
            side // config.scale * config.scale for side in (picture.height, picture.width)
        )
        if not height or not width:
            raise ImageError(
                f"{source}: a side is shorter than the scale {config.scale}; leave it out"
            )
        color = picture.color[:height, :width]
        hr = image_from_any(color if color.shape[2] == 3 else color[..., 0])
        # A profile of gray levels would be wrong of the RGB that is written.
        icc_profile = picture.metadata.icc_profile if color.shape[2] == 3 else None
        check_target(target, Picture(color=picture.color))
        lr = apply(hr, [drawn_for[source]], config.scale)
        write_image(target, Picture(color=to_array(lr), metadata=Metadata(icc_profile=icc_profile)))
        console().print(f"{target}: {drawn_for[source].describe()}")

    return for_each(pairs, degrade_file)
