"""Bicubic, a model and published results on the RealSR test set: PSNR, SSIM, LPIPS, grid, color, time.

    python benchmarks/realsr.py --pairs DIR --perceptual FILE [--model mini] [--output DIR]

DIR holds `lr/` and `hr/` with equal names (StableSR's 100 crops, 128 and 512 px), and optionally OSEDiff's
results for some of them as `osediff/` and its published rows for all of them as `osediff_published.csv`.
"""

from __future__ import annotations

import csv
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from allosr2 import Upscaler
from allosr2.imaging.io import (
    find_images,
    image_from_any,
    read_rgb,
    to_array,
    write_image,
)
from allosr2.imaging.picture import Picture
from allosr2.imaging.quality import periodicity, psnr_y, ssim_y
from allosr2.imaging.resize import enlarge
from allosr2.losses.perceptual import LPIPS

Method = Callable[[str, Float[Tensor, "1 3 h w"]], Float[Tensor, "1 3 h*4 w*4"] | None]
"""From an image's name and LR pixels to its enlargement; None where there is none."""
OSEDIFF = "OSEDiff, its images"
"""Published results that lie beside the pairs; a second table is of their images alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    pairs: Path
    """Folder with `lr/` and `hr/`."""
    perceptual: Path
    """Safetensors file of LPIPS weights."""
    model: str = "mini"
    """Model folder or name."""
    output: Path | None = None
    """Folder for the model's images and for the per-image CSV; nothing is written without it."""
    limit: int | None = None
    """Measure the first images only."""


def main(options: Options) -> None:
    """Measure every method on every pair and print a Markdown table of the means."""
    upscaler = Upscaler.from_pretrained(options.model, device="cpu")
    lpips = LPIPS.from_file(options.perceptual)
    methods: dict[str, Method] = {
        "bicubic": lambda _, lr: enlarge(lr, 4),
        options.model: lambda _, lr: upscaler(lr),
        OSEDIFF: lambda name, _: _read(options.pairs / "osediff" / name),
    }
    rows: list[dict[str, str | float]] = []
    paths = find_images(options.pairs / "hr")[: options.limit]
    upscaler(torch.rand(1, 3, 128, 128))  # the first call pays for memory and kernel choice
    for path in paths:
        hr = image_from_any(read_rgb(path))
        lr = image_from_any(read_rgb(options.pairs / "lr" / path.name))
        bicubic = enlarge(lr, 4)
        for method, enlarge_by in (*methods.items(), ("HR", lambda _, __, hr=hr: hr)):
            started = time.perf_counter()
            sr = enlarge_by(path.name, lr)
            seconds = time.perf_counter() - started
            if sr is None:
                continue
            sr = image_from_any(to_array(sr.clamp(0, 1)))
            rows.append(
                {
                    "method": method,
                    "image": path.name,
                    "psnr_y": psnr_y(sr, hr).item(),
                    "ssim_y": ssim_y(sr, hr).item(),
                    "lpips_squeeze": lpips(sr, hr).item(),
                    "grid_8": periodicity(sr)[0, 0].item(),
                    "grid_16": periodicity(sr)[0, 1].item(),
                    "color_shift": 255 * (sr - bicubic).mean((0, 2, 3)).abs().mean().item(),
                    "seconds": seconds if method in ("bicubic", options.model) else float("nan"),
                }
            )
            if options.output and method == options.model:
                options.output.mkdir(parents=True, exist_ok=True)
                write_image(options.output / path.name, Picture(color=to_array(sr)))
    if options.output:
        with (options.output / "per_image.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    names = {str(row["image"]) for row in rows}
    shared = {str(row["image"]) for row in rows if row["method"] == OSEDIFF}
    for images in [names, shared] if shared and shared != names else [names]:
        print(_table([row for row in rows if row["image"] in images]))
        print(_published(options.pairs / "osediff_published.csv", images) + "\n")
    print(
        f"{len(paths)} pairs; {_machine()}; torch {version('torch')}, {torch.get_num_threads()} threads"
    )


def _read(path: Path) -> Float[Tensor, "1 3 h w"] | None:
    return image_from_any(read_rgb(path)) if path.is_file() else None


def _published(path: Path, names: set[str]) -> str:
    """The row of OSEDiff's own figures; its LPIPS is another network's and does not compare."""
    if not path.is_file():
        return ""
    rows = [row for row in csv.DictReader(path.open(newline="")) if row["image"] in names]
    psnr, ssim = (fmean(float(row[column]) for row in rows) for column in ("psnr_y", "ssim_y"))
    return f"| OSEDiff, published | {len(rows)} | {psnr:.2f} | {ssim:.4f} | - | - | - | - | - |"


def _table(rows: list[dict[str, str | float]]) -> str:
    """Means over each method's images, best read together: distortion, perception, grid, color, time."""
    names = [
        "method",
        "images",
        "PSNR-Y",
        "SSIM-Y",
        "LPIPS (SqueezeNet)",
        "grid 8 px",
        "grid 16 px",
        "color shift /255",
        "median s",
    ]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [row for row in rows if row["method"] == method]
        columns = ("psnr_y", "ssim_y", "lpips_squeeze", "grid_8", "grid_16", "color_shift")
        means = [fmean(float(row[column]) for row in of_method) for column in columns]
        seconds = median(float(row["seconds"]) for row in of_method)
        numbers = [
            f"{means[0]:.2f}",
            *(f"{m:.4f}" for m in means[1:3]),
            *(f"{m:.3f}" for m in means[3:]),
        ]
        time_ = "-" if math.isnan(seconds) else f"{seconds:.2f}"
        lines.append(f"| {method} | {len(of_method)} | {' | '.join(numbers)} | {time_} |")
    return "\n".join(lines)


def _machine() -> str:
    cpu = Path("/proc/cpuinfo")
    names = (
        [line for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {len(names) or '?'} cores"


if __name__ == "__main__":
    main(tyro.cli(Options))
