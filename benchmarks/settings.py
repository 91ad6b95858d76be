"""What the settings of an upscaler do to its results: color fix, fidelity, jitter.

    python benchmarks/settings.py --pairs DIR --perceptual FILE [--plot fidelity.png] [--every 1]

DIR holds `lr/` and `hr/` with equal names. Each row is the mean over all pairs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from allosr2 import Upscaler
from allosr2.imaging.io import find_images, image_from_any, read_image
from allosr2.imaging.picture import Picture, to_tensor
from allosr2.imaging.quality import periodicity, psnr_y, ssim_y
from allosr2.imaging.resize import enlarge, resize
from allosr2.losses.perceptual import LPIPS

FIDELITIES = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
COLOR_FIXES = (
    {"color_fix": "none"},
    {"color_fix": "lab"},
    {"color_fix": "adain"},
    {"color_fix": "wavelet", "color_strength": 0.5},
    {"color_fix": "wavelet"},
)
JITTERS = (1, 2, 4)
_COLUMNS = (
    "PSNR-Y",
    "SSIM-Y",
    "LPIPS (SqueezeNet)",
    "grid 8 px",
    "grid 16 px",
    "color error",
    "color shift /255",
    "mean s",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    pairs: Path
    """Folder with `lr/` and `hr/`."""
    perceptual: Path
    """Safetensors file of LPIPS weights."""
    model: str = "mini"
    """Model folder or name."""
    every: int = 1
    """Measure every so many-th pair."""
    tables: tuple[Literal["color", "jitter", "fidelity"], ...] = ("color", "jitter", "fidelity")
    """Which are measured."""
    plot: Path | None = None
    """Draw the curve of PSNR against LPIPS over the fidelity into this file."""


@torch.no_grad()
def main(options: Options) -> None:
    """Print a Markdown table for each setting."""
    lpips = LPIPS.from_file(options.perceptual)
    pairs = [
        (_read(options.pairs / "lr" / path.name), _read(path))
        for path in find_images(options.pairs / "hr")[:: options.every]
    ]

    def measure(settings: dict[str, Any]) -> list[float]:
        upscaler = Upscaler.from_pretrained(
            options.model, device="cpu", precision="float32", **settings
        )
        rows: list[list[float]] = []
        for lr, hr in pairs:
            started = time.perf_counter()
            sr = upscaler(lr).mul(255).round().div(255)
            seconds = time.perf_counter() - started
            bicubic = enlarge(lr, 4)
            low_sr, low_hr = (resize(image, (16, 16)) for image in (sr, hr))
            rows.append(
                [
                    psnr_y(sr, hr).item(),
                    ssim_y(sr, hr).item(),
                    lpips(sr, hr).item(),
                    *periodicity(sr)[0].tolist(),
                    255 * (low_sr - low_hr).square().mean().sqrt().item(),
                    255 * (sr - bicubic).mean((0, 2, 3)).abs().mean().item(),
                    seconds,
                ]
            )
        return torch.tensor(rows).mean(0).tolist()

    if "color" in options.tables:
        _table("color fix", [(_named(fix), measure(fix)) for fix in COLOR_FIXES])
    if "jitter" in options.tables:
        _table("jitter", [(str(n), measure({"jitter": n})) for n in JITTERS])
    if "fidelity" in options.tables:
        curve = [(fidelity, measure({"fidelity": fidelity})) for fidelity in FIDELITIES]
        _table("fidelity", [(f"{fidelity:g}", means) for fidelity, means in curve])
        if options.plot is not None:
            _plot(options.plot, curve, pairs, lpips)
    print(f"{len(pairs)} pairs; torch {torch.__version__}, {torch.get_num_threads()} threads")


def _read(path: Path) -> Float[Tensor, "1 3 h w"]:
    picture: Picture = read_image(path)
    return image_from_any(to_tensor(picture.color))


def _named(settings: dict[str, Any]) -> str:
    return ", ".join(str(value) for value in settings.values())


def _table(name: str, rows: Sequence[tuple[str, Sequence[float]]]) -> None:
    print(f"| {name} | {' | '.join(_COLUMNS)} |\n{'|---' * (len(_COLUMNS) + 1)}|")
    formats = (".2f", ".4f", ".4f", ".3f", ".3f", ".2f", ".3f", ".2f")
    for label, means in rows:
        figures = [format(mean, spec) for mean, spec in zip(means, formats, strict=True)]
        print(f"| {label} | {' | '.join(figures)} |")
    print(flush=True)


def _plot(
    path: Path,
    curve: Sequence[tuple[float, Sequence[float]]],
    pairs: Sequence[tuple[Tensor, Tensor]],
    lpips: LPIPS,
) -> None:
    """PSNR to the right, LPIPS down: better is up and to the right."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    psnr, distance = ([means[column] for _, means in curve] for column in (0, 2))
    axes.plot(psnr, distance, marker="o", color="#0b6e99")
    for (fidelity, _), x, y in zip(curve, psnr, distance, strict=True):
        # by turns above and below: the curve comes back on itself
        offset = (6, 5) if round(8 * fidelity) % 2 == 0 else (-6, -14)
        axes.annotate(f"{fidelity:g}", (x, y), xytext=offset, textcoords="offset points")
    bicubic = [(psnr_y(b, hr).item(), lpips(b, hr).item()) for b, hr in _bicubic(pairs)]
    x, y = torch.tensor(bicubic).mean(0).tolist()
    axes.plot([x], [y], marker="s", color="#666666")
    axes.annotate("bicubic", (x, y), xytext=(-12, 8), textcoords="offset points", ha="right")
    axes.set(xlabel="PSNR-Y (dB), higher is better", ylabel="LPIPS (SqueezeNet), lower is better")
    axes.set_title(f"--fidelity from 0 to 1, RealSR ({len(pairs)} pairs)")
    axes.margins(0.12)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _bicubic(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(enlarge(lr, 4).mul(255).round().div(255), hr) for lr, hr in pairs]


if __name__ == "__main__":
    main(tyro.cli(Options))
