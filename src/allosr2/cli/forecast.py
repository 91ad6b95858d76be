"""`allosr2 upscale --dry-run`: what would go where, in what size, tiles, memory and time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from allosr2.cli.console import console
from allosr2.cli.files import list_failures
from allosr2.errors import AlloSR2Error
from allosr2.imaging.io import Limits, read_size
from allosr2.imaging.picture import Picture
from allosr2.imaging.size import OutputSize
from allosr2.pipeline import Job, Outcome

if TYPE_CHECKING:
    from allosr2.upscaler import Plan, Upscaler

QUICK = 5.0
"""Seconds; a first tile that takes no longer is made again, as the first one warms up as well."""


def print_forecast(
    to_do: Sequence[Job],
    passed_over: Sequence[Outcome],
    upscalers: Sequence[Upscaler],
    size: OutputSize,
    limits: Limits,
) -> int:
    """A line for each image and one for all; the time is that of one tile, measured, times the tiles.

    Returns the exit code: 0, or that of the first image that cannot be read.
    """
    upscaler = upscalers[0]
    plans: list[tuple[Job, Plan]] = []
    failures: list[tuple[str, Exception]] = []
    for job in to_do:
        if job.source is None:
            console().print(f"stdin -> {_target(job)}: its size is known when it is read")
            continue
        try:
            height, width = read_size(job.source, limits)
            plan = upscaler.plan(height, width, size)
        except AlloSR2Error as error:
            failures.append((job.name, error))
            continue
        plans.append((job, plan))
    largest = max((plan.tile for _, plan in plans), key=math.prod, default=None)
    # by area, as images smaller than a tile are one small tile each
    rate = _seconds_a_pixel(upscaler, largest) if largest else 0.0
    total = 0.0
    for job, plan in plans:
        seconds = plan.tiles * math.prod(plan.tile) * rate
        total += seconds
        console().print(
            f"{job.name} -> {_target(job)}: {_pixels(plan.size)} px, "
            f"{plan.tiles} tile{'s' * (plan.tiles > 1)}, {plan.bytes / 1e9:.1f} GB, {_duration(seconds)}"
        )
    for outcome in passed_over:
        console().print(
            f"{outcome.job.name} -> {_target(outcome.job)}: skipped, {outcome.notes[0]}"
        )
    exit_code = list_failures(failures)
    tiles = f" in tiles of {_pixels(largest)} px at most" if largest else ""
    megapixels = sum(math.prod(plan.size) for _, plan in plans) / 1e6
    peak = max((plan.bytes for _, plan in plans), default=0) / 1e9
    console().print(
        f"{len(to_do) - len(failures)} to do, {len(passed_over)} skipped, {len(failures)} unreadable: "
        f"{megapixels:.1f} MP{tiles}, "
        f"{peak:.1f} GB on the device at the peak, about {_duration(total / len(upscalers))}"
    )
    return exit_code


def _seconds_a_pixel(upscaler: Upscaler, tile: tuple[int, int]) -> float:
    """How long a pixel of a tile takes, of a picture that becomes about one such tile."""
    scale = upscaler.model.config.scale
    height, width = (max(side // scale, 1) for side in tile)
    gray = Picture(color=np.full((height, width, 3), 128, np.uint8))
    plan = upscaler.plan(height, width)

    def seconds() -> float:
        started = time.perf_counter()
        upscaler.upscale_picture(gray)
        return time.perf_counter() - started

    first = seconds()
    return (first if first > QUICK else seconds()) / (plan.tiles * math.prod(plan.tile))


def _target(job: Job) -> str:
    return "stdout" if job.target is None else str(job.target)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
