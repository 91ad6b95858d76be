"""`allosr2 evaluate`: the field's metrics of a folder of results."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes

from allosr2.cli.console import console
from allosr2.cli.measuring import (
    PER_IMAGE,
    SUMMARY,
    Measuring,
    measure_into,
    require_evaluation,
    scorers_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Measure a folder of results as published tables do: each image, the means, and how sure these are.

    Images are paired by name, whatever their suffix. Without `--hr` only the metrics that need none are
    measured. After an interruption the same command goes on where it was.
    """

    sr: Path
    """Folder of results."""
    hr: Path | None = None
    """Folder of HR images."""
    lr: Path | None = None
    """Folder of LR images, for `color-shift`."""
    output: Path | None = None
    """Folder for `per_image.csv` and `summary.json`; by default `evaluation/` and the name of `--sr`."""
    measuring: Annotated[Measuring, OmitArgPrefixes] = field(default_factory=Measuring)
    """Which metrics, and how they are computed."""


def evaluate(config: Evaluate) -> int:
    """Measure, write the files, and print the means; returns the exit code."""
    require_evaluation()
    from rich.table import Table

    from allosr2.evaluation.images import images_of
    from allosr2.evaluation.measure import pair_images
    from allosr2.evaluation.metrics import METRICS
    from allosr2.evaluation.summary import interval

    hr, lr = (None if folder is None else images_of(folder) for folder in (config.hr, config.lr))
    pairs = pair_images(images_of(config.sr), hr, lr)
    scorers, skipped = scorers_of(config.measuring, hr=hr is not None, lr=lr is not None)
    output = config.output or Path("evaluation", config.sr.resolve().name)
    measured = measure_into(
        output,
        config.sr.name,
        pairs,
        scorers,
        skipped,
        workers=config.measuring.workers,
        sr=str(config.sr),
        hr=None if config.hr is None else str(config.hr),
    )
    by = {scorer.metric.name: scorer.by for scorer in scorers}
    table = Table(title=f"{len(pairs)} images, {config.sr}", title_justify="left")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("by")
    for name, mean in measured.means().items():
        metric = METRICS[name]
        values = [of[name] for of in measured.images.values() if name in of]
        ends = " to ".join(f"{end:.{metric.digits}f}" for end in interval(values)) if values else ""
        table.add_row(f"{metric.title} {metric.arrow}", f"{mean:.{metric.digits}f}", ends, by[name])
    console().print(table)
    for name in (PER_IMAGE, SUMMARY):
        console().print(str(output / name))
    return 0
