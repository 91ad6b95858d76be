"""What a model's flow does with pairs of images: every number of `allosr2 diagnose`, by pair and on average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from allosr2.backbones.codec import Codec
from allosr2.errors import ImageError
from allosr2.evaluation.trajectories import fatc_residual, follow, one_step_errors, rms
from allosr2.flow import euler, path_snr
from allosr2.imaging.quality import psnr_y, ssim_y
from allosr2.model import AlloSR2
from allosr2.trajectory import LatentPower, latent_power, optimal_time

STEPS = (1, 2, 4, 8, 16)
"""Euler steps from t* to data that are compared; the path's shape is that of the most."""
FACTORS = (0.5, 0.625, 0.75, 0.875, 1.0, 1.125, 1.25, 1.375, 1.5)
"""What t* is multiplied by, to see whether it lies where one step errs least."""
LATEST = 0.995
"""Latest time beyond t* that a step is taken from: at 1 there is no signal."""
_EQUAL = 100.0
"""PSNR of equal images in dB, so that means are finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairDiagnosis:
    """What was measured of one pair. Lengths and errors are RMS over a latent's elements."""

    detour: float
    """Arc over chord of the path in 16 steps."""
    turning: Sequence[float]
    """Angle between its successive velocities in degrees."""
    velocity_change: Sequence[float]
    """|v(t) - v(t*)| / |v(t*)| along it, from t* on."""
    fatc_residual: Sequence[float]
    """Distance of the field from FATC's target as a fraction of that, at the same times and at 0."""
    error_of_lr: float
    """Of z_lr against z_hr: that of no step at all."""
    error: Mapping[int, float]
    """Against z_hr, by number of steps."""
    psnr_y: Mapping[int, float]
    """Of the decoded result in dB; 100 for equal images."""
    ssim_y: Mapping[int, float]
    """Of the decoded result."""
    error_at: Sequence[float]
    """Of one step taken from t* times each of the factors, as far as these are times."""
    adapted: LatentPower
    """Eq. 6's two numbers, z_lr by the model's own encoder."""
    frozen: LatentPower
    """Eq. 6's two numbers, z_lr by its base's, as the paper defines t*."""

    @property
    def error_ratio_at(self) -> list[float]:
        """`error_at` relative to that of one step from t* itself."""
        at_t_star = self.error_at[FACTORS.index(1.0)]
        return [error / at_t_star for error in self.error_at]

    def fields(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "detour": self.detour,
            "turning": list(self.turning),
            "velocity_change": list(self.velocity_change),
            "fatc_residual": list(self.fatc_residual),
            "error_of_lr": self.error_of_lr,
            "error": _by_steps(self.error),
            "psnr_y": _by_steps(self.psnr_y),
            "ssim_y": _by_steps(self.ssim_y),
            "error_at": list(self.error_at),
            "error_ratio_at": self.error_ratio_at,
            "t_adapted": float(self.adapted.pair_times),
            "t_frozen": float(self.frozen.pair_times),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was measured of all pairs."""

    t_star: float
    """The model's."""
    pairs: Mapping[str, PairDiagnosis]
    """By the name of their files; at least one."""

    @property
    def times(self) -> list[float]:
        """Where velocities were taken, from t* down to 0; the path's own stop before 0."""
        return torch.linspace(self.t_star, 0, max(STEPS) + 1, dtype=torch.float64).tolist()

    @property
    def factors(self) -> list[float]:
        """What t* was multiplied by."""
        return factors_of(self.t_star)

    @property
    def adapted(self) -> LatentPower:
        """Of all pairs, z_lr by the model's own encoder."""
        return _joined([pair.adapted for pair in self.pairs.values()])

    @property
    def frozen(self) -> LatentPower:
        """Of all pairs, z_lr by the base's encoder."""
        return _joined([pair.frozen for pair in self.pairs.values()])

    @property
    def best_factor(self) -> float:
        """The factor at which one step's error, relative to that at t*, is least on average."""
        ratios = self.means()["error_ratio_at"]
        return self.factors[ratios.index(min(ratios))]

    def means(self) -> dict[str, Any]:
        """Every number's mean over the pairs, each point of a curve by itself."""
        fields = [pair.fields() for pair in self.pairs.values()]
        return {name: _mean([one[name] for one in fields]) for name in fields[0]}

    def fields(self) -> dict[str, Any]:
        """As JSON: times and factors that the curves are over, t* in every sense, means, and each pair."""
        return {
            "times": self.times,
            "steps": list(STEPS),
            "factors": self.factors,
            "t_star": {
                "of_the_model": self.t_star,
                "adapted_encoder": optimal_time(self.adapted),
                "frozen_encoder": optimal_time(self.frozen),
                "least_error_at_factor": self.best_factor,
            },
            "snr": {
                "of_the_path_at_t_star": float(path_snr(torch.tensor(self.t_star).double())),
                "adapted_encoder": float((1 / self.adapted.residual).median()),
                "frozen_encoder": float((1 / self.frozen.residual).median()),
            },
            "means": self.means(),
            "pairs": {name: pair.fields() for name, pair in self.pairs.items()},
        }


def factors_of(t_star: float) -> list[float]:
    """Those of FACTORS that lead to times; 1 always."""
    return [factor for factor in FACTORS if factor <= 1 or factor * t_star <= LATEST]


def diagnose_pair(
    model: AlloSR2,
    frozen: Codec,
    lr: Float[Tensor, "1 3 h w"],
    hr: Float[Tensor, "1 3 h w"],
) -> PairDiagnosis:
    """Measure one pair of images in [0, 1].

    Asks the field some sixty times and decodes five times; takes the memory of one of these.

    Args:
        model: with its adapters.
        frozen: its base's codec, without.
        lr: enlarged; sides are multiples of the model's.
        hr: of the same size.

    Raises:
        DataError: for a pair whose latents are equal.
        ImageError: for a pair that is too small for SSIM, and if what the model makes of it is not finite.
    """
    field, t_star = model.velocity, model.config.t_star
    z_lr, z_hr, z_frozen = model.codec.encode(lr), frozen.encode(hr), frozen.encode(lr)
    adapted_power, frozen_power = (latent_power([(z, z_hr)]) for z in (z_lr, z_frozen))
    path = follow(field, z_lr, t_star, max(STEPS))
    t = z_lr.new_full((1,), t_star)
    ends = {steps: euler(field, z_lr, t, steps) for steps in STEPS[:-1]} | {STEPS[-1]: path.end}
    if not all(bool(end.isfinite().all()) for end in ends.values()):
        raise ImageError("the model's result is not finite; try another model or --device cpu")
    psnr: dict[int, float] = {}
    ssim: dict[int, float] = {}
    for steps, end in ends.items():
        image = model.codec.decode(end)
        psnr[steps] = float(psnr_y(image, hr).clamp(max=_EQUAL))
        ssim[steps] = float(ssim_y(image, hr))
    along = [*path.times.tolist(), 0.0]
    at = [factor * t_star for factor in factors_of(t_star)]
    return PairDiagnosis(
        detour=float(path.detour),
        turning=path.turning[0].tolist(),
        velocity_change=path.change[0].tolist(),
        fatc_residual=fatc_residual(field, z_lr, z_hr, t_star, along)[0].tolist(),
        error_of_lr=float(rms(z_lr - z_hr)),
        error={steps: float(rms(end - z_hr)) for steps, end in ends.items()},
        psnr_y=psnr,
        ssim_y=ssim,
        error_at=one_step_errors(field, z_lr, z_hr, at)[0].tolist(),
        adapted=adapted_power,
        frozen=frozen_power,
    )


def _joined(powers: Sequence[LatentPower]) -> LatentPower:
    return LatentPower(
        signal=torch.cat([power.signal for power in powers]),
        residual=torch.cat([power.residual for power in powers]),
    )


def _by_steps(values: Mapping[int, float]) -> dict[str, float]:
    return {str(steps): value for steps, value in values.items()}


def _mean(values: Sequence[Any]) -> Any:  # noqa: ANN401 - numbers, lists of them and dicts of them
    match values[0]:
        case dict():
            return {key: _mean([value[key] for value in values]) for key in values[0]}
        case list():
            return [_mean(points) for points in zip(*values, strict=True)]
        case _:
            return fmean(values)
