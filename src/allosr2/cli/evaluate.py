"""`allosr2 evaluate`: the field's metrics of a folder of results."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from allosr2.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


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
    from allosr2.evaluation.images import images_of
    from allosr2.evaluation.measure import pair_images

    hr, lr = (None if folder is None else images_of(folder) for folder in (config.hr, config.lr))
    pairs = pair_images(images_of(config.sr), hr, lr)
    scorers, skipped = scorers_of(
        config.measuring, len(pairs), hr=hr is not None, lr=lr is not None
    )
    output = _output(config)
    measure_into(
        output,
        config.sr.name,
        pairs,
        scorers,
        skipped,
        workers=config.measuring.workers,
        **_folders(config),
    )
    console().print(_table(config, len(pairs), json.loads((output / SUMMARY).read_text())))
    for name in (PER_IMAGE, SUMMARY):
        console().print(str(output / name))
    return 0


def _folders(config: Evaluate) -> dict[str, str | None]:
    folders = {"sr": config.sr, "hr": config.hr, "lr": config.lr}
    return {name: folder and str(folder.resolve()) for name, folder in folders.items()}


def _output(config: Evaluate) -> Path:
    """Where to write. Raises ConfigError where nobody chose it and figures of another folder lie there."""
    if config.output is not None:
        return config.output
    output = Path("evaluation", config.sr.resolve().name)
    former = None
    with suppress(OSError, ValueError, KeyError):
        former = json.loads((output / SUMMARY).read_text())["sr"]
    if former not in (None, str(config.sr.resolve())):
        raise ConfigError(f"{output} holds figures of {former}; choose another --output")
    return output


def _table(config: Evaluate, images: int, summary: dict[str, Any]) -> Table:
    from rich.table import Table

    from allosr2.evaluation.metrics import METRICS

    table = Table(title=f"{images} images, {config.sr}", title_justify="left")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("by")
    for name, held in summary["metrics"].items():
        metric = METRICS[name]
        ends = [f"{held[end]:.{metric.digits}f}" for end in ("low", "high") if end in held]
        mean = f"{held['mean']:.{metric.digits}f}"
        table.add_row(f"{metric.title} {metric.arrow}", mean, " to ".join(ends), held["by"])
    return table
