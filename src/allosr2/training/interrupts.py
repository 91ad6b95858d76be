"""Ctrl-C, SIGTERM and the end of a run's time, heard between two steps.

Nothing is left half done, and all processes stop together.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from math import inf

logger = logging.getLogger(__name__)

ECHO = 3.0
"""Seconds in which another signal is taken for the same: a terminal and torchrun both pass on one Ctrl-C."""


class TimeIsUp(KeyboardInterrupt):
    """A run's minutes are over: it stopped between two steps, with a checkpoint, as after an interrupt."""


class Interrupts:
    """Whether a run was asked to stop, or its time is up."""

    def __init__(self, *, speaks: bool, deadline: float = inf) -> None:
        """Nobody has asked yet; `speaks` logs it when somebody does.

        `deadline`: when the time is up, by `time.monotonic`.
        """
        self.asked = False
        """Whether the run is to stop after this step."""
        self._speaks = speaks
        self._since = 0.0
        self._deadline = deadline

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self._deadline

    @contextmanager
    def held_back(self) -> Generator[None]:
        """Take note of the signals instead of raising KeyboardInterrupt; raise it at once for a later one.

        Does nothing in a thread that is not the main one, which alone hears signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {name: signal.signal(name, self._take) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for name, handler in former.items():
                signal.signal(name, handler)

    def _take(self, *_: object) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
            if self._speaks:
                logger.info("stopping after this step; interrupt again to stop at once")
        elif time.monotonic() - self._since > ECHO:
            raise KeyboardInterrupt
