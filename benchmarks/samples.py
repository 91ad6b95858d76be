"""What a base's flow draws from noise alone, and its codec makes of photographs: both on one sheet.

    python benchmarks/samples.py --sheet samples.png [--base mini] [--photos DIR] [--steps 50] [--size 256]

Samples are Euler steps of equal length from t = 1 to 0 (arXiv:2604.19238, Eq. 2), without text. With photos
the codec's PSNR-Y of their middles is printed too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from allosr2.backbones.base import codec_of, family_of, load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.backbones.velocity import VelocityField
from allosr2.imaging.io import find_images, image_from_any, read_rgb, to_array, write_image
from allosr2.imaging.picture import Picture
from allosr2.imaging.quality import psnr_y
from allosr2.imaging.sheet import Panel, sheet
from allosr2.model import named_base

COLUMNS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is drawn."""

    sheet: Path
    """The PNG that is written."""
    base: str = "mini"
    """A base folder, or `mini`, the embedded one."""
    photos: Path | None = None
    """Folder of photographs for the codec; without it there are samples alone."""
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
        panels += _reconstructions(codec, options.photos, options.size)
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


def _reconstructions(codec: Codec, photos: Path, size: int) -> list[Panel]:
    panels: list[Panel] = []
    found: list[float] = []
    for path in find_images(photos)[:COLUMNS]:
        whole = image_from_any(read_rgb(path))
        top, left = ((side - size) // 2 for side in whole.shape[-2:])
        image = whole[..., top : top + size, left : left + size]
        decoded = codec.decode(codec.encode(image)).clamp(0, 1)
        found.append(float(psnr_y(decoded, image)))
        panels += [(path.stem, to_array(image)), (f"codec, {found[-1]:.1f} dB", to_array(decoded))]
    print(f"codec: PSNR-Y {sum(found) / len(found):.2f} dB on {len(found)} crops of {size} px")
    return panels


if __name__ == "__main__":
    main(tyro.cli(Options))
