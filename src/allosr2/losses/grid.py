"""A loss against periodic grids. Not of the paper: a model as small as `mini` shows its patches without it.

One-step models on FLUX show such grids too: FluxSR (arXiv:2502.01993) regularizes attention against them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allosr2.imaging.quality import LUMA_WEIGHTS, grid_contrast, unrounded_luma

GRID_PERIOD = 16
"""Pixels between two tokens of FLUX: 1/8 size, 2 x 2 patches. Grids of 8, 4 and 2 px are its harmonics."""

_ROUNDING = sum((weight / 255) ** 2 for weight in LUMA_WEIGHTS) / 12
"""Variance that rounding RGB to 8 bits adds to Y, in squared levels: what hides a fainter grid."""
_WINDOW = 3 / 8
"""Mean square of the Hann window."""


def grid(image: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean squared difference of the grid contrasts (`grid_contrast`) of Y, over images, axes and harmonics.

    Contrasts are logarithms, so that a faint pattern on smooth ground, where it shows, weighs as much as a
    strong one on texture. RGB in [0, 1]; sides of 128 px or more. Decode in float32 for it: bfloat16 rounds
    to half a level of 8 bits, and the noise of that hides what shows in float32.
    """
    y, y_hr = unrounded_luma(image), unrounded_luma(hr)
    terms = [(_contrast(a) - _contrast(b)).square().mean() for a, b in ((y, y_hr), (y.mT, y_hr.mT))]
    return torch.stack(terms).mean()


def float32_for_grids(weight: float, device: torch.device) -> AbstractContextManager[object]:
    """Where a result is decoded that `grid` will see with `weight`: no autocast, unless the weight is 0."""
    return torch.autocast(device.type, enabled=False) if weight else nullcontext()


def _contrast(y: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b k"]:
    lines = rearrange(y, "b 1 h w -> b h w")
    return grid_contrast(lines, GRID_PERIOD, _ROUNDING * _WINDOW * y.shape[-1])
