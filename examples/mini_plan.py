"""How `train_mini.py` shares its time out: what a step of each stage takes, how many it gets, what it took."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from allosr2.errors import ConfigError, one_line
from allosr2.storage import save_text
from allosr2.training.interrupts import TimeIsUp
from allosr2.training.log import Status

SHARES = {"codec": 0.25, "flow": 0.1, "mini": 0.4, "decoder": 0.25}
"""Of the time, in the order of the stages. The first three as the first `mini` had them, 33, 14 and 61 minutes;
the decoder as much as the codec, whose other half it is."""
HOURS_USED = 0.97
"""Of the hours: the rest is for validation, export, and compiling again in other pieces."""
PROBE_STEPS = 4
PROBE_SECONDS = 20.0
"""A stage is timed over so many steps and so many seconds at least. They are its first ones, and not lost."""


@dataclass(kw_only=True, slots=True)
class Progress:
    """What is known of a stage."""

    steps: int | None = None
    """How many it gets; None before it was timed."""
    seconds_a_step: float | None = None
    """On the machine that it began on."""
    batch_size: int | None = None
    """Images of a step; None before it began."""
    seconds: float = 0.0
    """What it took so far, loading, compilation and validation included."""
    machines: list[str] = field(default_factory=list[str])
    """What it was trained on."""
    finished: bool = False
    """Whether it is exported."""


@dataclass(kw_only=True, slots=True)
class Pace:
    """Times the first steps of a stage, and ends it for now when it knows how long one takes."""

    skipped: int
    """Steps that do not count: networks are compiled in them, or their images were loaded ahead."""
    step: int = 0
    """The last step."""
    sure: bool = False
    """Whether there were enough steps."""
    times: list[float] = field(default_factory=lambda: [time.monotonic()])
    """When the stage began, and when each step ended."""

    def note(self, status: Status) -> None:
        """Take the time of a step; raises TimeIsUp when it was the last one needed."""
        self.times.append(time.monotonic())
        self.step = status.step
        counted = self.times[1 + self.skipped :]
        self.sure = len(counted) > PROBE_STEPS and counted[-1] - counted[0] >= PROBE_SECONDS
        if self.sure:
            raise TimeIsUp

    @property
    def seconds(self) -> float:
        """What a step takes, from one end to the next; by all where they are too few to leave some out."""
        counted = self.times[1 + self.skipped :] if self.sure else self.times[1:]
        if len(counted) < 2:
            counted = self.times
        return (counted[-1] - counted[0]) / (len(counted) - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The stages' progress, in a file."""

    path: Path
    settings: dict[str, Any]
    """Options that hold for all stages."""
    stages: dict[str, Progress]

    @classmethod
    def read(cls, path: Path, settings: dict[str, Any]) -> Plan:
        """Read what there is. Raises ConfigError if it cannot be read, or was begun with other settings."""
        plan = cls(path=path, settings=settings, stages={name: Progress() for name in SHARES})
        if not path.exists():
            return plan
        try:
            saved = json.loads(path.read_text())
            former: dict[str, Any] = dict(saved["settings"])
            plan.stages.update({name: Progress(**saved["stages"][name]) for name in SHARES})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({one_line(error)}); use another --output"
            ) from error
        for name, value in settings.items():
            if former.get(name) != value:
                raise ConfigError(
                    f"{name} is {value}: {path.parent} was begun with {former.get(name)}; use that, or "
                    "another --output"
                )
        return plan

    def fix_steps(self, name: str, pace: Pace, hours: float) -> int:
        """How many steps a stage gets: its share of the time that the stages before it have left of `hours`."""
        names, progress = list(SHARES), self.stages[name]
        before = sum(self.stages[other].seconds for other in names if other != name)
        share = SHARES[name] / sum(SHARES[other] for other in names[names.index(name) :])
        left = (HOURS_USED * 3600 * hours - before) * share - progress.seconds
        progress.seconds_a_step = pace.seconds
        progress.steps = pace.step + max(1, int(left / pace.seconds))
        self.save()
        return progress.steps

    def save(self) -> None:
        """Write it, whole or not at all. Raises ConfigError if the disk refuses."""
        stages = {name: asdict(progress) for name, progress in self.stages.items()}
        content = {"settings": self.settings, "stages": stages}
        try:
            save_text(self.path, json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise refused(self.path, error) from error


def refused(path: Path, error: OSError) -> ConfigError:
    """What to raise where a disk refuses."""
    return ConfigError(
        f"{path} cannot be written ({one_line(error)}); make room and run the same command again, or use "
        "another --output"
    )
