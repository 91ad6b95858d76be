"""What stages measure on validation images: metrics, diagnostics of the two paths, a before/after sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import cast

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from allosr2.data.pairs import Batch
from allosr2.flow import VelocityField, euler, path_snr
from allosr2.imaging.quality import FEWEST_PERIODS, periodicity, psnr_y, ssim_y
from allosr2.imaging.resize import enlarge
from allosr2.imaging.sheet import Panel, sheet
from allosr2.losses.perceptual import LPIPS
from allosr2.trajectory import latent_power, optimal_time

LatentPairs = Sequence[tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]]
"""z_lr and z_hr, batch by batch."""

_EULER_STEPS = (4, 16)
"""Steps that one step is held against."""
_PERIODS = (8, 16)
"""Pixels between the lines of grids that are looked for."""
_SHEET_ROWS = 4
_SHEET_SIDE = 512
"""Longest side of a picture on a sheet in pixels."""
_EQUAL = 100.0
"""PSNR of equal images in dB: with infinity a drawn image of one color would hide all others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was seen of a stage on validation images."""

    numbers: dict[str, float]
    """Points of curves by name; what stands before the slash groups them."""
    sheet: UInt8[np.ndarray, "h w 3"]
    """The first images, before and after, side by side."""


def inspect_results(
    batches: Sequence[Batch],
    results: Iterable[Float[Tensor, "b 3 h w"]],
    *,
    scale: int,
    lpips: LPIPS | None,
) -> Inspection:
    """Results against HR images, beside bicubic enlargement where there are LR images.

    `validation/psnr_y` (dB; 100 for equal images), `ssim_y`, `lpips`, each `_of_bicubic` too; `color_shift`,
    the mean over channels of |mean result - mean HR| in levels of 8 bits; `periodicity_8` and `_16`, each
    `_of_hr` too, where sides have 128 px or more. All are means over images. Results count as the network
    gives them: what the upscaler does about their color is not in here.

    Args:
        batches: validation images.
        results: of each batch, RGB; clamped to [0, 1] here.
        scale: upscaling factor of the pairs.
        lpips: perceptual distance; None leaves it out.
    """
    measured: dict[str, list[Tensor]] = {}
    rows: list[list[Panel]] = []
    for batch, unclamped in zip(batches, results, strict=True):
        hr, result = batch.hr, unclamped.clamp(0, 1)
        numbers = _quality(result, hr, lpips)
        shift = reduce(result - hr, "b c h w -> b c", "mean").abs()
        numbers["color_shift"] = 255 * reduce(shift, "b c -> b", "mean")
        if min(hr.shape[-2:]) >= FEWEST_PERIODS * max(_PERIODS):
            for of, image in (("", result), ("_of_hr", hr)):
                contrasts = periodicity(image, _PERIODS).unbind(1)
                for period, contrast in zip(_PERIODS, contrasts, strict=True):
                    numbers[f"periodicity_{period}{of}"] = contrast
        columns = [panels("result", result, numbers["psnr_y"]), panels("HR", hr)]
        if batch.lr is not None:
            bicubic = enlarge(batch.lr, scale)
            reference = _quality(bicubic, hr, lpips)
            numbers |= {f"{name}_of_bicubic": values for name, values in reference.items()}
            columns.insert(0, panels(f"LR, bicubic x{scale}", bicubic, reference["psnr_y"]))
        rows += [list(row) for row in zip(*columns, strict=True)]
        for name, values in numbers.items():
            measured.setdefault(name, []).append(values)
    return Inspection(
        numbers={f"validation/{name}": mean(values) for name, values in measured.items()},
        sheet=first_rows(rows),
    )


def snr_match(latents: LatentPairs, t_star: float) -> dict[str, float]:
    """Whether LR latents still lie where t* expects them, whatever the adapters do to the encoder (Eq. 6).

    `snr/t_measured` is the exact t* of these pairs, beside `snr/t_star` that the model uses;
    `snr/residual` is the RMS of z_lr - z_hr, beside `snr/residual_at_t_star` = t*/(1 - t*), the noise that the
    path has there for its signal. NaN if no pair's latents are finite and differ.
    """
    usable: list[tuple[Tensor, Tensor]] = []
    for z_lr, z_hr in latents:
        finite = reduce((z_lr - z_hr).square() + z_hr.square(), "b c h w -> b", "sum").isfinite()
        kept = finite & (z_lr != z_hr).flatten(1).any(1)
        if bool(kept.any()):
            usable.append((z_lr[kept], z_hr[kept]))
    power = latent_power(usable) if usable else None
    return {
        "snr/t_star": t_star,
        "snr/t_measured": optimal_time(power) if power else math.nan,
        "snr/residual": float(power.residual.mean().sqrt()) if power else math.nan,
        "snr/residual_at_t_star": float(path_snr(torch.tensor(t_star)).rsqrt()),
    }


def straightness(velocity: VelocityField, latents: LatentPairs, t_star: float) -> dict[str, float]:
    """One step from z_lr at t* to data, against 4 and 16 Euler steps along the same field.

    `straightness/off_4_steps` is the RMS distance of both ends, as a fraction of the one step's RMS length; 0
    on a straight path. `straightness/error_1_step` and so on: the mean squared error of each end against z_hr.
    """
    measured: dict[str, list[Tensor]] = {}

    def measure(name: str, difference: Float[Tensor, "b c h w"]) -> None:
        measured.setdefault(name, []).append(reduce(difference.square(), "b c h w -> b", "mean"))

    for z_lr, z_hr in latents:
        t = z_lr.new_full((z_lr.shape[0],), t_star)
        one = euler(velocity, z_lr, t, 1)
        measure("length", one - z_lr)
        measure("error_1_step", one - z_hr)
        for steps in _EULER_STEPS:
            end = euler(velocity, z_lr, t, steps)
            measure(f"off_{steps}_steps", one - end)
            measure(f"error_{steps}_steps", end - z_hr)
    means = {name: mean(values) for name, values in measured.items()}
    length = means.pop("length")
    for steps in _EULER_STEPS:
        name = f"off_{steps}_steps"
        means[name] = math.sqrt(means[name] / length) if length else 0.0
    return {f"straightness/{name}": value for name, value in means.items()}


def gradient_norms(
    losses: Mapping[str, Float[Tensor, ""]], parts: Mapping[str, nn.Module]
) -> dict[str, float]:
    """Norm of every loss's gradient in every part's trained parameters: `gradient_norm_PART/LOSS`.

    The parameters' own gradients stay as they are. The losses' graphs are used up.
    """
    trained = {
        part: [p for p in module.parameters() if p.requires_grad] for part, module in parts.items()
    }
    norms: dict[str, float] = {}
    for number, (name, loss) in enumerate(losses.items(), 1):
        of_parts = _gradient_norms(loss, trained, kept=number < len(losses))
        norms |= {f"gradient_norm_{part}/{name}": norm for part, norm in of_parts.items()}
    return norms


def _gradient_norms(
    loss: Float[Tensor, ""], trained: Mapping[str, Sequence[nn.Parameter]], *, kept: bool
) -> dict[str, float]:
    """The norms of one loss's gradient, which is gone before there is the next one's."""
    together = list(chain(*trained.values()))
    gradients = torch.autograd.grad(loss, together, retain_graph=kept, allow_unused=True)
    remaining = iter(cast(tuple[Tensor | None, ...], gradients))
    norms: dict[str, float] = {}
    for part, parameters in trained.items():
        reached = [g for g in islice(remaining, len(parameters)) if g is not None]
        norms[part] = float(nn.utils.get_total_norm(reached))
    return norms


def panels(
    name: str, images: Float[Tensor, "b 3 h w"], psnr: Float[Tensor, " b"] | None = None
) -> list[Panel]:
    """Panels of a sheet: the middle of each image, pixel for pixel, under a name and its PSNR in dB."""
    top, left = (max(0, side - _SHEET_SIDE) // 2 for side in images.shape[-2:])
    middle = images[..., top : top + _SHEET_SIDE, left : left + _SHEET_SIDE].clamp(0, 1)
    levels = rearrange(255 * middle, "b c h w -> b h w c").round().to(torch.uint8)
    values = [None] * len(images) if psnr is None else psnr.tolist()
    captions = [name if value is None else f"{name}, {value:.2f} dB" for value in values]
    return list(zip(captions, levels.cpu().numpy(), strict=True))


def first_rows(rows: Sequence[Sequence[Panel]]) -> UInt8[np.ndarray, "h w 3"]:
    """The sheet of the first few images, a row each."""
    return sheet(rows[:_SHEET_ROWS])


def _quality(
    image: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"], lpips: LPIPS | None
) -> dict[str, Float[Tensor, " b"]]:
    numbers = {"psnr_y": psnr_y(image, hr).clamp(max=_EQUAL), "ssim_y": ssim_y(image, hr)}
    if lpips is not None:
        numbers["lpips"] = lpips(image, hr)
    return numbers


def mean(values: Sequence[Float[Tensor, " b"]]) -> float:
    """The mean over all images of numbers that were measured batch by batch."""
    return float(torch.cat(list(values)).double().mean())
