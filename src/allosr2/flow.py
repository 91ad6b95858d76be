"""The straight path between data and noise (arXiv:2604.19238, Eq. 1, 2, 7).

Time runs from t = 0 (data) to t = 1 (pure noise), as in FLUX; many libraries have it the other way round.
This is the only place that writes 1 - t, but for the clock of bases that count the other way (Z-Image).
"""

from __future__ import annotations

from typing import Protocol

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


class VelocityField(Protocol):
    """Anything that gives a velocity for states at given times is a flow model."""

    def __call__(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity dz_t/dt at z_t at time t in [0, 1]."""
        ...


def per_sample(t: Float[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
    """One number a sample, shaped to multiply latents."""
    return rearrange(t, "b -> b 1 1 1")


def interpolate(
    z_0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """The state `(1 - t) z_0 + t eps` at time t (Eq. 1 with a_t = 1 - t, b_t = t)."""
    s = per_sample(t)
    return (1 - s) * z_0 + s * eps


def velocity(
    z_0: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """The path's velocity `dz_t / dt = eps - z_0`, the same at every t (Eq. 2)."""
    return eps - z_0


def clean_prediction(
    z_t: Float[Tensor, "b c h w"], v: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Where a straight path with velocity v, at z_t at time t, began: `z_0 = z_t - t v` (Eq. 7)."""
    return z_t - per_sample(t) * v


def noise_prediction(
    z_t: Float[Tensor, "b c h w"], v: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Where a straight path with velocity v, at z_t at time t, ends: `eps = z_t + (1 - t) v`."""
    return z_t + (1 - per_sample(t)) * v


def euler(
    field: VelocityField, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"], steps: int
) -> Float[Tensor, "b c h w"]:
    """Follow a field from z_t at time t to data, t = 0, in equal Euler steps; one is `clean_prediction`."""
    for left in range(steps, 0, -1):
        z_t = clean_prediction(z_t, field(z_t, t * left / steps), t / steps)
    return z_t


def path_snr(t: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
    """Signal-to-noise ratio `((1 - t) / t)^2` of the path for data of unit power (left side of Eq. 6)."""
    return ((1 - t) / t).square()


def time_of_snr(snr: Float[Tensor, " *n"]) -> Float[Tensor, " *n"]:
    """The time at which the path has an SNR, `1 / (1 + sqrt(snr))`: the inverse of `path_snr`."""
    return 1 / (1 + snr.sqrt())
