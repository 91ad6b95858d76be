"""Tiles: how far a tiled result is from an untiled one, along the tiles' borders and inside, and memory.

    python benchmarks/tiles.py seams --photos DIR [--side 1024] [--every 4]
    python benchmarks/tiles.py memory

Seams: crops of photographs, shrunk by 4, enlarged in tiles and in one piece. A border is what lies within 8 px
of where a tile begins or ends; inside is what no two tiles share. Ratio: of the root mean squares, pooled
over all pictures. Memory: the peak resident size of one process each for results of 1024 and of 4096 px.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from torch import Tensor

from allosr2 import Upscaler
from allosr2.imaging.io import find_images, read_image, read_size
from allosr2.imaging.picture import to_tensor
from allosr2.imaging.resize import resize
from allosr2.model import AlloSR2
from allosr2.upscaler import BORDER

_NEAR = 8
"""Pixels on either side of a tile's border that count as the border."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seams:
    """Compare tiled with untiled results."""

    photos: Path
    """Folder of photographs."""
    side: int = 1024
    """Of the results in pixels."""
    every: int = 4
    """Measure every so many-th photograph of those that are large enough."""
    tile: int = 576
    """As `Upscaler` takes it; 576 is what `auto` takes."""
    overlap: int | None = None
    """Likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Compare the peaks of two sizes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """One of them; prints bytes."""

    side: int
    """Of the result in pixels."""


def seams(options: Seams) -> None:
    """Print a line a photograph, and the pooled figures."""
    model = AlloSR2.from_pretrained("mini").merge()
    multiple = model.multiple
    exact = partial(Upscaler, model, device="cpu", precision="float32")
    whole = exact(tile=-(-options.side // multiple) * multiple)
    tiled = exact(tile=options.tile, overlap=options.overlap)
    axis = tiled._tiles((options.side, options.side))[0].scaled(multiple)
    first, last = axis.starts[1:], [start + axis.extent for start in axis.starts[:-1]]
    shared, near = torch.zeros(2, options.side, dtype=torch.bool)
    for start, end in zip(first, last, strict=True):
        shared[start - BORDER : end - BORDER] = True
        for border in (start - BORDER, end - BORDER):
            near[border - _NEAR : border + _NEAR] = True
    border, inside = _cross(near), ~_cross(shared | near)
    errors: list[Tensor] = []
    large = [path for path in find_images(options.photos) if min(read_size(path)) >= options.side]
    for path in large[:: options.every]:
        lr = _center(to_tensor(read_image(path).color), options.side // 4)
        squared = (tiled(lr) - whole(lr)).square().mean(dim=1)[0]
        errors.append(torch.stack([squared.mean(), squared[border].mean(), squared[inside].mean()]))
        print(f"{path.name}: {-10 * squared.mean().log10():.1f} dB", flush=True)
    table = torch.stack(errors)
    pooled = table.mean(0)
    decibels = -10 * table[:, 0].log10()
    ratios = (table[:, 1] / table[:, 2]).sqrt()
    print(
        f"{len(table)} photographs, {options.side} px, tiles of {axis.extent} px from {axis.starts}: "
        f"PSNR between tiled and untiled {-10 * pooled[0].log10():.1f} dB pooled, "
        f"{decibels.mean():.1f} mean, {decibels.min():.1f} least; border to inside "
        f"{(pooled[1] / pooled[2]).sqrt():.3f} pooled, {ratios.median():.3f} median"
    )


def memory() -> None:
    """Print both peaks and the bound that the issue of flat memory sets."""
    peaks = [
        int(subprocess.check_output([sys.executable, __file__, "peak", "--side", str(side)]))
        for side in (1024, 4096)
    ]
    canvas = 4096 * 4096 * 3
    print(
        f"1024 px: {peaks[0] / 1e6:.0f} MB; 4096 px: {peaks[1] / 1e6:.0f} MB, "
        f"{(peaks[1] - canvas) / peaks[0]:.2f} times that beside the canvas of {canvas / 1e6:.0f} MB"
    )


def peak(options: Peak) -> None:
    """Enlarge one file in this process and print its peak."""
    from tempfile import TemporaryDirectory

    from PIL import Image

    with TemporaryDirectory() as folder:
        source = Path(folder) / "lr.png"
        side = options.side // 4
        noise = torch.rand(1, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
        levels = resize(noise, (side, side)).clamp(0, 1).mul(255).byte()[0].permute(1, 2, 0)
        Image.fromarray(levels.numpy()).save(source)
        upscaler = Upscaler.from_pretrained(device="cpu", precision="float32")
        upscaler.upscale_file(source, Path(folder) / "sr.png")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _cross(lines: Tensor) -> Tensor:
    return lines[:, None] | lines[None, :]


def _center(image: Tensor, side: int) -> Tensor:
    small = resize(image, (image.shape[-2] // 4, image.shape[-1] // 4)).clamp(0, 1)
    top, left = (small.shape[-2] - side) // 2, (small.shape[-1] - side) // 2
    return small[..., top : top + side, left : left + side]


if __name__ == "__main__":
    match tyro.cli(Seams | Memory | Peak):
        case Seams() as chosen:
            seams(chosen)
        case Memory():
            memory()
        case Peak() as chosen:
            peak(chosen)
