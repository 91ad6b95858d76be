"""Plots of how a flow runs from LR latents to data, and of where on it these belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from allosr2.evaluation.diagnosis import STEPS, Diagnosis
from allosr2.evaluation.plots import drawn
from allosr2.flow import path_snr
from allosr2.imaging.io import write_image
from allosr2.imaging.picture import Picture
from allosr2.trajectory import LatentPower, optimal_time

_COLORS = ("#0072B2", "#D55E00")
"""Okabe and Ito's, which color-blind people tell apart."""
_STYLES = ("-", "--", "-.")
"""Of lines that mark times."""
_PANEL = (4.2, 4.8)
"""Width and height of a panel in inches."""
_DPI = 130


def straightness(diagnosis: Diagnosis) -> Figure:
    """How the velocity changes along the SR path and turns, how far it is off FATC's, and the path's detour."""
    figure, (change, turning, residual, detour) = _panels(
        f"Straightness of the SR path, {max(STEPS)} steps from t* = {diagnosis.t_star:.3f} to data",
        4,
    )
    times, pairs = diagnosis.times, list(diagnosis.pairs.values())
    _curve(change, times[:-1], [pair.velocity_change for pair in pairs])
    change.set(title="Change of velocity", ylabel="|v(t) - v(t*)| / |v(t*)|")
    _curve(turning, times[1:-1], [pair.turning for pair in pairs])
    turning.set(title="Curvature", ylabel="angle between successive velocities (degrees)")
    _curve(residual, times, [pair.fatc_residual for pair in pairs])
    residual.axhline(1, color="gray", linestyle=":", label="no velocity at all")
    residual.set(title="Distance from FATC's target", ylabel="|v - (z_lr - z_hr) / t*|, relative")
    for axes in (change, turning, residual):
        axes.set(xlabel="t (data at 0)", ylim=(0, None))
        axes.set_xlim(diagnosis.t_star, 0)  # the way that the path goes
    residual.set_ylim(0, max(residual.get_ylim()[1], 1.1))
    detours = [pair.detour for pair in pairs]
    detour.hist(detours, bins=min(20, max(5, len(pairs) // 2)), color=_COLORS[0])
    mean = float(np.mean(detours))
    detour.axvline(mean, color="black", linestyle="--", label=f"mean {mean:.4f}")
    detour.set(title="Detour", xlabel="arc length / chord length", ylabel="pairs")
    detour.xaxis.set_major_locator(MaxNLocator(4))
    detour.yaxis.set_major_locator(MaxNLocator(integer=True))
    detour.ticklabel_format(axis="x", useOffset=False)
    for axes in (change, turning, residual, detour):
        _legend(axes)
    return figure


def steps(diagnosis: Diagnosis) -> Figure:
    """One step against many: what more steps change of the latents' error and of the images' PSNR and SSIM."""
    figure, panels = _panels(f"More steps against one, from t* = {diagnosis.t_star:.3f}", 3)
    pairs = list(diagnosis.pairs.values())
    measured = (
        ("Error of the latents", "RMS of z_sr - z_hr", [pair.error for pair in pairs]),
        ("PSNR of Y", "dB", [pair.psnr_y for pair in pairs]),
        ("SSIM of Y", "SSIM", [pair.ssim_y for pair in pairs]),
    )
    for axes, (title, unit, values) in zip(panels, measured, strict=True):
        of_one = float(np.mean([one[1] for one in values]))
        axes.axhline(0, color="black", linestyle="--", label=f"one step: mean {of_one:.4g}")
        _curve(axes, STEPS, [[one[n] - one[1] for n in STEPS] for one in values], marker="o")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(STEPS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda n, _: f"{n:g}")
        axes.set(title=title, xlabel="Euler steps", ylabel=f"difference to one step ({unit})")
        _legend(axes)
    return figure


def t_star(diagnosis: Diagnosis) -> Figure:
    """What one step errs by when LR latents are taken to lie earlier or later than at the model's t*."""
    figure, (axes,) = _panels("One step from other times than t*", 1, width=7.5)
    pairs, one_step = list(diagnosis.pairs.values()), diagnosis.factors.index(1.0)
    times = [factor * diagnosis.t_star for factor in diagnosis.factors]
    ratios = [pair.error_ratio_at for pair in pairs]
    _curve(axes, times, ratios, marker="o")
    best = diagnosis.best_factor
    axes.plot(
        best * diagnosis.t_star,
        np.mean(ratios, axis=0)[diagnosis.factors.index(best)],
        color=_COLORS[1],
        linestyle="none",
        marker="*",
        markersize=14,
        label=f"least: {best:g} t* = {best * diagnosis.t_star:.3f}",
    )
    of_lr = float(np.mean([pair.error_of_lr / pair.error_at[one_step] for pair in pairs]))
    axes.axhline(of_lr, color="gray", linestyle=":", label=f"z_lr, no step: {of_lr:.3f}")
    for (label, time), style in zip(_marks(diagnosis).items(), _STYLES, strict=True):
        axes.axvline(time, color="black", linestyle=style, linewidth=1, label=label)
    axes.set(
        xlabel="t that the step is taken from", ylabel="RMS of z_sr - z_hr, relative to that at t*"
    )
    factors = axes.twiny()
    factors.set_xlim(*(limit / diagnosis.t_star for limit in axes.get_xlim()))
    factors.set_xlabel("t / t* of the model")
    _legend(axes, columns=2)
    return figure


def snr(diagnosis: Diagnosis) -> Figure:
    """The path's SNR over t, what LR latents of the adapted and of the frozen encoder have, and t* (Eq. 6)."""
    powers = {
        "pairs, adapted encoder": diagnosis.adapted,
        "pairs, frozen encoder": diagnosis.frozen,
    }
    return snr_curve(powers, _marks(diagnosis))


def snr_curve(powers: Mapping[str, LatentPower], marks: Mapping[str, float]) -> Figure:
    """The path's SNR over t with pairs of one or two kinds on it, and how these spread.

    Args:
        powers: pairs by what the legend calls them; each lies where the path has its measured SNR.
        marks: times by what the legend calls them, three at most.
    """
    figure = Figure(figsize=(10.5, 5.2), dpi=_DPI, layout="constrained")
    figure.suptitle("Where on the path LR latents belong (Eq. 6)")
    curve, spread = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    t = torch.linspace(0.02, 0.98, 400, dtype=torch.float64)
    curve.semilogy(t, path_snr(t), color="gray", label="path: ((1 - t) / t)²")
    measured = {label: (1 / power.residual).numpy() for label, power in powers.items()}
    for (label, power), color, marker in zip(powers.items(), _COLORS, ("o", "x"), strict=False):
        curve.plot(
            power.pair_times.numpy(),
            measured[label],
            color=color,
            linestyle="none",
            marker=marker,
            markerfacecolor="none",
            markersize=8,
            label=f"{label}: 1 / residual",
        )
    everything = np.log10(np.concatenate(list(measured.values())))
    low, high = everything.min() - 0.05, everything.max() + 0.05
    spread.hist(
        list(measured.values()),
        bins=np.logspace(low, high, 13).tolist(),
        orientation="horizontal",
        color=list(_COLORS[: len(powers)]),
    )
    spread.xaxis.set_major_locator(MaxNLocator(integer=True))
    for (label, time), style in zip(marks.items(), _STYLES, strict=False):
        curve.axvline(time, color="black", linestyle=style, linewidth=1, label=label)
        level = float(path_snr(torch.tensor(time)))
        spread.axhline(level, color="black", linestyle=style, linewidth=1)
    curve.set(xlabel="t (data at 0)", ylabel="SNR / mean z_hr²", xlim=(0, 1))
    spread.set(xlabel="pairs", ylim=(10**low / 10, 10**high * 10))
    _legend(curve, columns=2)
    return figure


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG file, whole or not at all. Raises ImageError if it cannot be written."""
    write_image(path, Picture(color=drawn(figure)), file_format="PNG")


PLOTS: Mapping[str, Callable[[Diagnosis], Figure]] = {
    "straightness.png": straightness,
    "steps.png": steps,
    "t_star.png": t_star,
    "snr.png": snr,
}
"""Every plot of a diagnosis by the name of its file."""


def _marks(diagnosis: Diagnosis) -> dict[str, float]:
    times = {
        "t* of the model": diagnosis.t_star,
        "t* of the pairs, adapted encoder": optimal_time(diagnosis.adapted),
        "t* of the pairs, frozen encoder": optimal_time(diagnosis.frozen),
    }
    return {f"{label} = {time:.3f}": time for label, time in times.items()}


def _panels(title: str, count: int, width: float = _PANEL[0]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * count, _PANEL[1]), dpi=_DPI, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, count, squeeze=False)[0].tolist()
    for axes in panels:
        axes.grid(alpha=0.25)
    return figure, panels


def _curve(
    axes: Axes, x: Sequence[float], values: Sequence[Sequence[float]], marker: str | None = None
) -> None:
    """The mean over pairs, in the band that holds four of five pairs."""
    points = np.asarray(values)
    low, high = np.percentile(points, (10, 90), axis=0)
    axes.fill_between(
        x, low, high, color=_COLORS[0], alpha=0.2, linewidth=0, label="10th to 90th percentile"
    )
    label = f"mean of the pairs ({len(points)})"
    axes.plot(x, points.mean(0), color=_COLORS[0], marker=marker, label=label)


def _legend(axes: Axes, columns: int = 1) -> None:
    """Put the legend below a plot, where it hides nothing."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        fontsize="small",
        frameon=False,
        ncols=columns,
    )
