"""What a run writes down of its steps: one line of JSON each, in order, whatever was killed in between."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite
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


def append(log: Path, status: Status) -> None:
    """Append one line to the run's log."""
    line = {
        "step": status.step,
        "seconds": round(status.seconds, 3),
        "memory": status.memory,
        "learning_rate": status.learning_rate,
        "gradient_norm": status.gradient_norm,
        **{f"gradient_norm.{part}": norm for part, norm in status.gradient_norms.items()},
        **status.terms,
    }
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")
