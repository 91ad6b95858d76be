"""`python killed.py N ARGV`: `allosr2 ARGV`, whose first process is killed in its N-th forward pass."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from allosr2.cli import main
from allosr2.training.allosr2 import AlloSR2Stage


def kill_at(number: int) -> None:
    """Replace the step by one that kills the process, as a power cut would, at a call of it."""
    losses, calls = AlloSR2Stage.losses, 0

    def killed(self: AlloSR2Stage, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(self, *arguments)

    AlloSR2Stage.losses = killed  # type: ignore[method-assign]


if __name__ == "__main__":
    if os.environ.get("RANK", "0") == "0":
        kill_at(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
