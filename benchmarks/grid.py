"""Which harmonics of a 16 px grid stand out: HR images, the codec alone on them, and the whole model.

    python benchmarks/grid.py --pairs DIR [--model mini] [--every 10]

DIR holds `lr/` and `hr/` with equal names. Each figure is the grid's power over its neighbors' (1 is no grid)
at k / 16 cycles a pixel, the mean over both axes and all images; `allosr2.imaging.quality.periodicity`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allosr2 import Upscaler
from allosr2.imaging.io import find_images, image_from_any, read_rgb, to_array
from allosr2.imaging.quality import grid_contrast, luma
from allosr2.losses.grid import GRID_PERIOD
from allosr2.model import load_frozen_codec


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    pairs: Path
    """Folder with `lr/` and `hr/`."""
    model: str = "mini"
    """Model folder or name."""
    every: int = 10
    """Measure every so many-th pair."""


@torch.no_grad()
def main(options: Options) -> None:
    """Print a Markdown table of the harmonics."""
    upscaler = Upscaler.from_pretrained(options.model, device="cpu", precision="float32")
    codec = load_frozen_codec(options.model)
    rows: dict[str, list[Tensor]] = {"HR": [], "codec alone": [], options.model: []}
    for path in find_images(options.pairs / "hr")[:: options.every]:
        hr = image_from_any(read_rgb(path))
        lr = image_from_any(read_rgb(options.pairs / "lr" / path.name))
        results = (hr, codec.decode(codec.encode(hr)), upscaler(lr))
        for row, image in zip(rows.values(), results, strict=True):
            row.append(_harmonics(image_from_any(to_array(image.clamp(0, 1)))))
    ks = range(1, GRID_PERIOD // 2 + 1)
    print("| k | " + " | ".join(map(str, ks)) + " | grid 8 px | grid 16 px |")
    print("|---" * (len(ks) + 3) + "|")
    for name, found in rows.items():
        mean = torch.stack(found).mean(0)
        figures = [*mean.tolist(), mean[1::2].mean().item(), mean.mean().item()]
        print(f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    print(f"\n{len(rows['HR'])} pairs")


def _harmonics(image: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "k"]:
    y = luma(image)
    axes = [rearrange(lines, "1 1 n length -> 1 n length") for lines in (y, y.mT)]
    return torch.cat([grid_contrast(lines, GRID_PERIOD, 1e-6).exp() for lines in axes]).mean(0)


if __name__ == "__main__":
    main(tyro.cli(Options))
