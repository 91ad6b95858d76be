"""Local spectra of pictures, which losses on patterns and on detail look at, and what rounding adds to them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from allosr2.imaging.quality import LUMA_WEIGHTS

TILE = 32
"""Side in pixels of the windows that local spectra are taken of; half of it apart."""
ROUNDING = sum((weight / 255) ** 2 for weight in LUMA_WEIGHTS) / 12
"""Variance that rounding RGB to 8 bits adds to Y, in squared levels: what hides a fainter pattern."""
WINDOW = 3 / 8
"""Mean square of the Hann window."""


def local_power(planes: Float[Tensor, "*b h w"]) -> Float[Tensor, "*b down across v u"]:
    """Power in each Hann window of `TILE` pixels, its mean taken out: squared magnitudes of a half spectrum.

    Noise of variance s^2 has (WINDOW TILE)^2 s^2 at every frequency. Sides are `TILE` or more.
    """
    tiles = planes.unfold(-2, TILE, TILE // 2).unfold(-2, TILE, TILE // 2)
    window = torch.hann_window(TILE, dtype=planes.dtype, device=planes.device)
    tiles = (tiles - tiles.mean((-2, -1), keepdim=True)) * window[:, None] * window
    spectra: Tensor = torch.fft.rfft2(tiles)  # pyright: ignore[reportUnknownMemberType]
    return spectra.real.square() + spectra.imag.square()
