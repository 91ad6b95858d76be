"""What was measured of a method's images, what it comes to, and how sure that is."""

from __future__ import annotations

import csv
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.stats

from allosr2.evaluation.metrics import METRICS

if TYPE_CHECKING:
    from allosr2.evaluation.scorers import Scorer  # pyiqa takes seconds to import


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Metrics of one method's images on one set."""

    images: Mapping[str, Mapping[str, float]]
    """Name of each image, without its suffix, to metrics by name."""
    of_set: Mapping[str, float] = field(default_factory=dict[str, float])
    """Metrics that are one number of all images together."""
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])
    """Metrics that were asked for and could not be computed, and why."""

    def means(self) -> dict[str, float]:
        """Mean over the images of each metric, and the metrics of the set."""
        names = dict.fromkeys(name for values in self.images.values() for name in values)
        return {
            name: fmean(values[name] for values in self.images.values()) for name in names
        } | dict(self.of_set)


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One method on one set: its images, what was measured of them, and how they came about."""

    method: str
    """As tables name it."""
    images: Mapping[str, Path]
    """Name of each image, without its suffix, to its file."""
    measured: Measured
    seconds: float | None = None
    """Median seconds an image; None where nothing was run here."""
    note: str = ""
    """What made the images, in one line: a model and its hash, a program's command line."""


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % confidence interval of a mean over images, by bootstrap: percentiles of 9,999 resamples.

    Both ends are the value itself where there is but one image. The same values give the same interval.
    """
    if len(values) < 2:
        return values[0], values[0]
    resampled = scipy.stats.bootstrap(
        (np.asarray(values),),
        np.mean,
        batch=100,  # of resamples: memory
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = resampled.confidence_interval
    return float(low), float(high)


def per_image_csv(measured: Measured) -> str:
    """A line an image, a column a metric, in full precision."""
    names = [name for name in METRICS if any(name in v for v in measured.images.values())]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *names])
    for image, values in measured.images.items():
        writer.writerow([image, *(repr(values[name]) for name in names)])
    return text.getvalue()


def record(measured: Measured, scorers: Sequence[Scorer], **context: object) -> str:
    """The JSON that a table can be checked by: means, intervals, what computed them, versions and hashes.

    Args:
        measured: the values.
        scorers: what computed them.
        context: what else to keep, such as the folders.
    """
    means = measured.means()
    metrics: dict[str, Any] = {}
    for scorer in scorers:
        name = scorer.metric.name
        values = [of[name] for of in measured.images.values() if name in of]
        ends = dict(zip(("low", "high"), interval(values), strict=True)) if values else {}
        computed = {"by": scorer.by, "weights_sha256": dict(scorer.weights)}
        metrics[name] = {"mean": means[name], **ends, **computed}
    return json.dumps(
        {
            **context,
            "images": len(measured.images),
            "metrics": metrics,
            "skipped": dict(measured.skipped),
            "versions": versions(),
        },
        indent=2,
    )


def versions() -> dict[str, str]:
    """Of what figures depend on."""
    libraries = ("allosr2", "torch", "torchvision", "pyiqa", "scipy", "pillow")
    return {library: version(library) for library in libraries} | {
        "python": platform.python_version()
    }
