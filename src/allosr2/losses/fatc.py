"""Flow-anchored trajectory consistency (arXiv:2604.19238, Eq. 9 and 10)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from allosr2.flow import interpolate, velocity


def sr_state(
    z_lr: Float[Tensor, "b c h w"],
    z_hr: Float[Tensor, "b c h w"],
    t: Float[Tensor, " b"],
    t_star: float,
) -> Float[Tensor, "b c h w"]:
    """The SR path's state `(1 - t/t*) z_hr + (t/t*) z_lr` at t in [0, t*] (Eq. 9)."""
    return interpolate(z_hr, z_lr, t / t_star)


def fatc(
    v_sr: Float[Tensor, "b c h w"],
    z_lr: Float[Tensor, "b c h w"],
    z_hr: Float[Tensor, "b c h w"],
    t_star: float,
) -> Float[Tensor, ""]:
    """Mean squared error of the velocity at an SR state against `(z_lr - z_hr) / t*` (Eq. 10).

    Args:
        v_sr: the field's velocity at `sr_state(z_lr, z_hr, t, t_star)` and t.
        z_lr: LR latents; the paper lets the gradient reach the encoder through them.
        z_hr: HR latents.
        t_star: time of z_lr on the path.
    """
    return functional.mse_loss(v_sr, velocity(z_hr, z_lr) / t_star)
