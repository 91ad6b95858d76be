"""What a run writes down of its steps: one line of JSON each, in order, whatever was killed in between."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path

from allosr2.errors import one_line

logger = logging.getLogger(__name__)


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
    gradient_norms: dict[str, float] = field(default_factory=dict)
    """Gradient norms of the parts of what is trained, before clipping."""
    seconds: float = 0.0
    """Time since the step before."""
    memory: int = 0
    """Bytes in use (`allosr2.devices.memory_in_use`)."""

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are, so that the step was taken."""
        return isfinite(self.gradient_norm) and isfinite(self.terms["total"])

    def line(self) -> dict[str, float]:
        """The step as the log has it."""
        return {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "memory": self.memory,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            **{f"gradient_norm.{part}": norm for part, norm in self.gradient_norms.items()},
            **self.terms,
        }


def rewind(log: Path, step: int) -> None:
    """Cut off the lines of a killed run that are past `step`, or broken: those steps come again."""
    if not log.exists():
        return
    kept = 0
    with log.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n") or _step_of(line) > step:
                break
            kept += len(line)
    os.truncate(log, kept)


def _step_of(line: bytes) -> float:
    """The step of a line, or infinity for what is no line of a log, such as a power cut leaves."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return inf


def append(log: Path, line: Mapping[str, float]) -> None:
    """Append a line of JSON; a disk that refuses costs the line, with a warning, and not the run.

    JSON knows neither infinity nor NaN: they are written as strings.
    """
    numbers = {name: value if isfinite(value) else str(value) for name, value in line.items()}
    try:
        with log.open("a") as file:
            file.write(json.dumps(numbers) + "\n")
    except OSError as error:
        logger.warning("%s: a line is lost (%s)", log, one_line(error))
