"""Color correction: an enlarged picture keeps its detail and takes its colors from the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt16
from torch import Tensor
from torch.nn import functional

from allosr2.errors import ConfigError
from allosr2.imaging.tiling import RowsOf

ColorFix = Literal["wavelet", "adain", "lab", "none"]
"""How colors are corrected: see `match_color`."""

LEVELS = 5
"""Levels of the a-trous pyramid; the last one blurs with a standard deviation of 13 px."""

RADIUS = 2**LEVELS - 1
"""Pixels farther away than this (in either axis) have no influence on a local correction: 31 px."""

_BAND = 256
"""Rows that are corrected at a time."""

# Linear sRGB to XYZ relative to the white point D65 (IEC 61966-2-1), rows X, Y, Z.
_TO_XYZ = torch.tensor(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ],
    dtype=torch.float64,
) / torch.tensor([[0.95047], [1.0], [1.08883]], dtype=torch.float64)
_LAB_EDGE = 6 / 29


def check_color_fix(color_fix: str, strength: float) -> None:
    """Raise ConfigError for an unknown correction, and a strength out of [0, 1]."""
    if color_fix not in get_args(ColorFix):
        raise ConfigError(f"color_fix is {color_fix}: use {', '.join(get_args(ColorFix))}")
    if not 0 <= strength <= 1:
        raise ConfigError(f"color_strength is {strength}: use a number from 0 to 1")


def match_color(
    sr: RowsOf,
    reference: RowsOf,
    height: int,
    color_fix: ColorFix = "wavelet",
    strength: float = 1.0,
) -> Iterator[Float[Tensor, "b 3 n w"]]:
    """Correct the colors of `sr` after `reference`; yields the rows of the result, in [0, 1], in order.

    - `wavelet`: the low frequencies of `sr` are replaced by those of `reference` (`match_low_frequencies`).
    - `lab`: the same for a and b of CIELAB alone: lightness stays the model's.
    - `adain`: mean and standard deviation of each channel, over the whole picture, become those of `reference`
      (adaptive instance normalization, arXiv:1703.06868). The picture is held once, in 16 bits.
    - `none`: nothing.

    Args:
        sr: rows of the picture, about [0, 1], asked for from top to bottom.
        reference: rows of the input at that size, in [0, 1], likewise.
        height: of both, in pixels.
        color_fix: the correction.
        strength: from 0 (none) to 1 (all of it).
    """
    if color_fix == "adain":
        yield from _match_moments(sr, reference, height, strength)
        return
    correct = _LOCAL[color_fix]
    for top in range(0, height, _BAND):
        bottom = min(top + _BAND, height)
        first, last = max(top - RADIUS, 0), min(bottom + RADIUS, height)
        rows = sr(first, last)
        correction = correct(rows, reference(first, last)) - rows
        inner = slice(top - first, bottom - first)
        yield torch.add(rows[..., inner, :], correction[..., inner, :], alpha=strength).clamp_(0, 1)


def match_low_frequencies(
    sr: Float[Tensor, "b c h w"], reference: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Replace the low frequencies of `sr` by those of `reference`. Not clamped.

    The low frequencies are what is left after blurring five times with the separable kernel
    [1 2 1] / 4 whose taps lie 1, 2, 4, 8 and 16 px apart, border pixels repeated (the "wavelet"
    color fix of StableSR, arXiv:2305.07015). The blur is linear, so one blur of the difference
    does: `sr + low(reference - sr)`.

    Each result depends on pixels up to `RADIUS` away: on a cut-out, the outermost `RADIUS` pixels differ
    from those of the whole.
    """
    return _low_frequencies(reference - sr).add_(sr)


def to_lab(rgb: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """CIELAB (D65; L from 0 to 100) of sRGB in [0, 1]."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = _mix(_TO_XYZ, linear)
    root = torch.where(
        xyz > _LAB_EDGE**3, xyz.clamp(min=0) ** (1 / 3), xyz / (3 * _LAB_EDGE**2) + 4 / 29
    )
    x, y, z = root.unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def from_lab(lab: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The inverse of `to_lab`; colors that sRGB does not hold leave [0, 1]."""
    lightness, a, b = lab.unbind(dim=1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], dim=1)
    xyz = torch.where(root > _LAB_EDGE, root**3, 3 * _LAB_EDGE**2 * (root - 4 / 29))
    linear = _mix(torch.linalg.inv(_TO_XYZ), xyz)
    return torch.where(
        linear > 0.0031308, 1.055 * linear.clamp(min=0) ** (1 / 2.4) - 0.055, 12.92 * linear
    )


def _mix(matrix: Float[Tensor, "3 3"], image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    return torch.einsum("kc, b c h w -> b k h w", matrix.to(image), image)


def _match_chroma(
    sr: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    lab = to_lab(sr.clamp(0, 1))
    matched = match_low_frequencies(lab[:, 1:], to_lab(reference)[:, 1:])
    return from_lab(torch.cat([lab[:, :1], matched], dim=1))


_LOCAL: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wavelet": match_low_frequencies,
    "lab": _match_chroma,
    "none": lambda sr, _: sr,
}


def _match_moments(
    sr: RowsOf, reference: RowsOf, height: int, strength: float
) -> Iterator[Float[Tensor, "b 3 n w"]]:
    held: list[UInt16[np.ndarray, "b 3 n w"]] = []
    sums = torch.zeros(2, 2, 3, dtype=torch.float64)  # of sr, reference: values, squares
    pixels = 0
    for top in range(0, height, _BAND):
        rows = (top, min(top + _BAND, height))
        band = sr(*rows).clamp(0, 1)
        for row, values in zip(sums, (band, reference(*rows)), strict=True):
            wide = values.double()
            row += torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])
        pixels += band.numel() // 3
        held.append(band.mul_(65535).round_().numpy().astype(np.uint16))
    mean = sums[:, 0] / pixels
    deviation = (sums[:, 1] / pixels - mean.square()).clamp(min=0).sqrt()
    # a flat channel has no contrast to scale
    factor = torch.where(deviation[0] > 1e-6, deviation[1] / deviation[0].clamp(min=1e-6), 1)
    factor = 1 + strength * (factor - 1)
    shift = mean[0] + strength * (mean[1] - mean[0]) - factor * mean[0]
    while held:
        band = torch.from_numpy(held.pop(0).astype(np.float32)) / 65535
        by_channel = (1, 3, 1, 1)
        yield band.mul_(factor.view(by_channel)).add_(shift.view(by_channel)).clamp_(0, 1)


def _low_frequencies(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    for level in range(LEVELS):
        image = _blur(image, 2**level, axis=-1)
        image = _blur(image, 2**level, axis=-2)
    return image


def _blur(image: Float[Tensor, "b c h w"], distance: int, axis: int) -> Float[Tensor, "b c h w"]:
    sides = (distance, distance, 0, 0) if axis == -1 else (0, 0, distance, distance)
    length = image.shape[axis]
    padded = functional.pad(image, sides, mode="replicate")
    before = padded.narrow(axis, 0, length)
    after = padded.narrow(axis, 2 * distance, length)
    return torch.add(before, after).mul_(0.25).add_(image, alpha=0.5)
