"""`allosr2 upscale --dry-run`: what would go where, in what size, tiles, memory and time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from allosr2.batch import FileOptions
from allosr2.cli.console import console
from allosr2.cli.files import list_failures
from allosr2.errors import AlloSR2Error
from allosr2.imaging.io import check_target, read_size
from allosr2.imaging.picture import Picture
from allosr2.imaging.size import OutputSize
from allosr2.pipeline import Job, Outcome

if TYPE_CHECKING:
    from allosr2.upscaler import Plan, Upscaler

QUICK = 5.0
"""Seconds; a tile that takes no longer is made three times, as the first one warms up as well."""

_STAND_IN = Picture(color=np.zeros((1, 1, 3), np.uint8), format="PNG")
"""For what is known of a picture before it is read."""


def print_forecast(
    to_do: Sequence[Job],
    passed_over: Sequence[Outcome],
    upscalers: Sequence[Upscaler],
    size: OutputSize,
    options: FileOptions,
) -> int:
    """A line for each image and one for all; the time is that of one tile, measured, times the tiles.

    Opacity, which takes as long as the colors, is not seen in a header, and not counted.

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
            height, width = read_size(job.source, options.limits)
            plan = upscaler.plan(height, width, size)
            if job.target is not None:
                file_format = options.format_of(job, _STAND_IN)
                check_target(job.target, _STAND_IN, file_format, size=plan.size)
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
            f"{plan.tiles} tile{'s' * (plan.tiles > 1)}, {_gigabytes(plan):.1f} GB, {_duration(seconds)}"
        )
    for outcome in passed_over:
        console().print(
            f"{outcome.job.name} -> {_target(outcome.job)}: skipped, {outcome.notes[0]}"
        )
    exit_code = list_failures(failures)
    tiles = f" in tiles of {_pixels(largest)} px at most" if largest else ""
    megapixels = sum(math.prod(plan.size) for _, plan in plans) / 1e6
    peak = max((_gigabytes(plan) for _, plan in plans), default=0.0)
    console().print(
        f"{len(to_do) - len(failures)} to do, {len(passed_over)} skipped, {len(failures)} unreadable: "
        f"{megapixels:.1f} MP{tiles}, "
        f"{peak:.1f} GB at the peak, about {_duration(total / len(upscalers))}"
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

    # in a thread of its own, as in a batch: PyTorch's threads behave differently in the first one
    with ThreadPoolExecutor(1) as thread:
        least = thread.submit(seconds).result()
        for _ in range(2 if least < QUICK else 0):
            least = min(least, thread.submit(seconds).result())
    return least / (plan.tiles * math.prod(plan.tile))


def _gigabytes(plan: Plan) -> float:
    """Of model, tiles and result together, wherever they lie."""
    return (plan.bytes + plan.result_bytes) / 1e9


def _target(job: Job) -> str:
    return "stdout" if job.target is None else str(job.target)


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
