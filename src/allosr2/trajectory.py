"""SNR-guided trajectory initialization: where on the flow LR latents belong (arXiv:2604.19238, Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from allosr2.errors import DataError
from allosr2.flow import path_snr, time_of_snr


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentPower:
    """Two numbers a pair, all that Eq. 6 needs; float64, on the CPU."""

    signal: Float[Tensor, " n"]
    """Mean square of z_hr's elements."""
    residual: Float[Tensor, " n"]
    """Mean square of (z_lr - z_hr)'s elements."""

    @property
    def pair_times(self) -> Float[Tensor, " n"]:
        """The time t of each pair alone: sigma / (1 + sigma) with sigma the RMS residual."""
        return time_of_snr(1 / self.residual)


def latent_power(
    pairs: Iterable[tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]],
) -> LatentPower:
    """Measure (z_lr, z_hr) batches in one streaming pass; the result does not depend on the batch size.

    Eq. 6 asks for a fixed pre-trained encoder: encode both with the frozen one, LR enlarged first.
    Raises DataError if there is no pair, or if a pair's latents are not finite or equal.
    """
    signal: list[Tensor] = []
    residual: list[Tensor] = []
    for z_lr, z_hr in pairs:
        squares = (z_hr.double().square(), (z_lr.double() - z_hr.double()).square())
        for powers, square in zip((signal, residual), squares, strict=True):
            powers.append(reduce(square, "b c h w -> b", "mean").cpu())
    if not any(len(part) for part in signal):
        raise DataError("t* (Eq. 6): no pair to measure it on; name a folder with LR and HR images")
    power = LatentPower(signal=torch.cat(signal), residual=torch.cat(residual))
    bad = ~(power.signal.isfinite() & power.residual.isfinite() & (power.residual > 0))
    if bool(bad.any()):
        number = int(bad.nonzero()[0])
        raise DataError(
            f"t* (Eq. 6): pair {number} has equal or non-finite LR and HR latents; remove the pair"
        )
    return power


def snr_discrepancy(power: LatentPower, t: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The mean in Eq. 6 at times t: `mean_i | s_i ((1 - t) / t)^2 - s_i / residual_i |`."""
    path = path_snr(t.double())
    measured = 1 / power.residual
    return (power.signal * (path[:, None] - measured).abs()).mean(1)


def optimal_time(power: LatentPower) -> float:
    """t* (Eq. 6), exactly.

    The path's SNR falls strictly in t, so the minimizer over the SNR is the signal-weighted median of
    the pairs' 1 / residual, and t* the time that has it. O(n log n).
    """
    measured, order = (1 / power.residual).sort()
    cumulative = power.signal[order].cumsum(0)
    median = torch.searchsorted(cumulative, cumulative[-1] / 2)
    return float(time_of_snr(measured[median]))


def optimal_time_on_grid(power: LatentPower, steps: int = 1000) -> float:
    """t* (Eq. 6) as the paper searches it: the best of the times 1/steps, 2/steps, ... 1."""
    grid = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return float(grid[snr_discrepancy(power, grid).argmin()])
