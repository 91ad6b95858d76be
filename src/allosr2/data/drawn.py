"""Drawn images as files: to read one costs a fraction of what it costs to draw it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from allosr2.data.procedural import procedural_image
from allosr2.errors import DataError

_AHEAD = 4
"""Images that each process draws ahead of those that are written: some take ten times as long as others."""


def draw_images(
    output: Path,
    *,
    count: int,
    size: int,
    seed: int,
    processes: int,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the first `count` images of a sequence as PNG files, those that are not there yet.

    Image i is `procedural_image(seed, i, size)`, its name `drawn-SEED-SIZE-i.png`: one folder can hold several
    sequences, and more of one can be added.

    Args:
        output: folder, which exists.
        count: how many images, from the first.
        size: side in pixels, 16 or more.
        seed: of the sequence, 0 or more.
        processes: how many draw at once.
        progress: called with how many are there.

    Returns how many were there before. Each file appears whole or not at all.

    Raises:
        ConfigError: for a folder that is being written into.
        ImageError: where a file cannot be written.
        DataError: if a drawing process dies.
    """
    # here: drawing processes import this module, and have no use for torch
    from allosr2.imaging.io import write_image
    from allosr2.imaging.picture import Picture
    from allosr2.manifest import locked

    with locked(output):
        paths = [output / f"drawn-{seed}-{size}-{index:06d}.png" for index in range(count)]
        missing = deque(index for index, path in enumerate(paths) if not path.exists())
        were_there = done = count - len(missing)
        progress(done)
        if not missing:
            return were_there
        waiting: deque[tuple[Path, Future[UInt8[np.ndarray, "size size 3"]]]] = deque()
        with _pool(min(processes, len(missing))) as pool:
            while missing or waiting:
                if missing and len(waiting) < _AHEAD * processes:
                    index = missing.popleft()
                    drawing = pool.submit(procedural_image, seed, index, size)
                    waiting.append((paths[index], drawing))
                    continue
                path, drawing = waiting.popleft()
                write_image(path, Picture(color=drawing.result()))
                done += 1
                progress(done)
    return were_there


def cores() -> int:
    """Cores that this process may use, which under SLURM or taskset are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _pool(processes: int) -> Generator[ProcessPoolExecutor]:
    """Processes that end with this one, whatever ends it; what still waits when the block ends is dropped."""
    # spawned: a process that was forked holds whatever locks the threads of this one held
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise DataError(
            "a drawing process stopped, perhaps for want of memory; run the same command again, with fewer "
            "--processes"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C, which reaches all processes, to the parent, and end with it, though it be killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
