"""A command line as a process of its own, which ends when this one is interrupted."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

GRACE = 5.0
"""Seconds that a process has to end when it is asked to."""


def run_to_end(words: Sequence[str], log: Path) -> int:
    """Run a command, what it says into a file, and return its exit code.

    An interruption ends it and all processes that it has started. Raises OSError if it cannot be run.
    """
    with (
        log.open("wb") as said,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and those that it has started to end, and kill those that do not."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        family = [first, *first.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.terminate()
        _, alive = psutil.wait_procs(family, timeout=GRACE)
        for member in alive:
            with suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()
