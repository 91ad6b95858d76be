"""What a run writes down of its steps: one line of JSON each, in order, whatever was killed in between."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What one optimizer step did."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    learning_rate: float
    """Learning rate of the step."""
    gradient_norm: float
    """Global gradient norm before clipping."""
    terms: dict[str, float]
    """Loss terms by name, averaged over the batch."""


def rewind(log: Path, step: int) -> None:
    """Remove the lines of a killed run that are past `step`, or were cut short: those steps come again."""
    if not log.exists():
        return
    kept: list[str] = []
    for line in log.read_text().splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    log.write_text("".join(kept))


def append(log: Path, status: Status, seconds: float) -> None:
    """Append one line to the run's log."""
    line = {
        "step": status.step,
        "seconds": round(seconds, 3),
        "learning_rate": status.learning_rate,
        "gradient_norm": status.gradient_norm,
        **status.terms,
    }
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
