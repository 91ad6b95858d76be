"""Allomorphic trajectory matching (arXiv:2604.19238, Eq. 11 and 12)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from allosr2.flow import clean_prediction, per_sample

SMALLEST_ERROR = 1e-3
"""Floor of mean|z_sr - z_hr| in ATM's weight, so that a perfect sample does not get an infinite one."""


class ATM(NamedTuple):
    """ATM's two numbers."""

    loss: Float[Tensor, ""]
    """Has the gradient of Eq. 12 with respect to z_sr; its value means nothing."""
    size: Float[Tensor, ""]
    """Mean of |w delta|: what to watch."""


def path_discrepancy(
    z_t_sr: Float[Tensor, "b c h w"],
    v_sr: Float[Tensor, "b c h w"],
    z_t_gen: Float[Tensor, "b c h w"],
    v_gen: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """The bracket of Eq. 12, `(z_t_sr - z_t_gen) - t (v_sr - v_gen)`, without gradient.

    It is the difference of the two paths' clean predictions.
    """
    return (clean_prediction(z_t_sr, v_sr, t) - clean_prediction(z_t_gen, v_gen, t)).detach()


def atm(
    z_sr: Float[Tensor, "b c h w"],
    z_hr: Float[Tensor, "b c h w"],
    delta: Float[Tensor, "b c h w"],
) -> ATM:
    """ATM's loss for a discrepancy `delta` of the two paths; the gradient reaches z_sr alone (Eq. 12).

    The weight is w = 1 / mean|z_sr - z_hr| of each sample (Algorithm 1, line 20), without gradient. Descent
    moves z_sr by -delta, toward the generative flow's clean prediction.
    """
    with torch.no_grad():
        error = reduce((z_sr - z_hr).abs(), "b c h w -> b", "mean").clamp_min(SMALLEST_ERROR)
        direction = delta / per_sample(error)
    return ATM(loss=(direction * z_sr).mean(), size=direction.abs().mean())
