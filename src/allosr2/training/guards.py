"""What a run says when it goes wrong: steps that are not finite, memory that runs out."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from allosr2.devices import is_out_of_memory, memory_in_use
from allosr2.errors import AlloSR2Error
from allosr2.training.config import TrainingConfig
from allosr2.training.log import Status, append, rewind

logger = logging.getLogger(__name__)


class NonFiniteSteps:
    """Counts steps that are left out, and writes their samples down."""

    def __init__(
        self, path: Path, *, step: int, batch_size: int, patience: int, writes: bool
    ) -> None:
        """Start at none.

        Args:
            path: file that gets a line of JSON for each such step.
            step: steps done; what the file has of later ones, which come again, is removed.
            batch_size: samples of a step.
            patience: so many in a row are an error.
            writes: whether this process is the one that writes and warns.
        """
        self._path = path
        self._batch_size = batch_size
        self._patience = patience
        self._writes = writes
        self._in_a_row = 0
        self._count = 0
        if writes:
            rewind(path, step)

    def note(self, status: Status) -> None:
        """Take note of a step. Raises AlloSR2Error at the end of the patience."""
        if status.is_finite:
            self._in_a_row = 0
            return
        self._count += 1
        self._in_a_row += 1
        if self._writes:
            self._write(status)
        if self._in_a_row == self._patience:
            raise AlloSR2Error(
                f"{self._path.parent}: {self._patience} steps in a row were not finite, the last at step "
                f"{status.step}; their samples are in {self._path.name}; lower the learning rate, or use "
                "--precision float32, with --allow-changes"
            )

    def _write(self, status: Status) -> None:
        last = status.step * self._batch_size - 1
        line = {
            "step": status.step,
            "first_sample": last - self._batch_size + 1,
            "last_sample": last,
            "gradient_norm": status.gradient_norm,
            **status.terms,
        }
        append(self._path, line)
        logger.warning(
            "step %d: loss or gradient is not finite; left out, the %d. so far",
            status.step,
            self._count,
        )


@contextmanager
def memory_guard(config: TrainingConfig, device: torch.device) -> Generator[None]:
    """Raise AlloSR2Error, naming the fields to lower and what each saves, where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        from allosr2.training.plan import savings

        logger.info("out of memory on %s; working out what would help", device)
        held = memory_in_use(device) / 10**9
        ways = [f"{option} ({_size(saved)} less)" for option, saved in savings(config)]
        advice = ", ".join(ways) or "a smaller --crop or --batch-size"
        raise AlloSR2Error(
            f"out of memory on {device}, {held:.1f} GB in use; try {advice}; to resume with another config add "
            "--allow-changes"
        ) from error


def _size(count: int) -> str:
    return f"{count / 10**9:.1f} GB" if count >= 10**8 else f"{count / 10**6:.0f} MB"
