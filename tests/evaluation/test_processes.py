"""A command is run to its end, or ended with all that it has started."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from allosr2.evaluation import processes
from allosr2.evaluation.processes import run_to_end

# starts a second process, notes both, and waits with it
PROGRAM = """
import os, signal, subprocess, sys, time

name, *options = sys.argv[1:]
if "stubborn" in options:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" not in options:
    subprocess.Popen([sys.executable, __file__, name, "child", *options])
with open(name, "a") as stream:
    stream.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_the_exit_code_and_what_was_said(tmp_path):
    log = tmp_path / "log"
    code = "import sys; print(repr(sys.stdin.read())); sys.exit('an error')"
    assert run_to_end([sys.executable, "-c", code], log) == 1
    assert sorted(log.read_text().splitlines()) == ["''", "an error"]
    assert run_to_end([sys.executable, "-c", "pass"], log) == 0
    assert log.read_text() == ""


def test_a_command_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_to_end(["no-such-program"], tmp_path / "log")


@pytest.mark.parametrize("options", [(), ("stubborn",)])
def test_an_interruption_ends_all_that_was_started(tmp_path, monkeypatch, options):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    script, pids = tmp_path / "program.py", tmp_path / "pids"
    script.write_text(PROGRAM)

    def interrupt() -> None:
        soon(lambda: len(numbers(pids)) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_to_end([sys.executable, str(script), str(pids), *options], tmp_path / "log")
    thread.join()
    started = numbers(pids)
    assert len(started) == 2

    def ended(pid: int) -> bool:
        try:  # one whose parent does not wait for it stays as a zombie
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    assert soon(lambda: all(ended(pid) for pid in started))
