"""What a batch says of itself: a bar while it runs, a line at its end, a JSON document."""

from __future__ import annotations

import json
import logging
import math
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress, TextColumn

from allosr2.cli.console import console, describe, errors_console, progress_bar
from allosr2.errors import AlloSR2Error, ConfigError
from allosr2.pipeline import Job, Outcome

if TYPE_CHECKING:
    from allosr2.imaging.io import Limits

logger = logging.getLogger(__name__)

STDOUT = Path("-")
"""As the file of a report."""


class BatchBar:
    """Files done, megapixels of results a second, and the time left, which goes by megapixels too."""

    def __init__(self, jobs: Sequence[Job], pixels: Mapping[Job, int]) -> None:
        """`pixels` are the sizes of results as far as they are known; others count nothing."""
        self._jobs = len(jobs)
        self._pixels = pixels
        self._finished = 0
        self._pixels_finished = 0
        self._pixels_failed = 0
        self._started = time.monotonic()
        self._running: dict[Job, float] = {}
        self._lock = threading.Lock()
        name = jobs[0].name if len(jobs) == 1 else f"{len(jobs)} images"
        self._bar: Progress = progress_bar(
            TextColumn("{task.fields[files]} files"), TextColumn("{task.fields[rate]:.2f} MP/s")
        )
        self._task = self._bar.add_task(
            name, total=sum(pixels.values()) or None, files=f"0/{len(jobs)}", rate=0.0
        )

    def __enter__(self) -> BatchBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def after_tile(self, job: Job, done: int, total: int) -> None:
        """A tile of a job is done; called from any thread."""
        with self._lock:
            self._running[job] = self._pixels.get(job, 0) * done / total
            self._show()

    def finished(self, outcome: Outcome) -> None:
        """A job is finished, well or badly."""
        with self._lock:
            self._running.pop(outcome.job, None)
            pixels = self._pixels.get(outcome.job, 0)
            self._pixels_finished += pixels
            self._pixels_failed += pixels * (outcome.status == "failed")
            self._finished += 1
            self._show()

    def print(self, line: str) -> None:
        """A result's line, to stdout; above the bar where both share a terminal."""
        shared = not self._bar.disable and console().is_terminal
        (self._bar.console if shared else console()).print(line)

    def _show(self) -> None:
        pixels = self._pixels_finished + sum(self._running.values())
        self._bar.update(
            self._task,
            completed=pixels,
            files=f"{self._finished}/{self._jobs}",
            rate=(pixels - self._pixels_failed) / 1e6 / max(time.monotonic() - self._started, 1e-3),
        )


def pixels_of_results(
    jobs: Sequence[Job], size_of: Callable[[int, int], tuple[int, int]], limits: Limits
) -> dict[Job, int]:
    """Sizes of results for a bar that is seen, from headers; what cannot be read yet is left out."""
    from allosr2.imaging.io import read_size

    pixels: dict[Job, int] = {}
    for job in jobs if errors_console().is_terminal else ():
        if job.source is not None:
            with suppress(AlloSR2Error):
                pixels[job] = math.prod(size_of(*read_size(job.source, limits)))
    return pixels


def follow(
    results: Generator[Outcome], bar: BatchBar, *, quiet: bool
) -> tuple[list[Outcome], bool]:
    """Say what is finished as it is; returns the outcomes, and whether they were cut short."""
    outcomes: list[Outcome] = []
    try:
        with bar, closing(results):
            for outcome in results:
                outcomes.append(outcome)
                bar.finished(outcome)
                if outcome.status == "done":
                    if not quiet:
                        bar.print(str(outcome.job.target))
                    if outcome.notes:
                        logger.info("%s: %s", outcome.job.name, "; ".join(outcome.notes))
    except KeyboardInterrupt:
        return outcomes, True
    return outcomes, False


def totals(outcomes: Sequence[Outcome], seconds: float) -> dict[str, float]:
    """Counts by status, megapixels written, and how many a second of the whole run."""
    counts = Counter(outcome.status for outcome in outcomes)
    sizes = [outcome.output_size for outcome in outcomes if outcome.output_size]
    megapixels = sum(height * width for height, width in sizes) / 1e6
    return {
        "done": counts["done"],
        "skipped": counts["skipped"],
        "failed": counts["failed"],
        "seconds": round(seconds, 3),
        "megapixels": round(megapixels, 6),
        "megapixels_per_second": round(megapixels / seconds, 3) if seconds else 0.0,
        "bytes": sum(outcome.bytes for outcome in outcomes),
    }


def summary(outcomes: Sequence[Outcome], jobs: int, seconds: float) -> str:
    """A batch in one line: "38 of 40 images done, 2 failed, 1.23 MP/s"."""
    total = totals(outcomes, seconds)
    others = "".join(f", {total[name]} {name}" for name in ("skipped", "failed") if total[name])
    rate = f", {total['megapixels_per_second']:.2f} MP/s" if total["done"] else ""
    return f"{total['done']} of {jobs} images done{others}{rate}"


def document(
    outcomes: Sequence[Outcome], seconds: float, settings: Mapping[str, Any], *, interrupted: bool
) -> str:
    """The report of `--json`: every file, the totals, the settings and the versions.

    Sizes are in pixels. `seconds` of a file are those of the model; of the totals, of the whole run.
    """
    report = {
        "files": [_file(outcome) for outcome in outcomes],
        "totals": totals(outcomes, seconds),
        "interrupted": interrupted,
        "settings": dict(settings),
        "versions": {
            "allosr2": version("allosr2"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }
    return json.dumps(report, indent=2) + "\n"


def check_report(path: Path | None, jobs: Sequence[Job]) -> None:
    """Refuse, before any work is done, a report that would replace an image or is a folder.

    Raises ConfigError.
    """
    from allosr2.imaging.io import FORMAT_OF_SUFFIX

    if path is None or path == STDOUT:
        return
    images = {name.absolute() for job in jobs for name in (job.source, job.target) if name}
    if path.suffix.lower() in FORMAT_OF_SUFFIX or path.absolute() in images:
        raise ConfigError(f"--json is {path}: that is an image; name a file such as report.json")
    if path.is_dir():
        raise ConfigError(f"--json is {path}: that is a folder; name a file in it")


def write_report(path: Path, text: str) -> None:
    """Write a report to a file, whole or not at all, or to stdout. Raises ConfigError."""
    from allosr2.storage import save_text

    if path == STDOUT:
        console().file.write(text)
        console().file.flush()
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_text(path, text)
    except OSError as error:
        raise ConfigError(
            f"--json: {path} cannot be written ({error.strerror}); choose another file"
        ) from error


def _file(outcome: Outcome) -> dict[str, Any]:
    job = outcome.job
    return {
        "source": "-" if job.source is None else str(job.source),
        "target": "-" if job.target is None else str(job.target),
        "status": outcome.status,
        "error": None if outcome.error is None else describe(outcome.error),
        "input": _size(outcome.input_size),
        "output": _size(outcome.output_size),
        "seconds": round(outcome.seconds, 3),
        "bytes": outcome.bytes,
        "notes": list(outcome.notes),
    }


def _size(size: tuple[int, int] | None) -> dict[str, int] | None:
    return None if size is None else {"width": size[1], "height": size[0]}
