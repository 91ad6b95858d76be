"""Losses against periodic patterns. Not of the paper: a model as small as `mini` shows its patches otherwise.

`grid` finds what repeats all over a picture, however faint, in its brightness; `hatch` finds what is finer than
an LR image can hold and louder than in the HR image, in color too and though its sign may change from place
to place.

One-step models on FLUX show such grids too: FluxSR (arXiv:2502.01993) regularizes attention against them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from allosr2.imaging.quality import grid_contrast, unrounded_luma
from allosr2.losses.spectra import ROUNDING, TILE, WINDOW, local_power

GRID_PERIOD = 16
"""Pixels between two tokens of FLUX: 1/8 size, 2 x 2 patches. Grids of 8, 4 and 2 px are its harmonics."""

_DIFFERENCE_ROUNDING = 2 / 12
"""The same of a color difference, R - G or B - G."""
_FINEST = 1 / 8
"""Cycles a pixel that an LR image of a quarter of the size can hold."""


def grid(image: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the grid contrasts (`grid_contrast`) of Y, over images, axes and harmonics.

    Absolute, not squared: what a picture happens to hold at one frequency is no grid, and must not outweigh
    the rest. Contrasts are logarithms, so that a faint pattern on smooth ground, where it shows, weighs as
    much as a strong one on texture. RGB in [0, 1]; sides of 128 px or more. Decode in float32 for it: bfloat16
    rounds to half a level of 8 bits, and the noise of that hides what shows in float32.
    """
    y, y_hr = unrounded_luma(image), unrounded_luma(hr)
    terms = [(_contrast(a) - _contrast(b)).abs().mean() for a, b in ((y, y_hr), (y.mT, y_hr.mT))]
    return torch.stack(terms).mean()


def hatch(image: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean squared excess of local spectra over the HR image's, as logarithms of power, where there is one.

    Spectra of Y, R - G and B - G in windows of 32 px, averaged over each image; the mean is over images,
    planes and the frequencies above 1/8 cycles a pixel along either axis (made for x4). Missing detail costs
    nothing. RGB in [0, 1]; sides of 32 px or more; decoded in float32, as for `grid`.
    """
    excess = (_local_spectra(image) - _local_spectra(hr)).relu()
    frequencies = torch.fft.fftfreq(TILE, device=image.device).abs()
    fine = torch.maximum(frequencies[:, None], frequencies[None, : TILE // 2 + 1]) > _FINEST
    return ((excess.square() * fine).sum((-2, -1)) / fine.sum()).mean()


def float32_for_grids(weight: float, device: torch.device) -> AbstractContextManager[object]:
    """Where a result is decoded that these losses see with `weight`: no autocast, unless the weight is 0."""
    # the meta device has no autocast; there `allosr2.meter` follows the CPU's
    kind = "cpu" if device.type == "meta" else device.type
    return torch.autocast(kind, enabled=False) if weight else nullcontext()


def _contrast(y: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k"]:
    lines = rearrange(y, "b 1 h w -> b h w")
    return grid_contrast(lines, GRID_PERIOD, ROUNDING * WINDOW * y.shape[-1])


def _local_spectra(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 v u"]:
    # element by element: a product of matrices would be taken in bfloat16 under autocast
    red, green, blue = (255 * image).unbind(dim=1)
    y = rearrange(unrounded_luma(image), "b 1 h w -> b h w")
    planes = torch.stack([y, red - green, blue - green], dim=1)
    power = reduce(local_power(planes), "b p down across v u -> b p v u", "mean")
    rounding = power.new_tensor([ROUNDING, _DIFFERENCE_ROUNDING, _DIFFERENCE_ROUNDING])
    return (power + rounding[:, None, None] * (WINDOW * TILE) ** 2).log()
