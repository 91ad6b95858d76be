"""A loss on how much detail there is, wherever it lies.

Not of the paper: what a network as small as `mini` cannot place it leaves out, and LPIPS does not ask for all
of it back.
"""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allosr2.imaging.quality import unrounded_luma
from allosr2.losses.spectra import ROUNDING, TILE, WINDOW, local_power

EDGES = (2.0, 3.0, 4.5, 6.75, 10.0, 15.0, 23.0)
"""Radii between the bands, in cycles a window: factors of 3/2, up to the corner of the spectrum."""


def texture(image: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, ""]:
    """Mean absolute difference of the logarithms of local power in Y, over windows and bands of frequencies.

    Blind to phase: detail at the wrong place costs nothing here, too little costs as much as too much. As
    it is absolute, the power that is best where HR images differ is their median, not less. RGB in [0, 1];
    sides of 32 px or more.
    """
    return (_log_power(image) - _log_power(hr)).abs().mean()


def _log_power(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b down across k"]:
    y = rearrange(unrounded_luma(image), "b 1 h w -> b h w")
    power = local_power(y) / (WINDOW * TILE) ** 2  # b down across v u
    # element by element: a product of matrices would be taken in bfloat16 under autocast
    banded = torch.stack([(power * band).sum((-2, -1)) for band in _bands(y)], dim=-1)
    return (banded + ROUNDING).log()


def _bands(like: Tensor) -> Float[Tensor, "k v u"]:
    """What each frequency counts for in the mean of each band; most of a half spectrum stand for two."""
    down = TILE * torch.fft.fftfreq(TILE, dtype=like.dtype, device=like.device)
    across = torch.arange(TILE // 2 + 1, dtype=like.dtype, device=like.device)
    radius = (down[:, None].square() + across.square()).sqrt()
    edges = torch.tensor(EDGES, dtype=like.dtype, device=like.device)
    inside = (radius >= edges[:-1, None, None]) & (radius < edges[1:, None, None])
    twice = torch.full_like(across, 2.0)
    twice[[0, -1]] = 1.0
    weight = inside * twice
    return weight / weight.sum((-2, -1), keepdim=True)
