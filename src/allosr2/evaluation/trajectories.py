"""How a flow runs from LR latents to data: how straight, how far off the path it was trained on, how well.

All are functions of a velocity field and latents alone. Lengths of latents are RMS over their elements, so that
the size of an image does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from allosr2.flow import VelocityField, clean_prediction, velocity
from allosr2.losses.fatc import sr_state


@dataclass(frozen=True, kw_only=True, slots=True)
class SRPath:
    """The way that equal Euler steps take from z_lr at t* to data, and its shape. Float64 but for `end`."""

    times: Float[Tensor, " n"]
    """Where the field was asked: t* first, falling toward 0."""
    arc: Float[Tensor, " b"]
    """Length of the way."""
    chord: Float[Tensor, " b"]
    """Distance of its two ends."""
    turning: Float[Tensor, "b n-1"]
    """Angle between successive velocities in degrees."""
    change: Float[Tensor, "b n"]
    """|v(t) - v(t*)| / |v(t*)| at `times`: 0 first, and everywhere on a straight path."""
    end: Float[Tensor, "b c h w"]
    """Where it ends, the latents at t = 0."""

    @property
    def detour(self) -> Float[Tensor, " b"]:
        """Arc over chord: 1 on a straight path, more on any other; 1 too where the field stands still."""
        return torch.where(self.arc > 0, self.arc / self.chord, 1.0)


def follow(
    field: VelocityField, z_lr: Float[Tensor, "b c h w"], t_star: float, steps: int
) -> SRPath:
    """Follow a field from z_lr at t* to data in equal Euler steps, and measure the way.

    Ends where `allosr2.flow.euler` does. Needs memory for five latents, whatever the number of steps.
    """
    times = torch.linspace(t_star, 0, steps + 1, dtype=torch.float64)[:-1]
    z, first, former = z_lr, None, None
    arc = z_lr.new_zeros(len(z_lr), dtype=torch.float64)
    turning: list[Tensor] = []
    change: list[Tensor] = []
    for t in times.tolist():
        v = field(z, z.new_full((len(z),), t))
        first = v if first is None else first
        change.append(_ratio(rms(v - first), rms(first)))
        if former is not None:
            turning.append(angle(former, v))
        arc += rms(v) * t_star / steps
        z, former = clean_prediction(z, v, z.new_full((len(z),), t_star / steps)), v
    return SRPath(
        times=times,
        arc=arc.cpu(),
        chord=rms(z - z_lr).cpu(),
        turning=torch.stack(turning, 1).cpu() if turning else arc.new_zeros(len(z), 0).cpu(),
        change=torch.stack(change, 1).cpu(),
        end=z,
    )


def fatc_residual(
    field: VelocityField,
    z_lr: Float[Tensor, "b c h w"],
    z_hr: Float[Tensor, "b c h w"],
    t_star: float,
    times: Sequence[float],
) -> Float[Tensor, "b n"]:
    """How far a field is off the path that FATC asks for: `|v(z_t_sr, t) - target| / |target|` at `times`.

    States z_t_sr lie between z_hr and z_lr (arXiv:2604.19238, Eq. 9), the target is `(z_lr - z_hr) / t*`
    (Eq. 10). 1 is a field that stands still, 0 the one that leads along the straight line. Float64.

    Args:
        field: the adapted flow.
        z_lr: LR latents, by the encoder that the field was trained with.
        z_hr: HR latents, by the frozen encoder.
        t_star: time of z_lr.
        times: in [0, t*].
    """
    target = velocity(z_hr, z_lr) / t_star
    residuals: list[Tensor] = []
    for time in times:
        t = z_lr.new_full((len(z_lr),), time)
        v = field(sr_state(z_lr, z_hr, t, t_star), t)
        residuals.append(_ratio(rms(v - target), rms(target)))
    return torch.stack(residuals, 1).cpu()


def one_step_errors(
    field: VelocityField,
    z_lr: Float[Tensor, "b c h w"],
    z_hr: Float[Tensor, "b c h w"],
    times: Sequence[float],
) -> Float[Tensor, "b n"]:
    """RMS distance to z_hr of one step (Eq. 7) taken from z_lr as if it lay at each of `times`. Float64."""
    errors: list[Tensor] = []
    for time in times:
        t = z_lr.new_full((len(z_lr),), time)
        errors.append(rms(clean_prediction(z_lr, field(z_lr, t), t) - z_hr))
    return torch.stack(errors, 1).cpu()


def rms(z: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Root of the mean square of each latent's elements. Float64."""
    return reduce(z.double().square(), "b c h w -> b", "mean").sqrt()


def angle(a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
    """Angle between latents in degrees, from 0 to 180; exact for small ones too. Float64.

    W. Kahan's formula: the arc cosine of a normalized product loses half of the digits near 0.
    """
    units = [rearrange(z.double(), "b c h w -> b (c h w)") for z in (a, b)]
    x, y = (unit / unit.norm(dim=1, keepdim=True).clamp(min=1e-300) for unit in units)
    return torch.rad2deg(2 * torch.atan2((x - y).norm(dim=1), (x + y).norm(dim=1)))


def _ratio(a: Float[Tensor, " b"], b: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """The quotient a / b, and 0 where a is 0."""
    return torch.where(a > 0, a / b, 0.0)
