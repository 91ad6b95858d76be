"""What a base's flow draws from noise alone and its codec makes of photographs, and the errors of both.

    python benchmarks/samples.py --sheet samples.png [--base mini] [--photos DIR [--perceptual FILE]]

Samples are Euler steps of equal length from t = 1 to 0 (arXiv:2604.19238, Eq. 2), without text. Of photographs
the middles are taken: the codec's mean PSNR-Y and LPIPS are printed, and the flow's mean square error in Eq. 3
at five times, with one noise for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from allosr2.backbones.base import codec_of, family_of, load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.backbones.velocity import VelocityField
from allosr2.flow import interpolate
from allosr2.flow import velocity as true_velocity
from allosr2.imaging.io import find_images, image_from_any, read_rgb, to_array, write_image
from allosr2.imaging.picture import Picture
from allosr2.imaging.quality import psnr_y
from allosr2.imaging.sheet import Panel, sheet
from allosr2.losses.perceptual import LPIPS
from allosr2.model import named_base

COLUMNS = 4
TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is drawn."""

    sheet: Path
    """The PNG that is written."""
    base: str = "mini"
    """A base folder, or `mini`, the embedded one."""
    photos: Path | None = None
    """Folder of photographs, of `size` or more; without it there are samples alone."""
    perceptual: Path | None = None
    """Safetensors file of LPIPS weights on SqueezeNet 1.1; without it LPIPS is not printed."""
    every: int = 1
    """Take every so many-th photograph."""
    samples: int = 8
    """How many samples."""
    steps: int = 50
    """Euler steps of each."""
    size: int = 256
    """Side of every picture in pixels."""
    seed: int = 0
    """Seed of the noise."""


@torch.no_grad()
def main(options: Options) -> None:
    """Write the sheet."""
    base = named_base(options.base)
    codec, transformer = codec_of(load_vae(base)), load_transformer(base)
    family = family_of(transformer)
    velocity = family(transformer, family.without_text(transformer))
    side = options.size // codec.factor
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(options.samples, codec.channels, side, side, generator=generator)
    images = codec.decode(sample(velocity, noise, options.steps)).clamp(0, 1)
    panels: list[Panel] = [(f"sample {i}", to_array(x[None])) for i, x in enumerate(images)]
    if options.photos:
        crops = _middles(find_images(options.photos)[:: options.every], options.size)
        panels += _reconstructions(codec, crops, options.perceptual)
        _print_errors(codec, velocity, crops, options.seed)
    rows = [panels[first : first + COLUMNS] for first in range(0, len(panels), COLUMNS)]
    write_image(options.sheet, Picture(color=sheet(rows)))


def sample(
    velocity: VelocityField, noise: Float[Tensor, "b c h w"], steps: int
) -> Float[Tensor, "b c h w"]:
    """Latents at t = 0, from noise at t = 1."""
    z = noise
    for step in range(steps, 0, -1):
        t = noise.new_full((len(noise),), step / steps)
        z = z - velocity(z, t) / steps
    return z


def _middles(paths: Sequence[Path], size: int) -> dict[str, Float[Tensor, "1 3 s s"]]:
    crops: dict[str, Tensor] = {}
    for path in paths:
        whole = image_from_any(read_rgb(path))
        top, left = ((side - size) // 2 for side in whole.shape[-2:])
        crops[path.stem] = whole[..., top : top + size, left : left + size]
    return crops


def _reconstructions(
    codec: Codec, crops: dict[str, Tensor], perceptual: Path | None
) -> list[Panel]:
    """Print the codec's errors; returns the first photographs and what it makes of them."""
    lpips = perceptual and LPIPS.from_file(perceptual)
    panels: list[Panel] = []
    errors: list[tuple[float, float]] = []
    for name, crop in crops.items():
        decoded = image_from_any(to_array(codec.decode(codec.encode(crop)).clamp(0, 1)))
        psnr = float(psnr_y(decoded, crop))
        errors.append((psnr, float(lpips(decoded, crop)) if lpips else nan))
        panels += [(name, to_array(crop)), (f"codec, {psnr:.1f} dB", to_array(decoded))]
    psnr, distance = torch.tensor(errors).mean(0).tolist()
    print(f"codec: PSNR-Y {psnr:.2f} dB, LPIPS {distance:.4f}, on {len(crops)} photographs")
    return panels[: 2 * COLUMNS]


def _print_errors(
    codec: Codec, velocity: VelocityField, crops: dict[str, Tensor], seed: int
) -> None:
    """Print the flow's error in Eq. 3 at each of TIMES."""
    found = dict.fromkeys(TIMES, 0.0)
    for crop in crops.values():
        z_0 = codec.encode(crop)
        eps = torch.randn(z_0.shape, generator=torch.Generator().manual_seed(seed))
        for time in TIMES:
            t = z_0.new_full((1,), time)
            error = velocity(interpolate(z_0, eps, t), t) - true_velocity(z_0, eps)
            found[time] += float(error.square().mean()) / len(crops)
    print("flow, Eq. 3: " + ", ".join(f"{error:.3f} at t = {t}" for t, error in found.items()))


if __name__ == "__main__":
    main(tyro.cli(Options))
