"""Many pictures through read, work and write at once: threads for each, and few pictures in between."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    from allosr2.imaging.picture import Picture

_logger = logging.getLogger(__name__)

CAPACITY = 1
"""Pictures that wait before a stage; who brings one more holds it, so that 2 are ahead at most."""

PATIENCE = 0.5
"""Seconds that a cancelled run waits for its threads; one that is deep in a tile is left behind."""

_NAME = "allosr2 batch"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One picture to come from somewhere and to go somewhere."""

    source: Path | None
    """An image file; None is stdin."""

    target: Path | None
    """The file to write; None is stdout."""

    @property
    def name(self) -> str:
        """Where the picture comes from, as messages name it."""
        return "stdin" if self.source is None else str(self.source)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one job."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    error: Exception | None = None
    """Why it failed; without its traceback, whose frames would keep the picture in memory."""
    seconds: float = 0.0
    """That the work on the picture took, reading and writing not included."""
    input_size: tuple[int, int] | None = None
    """Height and width in pixels of what was read; None if it could not be."""
    output_size: tuple[int, int] | None = None
    """Height and width in pixels of what was written; None if nothing was."""
    notes: tuple[str, ...] = ()
    """What was changed or left out on the way, each in a few words; of a skipped job, why."""
    bytes: int = 0
    """Size of the written file."""


class Written(NamedTuple):
    """What writing a picture came to."""

    bytes: int
    notes: tuple[str, ...] = ()


Progress = Callable[[int, int], None]
"""Called with (parts done, parts in all) after each part of a picture, some fraction of a second's work."""
Lane = Callable[["Picture", str, Progress], "Picture"]
"""The work, on one device: takes a picture, what messages call it, and what to call after each part."""


class Cancelled(BaseException):
    """Ends a thread of a cancelled run; no Exception, or what handles a job's errors would catch it."""


def run(
    jobs: Iterable[Job],
    *,
    read: Callable[[Job], Picture],
    lanes: Sequence[Lane],
    write: Callable[[Job, Picture, Callable[[], None]], Written],
    writers: int = 1,
    progress: Callable[[Job, int, int], None] | None = None,
) -> Generator[Outcome]:
    """Read, work and write, each in threads of its own, and yield one outcome a job as each is completed.

    An error of one job is its outcome and stops no other. Work begins when the first outcome is asked
    for and goes on between outcomes. Closing the iterator, or an interrupt while it waits, cancels the
    rest: lanes end at their next tile, and writers before they let a file appear.

    Args:
        jobs: taken one at a time, a few ahead of the work.
        read: gives a job's picture; called in one thread.
        lanes: the work; each has a thread, and takes the next picture when it is free.
        write: puts a job's result where it belongs, and calls its last argument just before that can be
            seen: it raises `Cancelled` if it is too late.
        writers: how many threads write.
        progress: called from the lanes' threads with a job, parts done and parts in all.

    Raises:
        BaseException: whatever `jobs` raises, and what is no Exception in `read`, `lanes` and `write`.
    """
    assert lanes, "work needs a lane"
    batch = _Batch(read, write, progress, iter(jobs), len(lanes))
    threads = batch.start(lanes, writers)
    try:
        running = len(threads)
        while running:
            outcome = batch.outcomes.get()
            if outcome is None:
                running -= 1
            elif isinstance(outcome, Outcome):
                yield outcome
            else:
                raise outcome
    finally:
        batch.cancel()
        until = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def still_at_work() -> bool:
    """Whether threads of a cancelled run have not come to their end yet."""
    return any(thread.name == _NAME for thread in threading.enumerate())


@dataclass(slots=True)
class _Piece:
    """A picture on its way; each stage replaces it, so that none is kept longer than needed."""

    picture: Picture
    outcome: Outcome


_Item = TypeVar("_Item")


class _Channel(Generic[_Item]):
    """A bounded queue between two stages. It ends when its last producer has left, or by being cut."""

    def __init__(self, producers: int) -> None:
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._producers = producers
        self._cut = False

    def put(self, item: _Item) -> None:
        """Wait for room and add an item. Raises Cancelled once cut."""
        with self._changed:
            self._changed.wait_for(lambda: self._cut or len(self._items) < CAPACITY)
            if self._cut:
                raise Cancelled
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> _Item | None:
        """Wait for an item; None at the end. Raises Cancelled once cut."""
        with self._changed:
            self._changed.wait_for(lambda: self._cut or self._items or not self._producers)
            if self._cut:
                raise Cancelled
            item = self._items.popleft() if self._items else None
            self._changed.notify_all()
            return item

    def leave(self) -> None:
        """One producer has no more."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def cut(self) -> None:
        """Wake everybody who waits here, with Cancelled."""
        with self._changed:
            self._cut = True
            self._items.clear()
            self._changed.notify_all()


class _Batch:
    """The stages of one run and what lies between them."""

    def __init__(
        self,
        read: Callable[[Job], Picture],
        write: Callable[[Job, Picture, Callable[[], None]], Written],
        progress: Callable[[Job, int, int], None] | None,
        jobs: Iterator[Job],
        lanes: int,
    ) -> None:
        self._read = read
        self._write = write
        self._progress = progress
        self._jobs = jobs
        self._to_work: _Channel[_Piece] = _Channel(producers=1)
        self._to_write: _Channel[_Piece] = _Channel(producers=lanes)
        self._cancelled = threading.Event()
        # None for each thread that ends. No `_Channel`: an interrupt may strike the thread that waits
        # here anywhere, and a SimpleQueue has no lock that it could leave held.
        self.outcomes: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()

    def start(self, lanes: Sequence[Lane], writers: int) -> list[threading.Thread]:
        """Start every stage's threads; they end at the end of the jobs, or when cancelled."""
        stages: list[tuple[Callable[[], bool], _Channel[_Piece] | None]] = [
            (self._read_one, self._to_work),
            *((partial(self._work_on_one, lane), self._to_write) for lane in lanes),
            *((self._write_one, None) for _ in range(writers)),
        ]
        # daemons: one that is deep in a tile must not hold up the end of the process
        threads = [
            threading.Thread(target=self._repeat, args=stage, name=_NAME, daemon=True)
            for stage in stages
        ]
        for thread in threads:
            thread.start()
        return threads

    def cancel(self) -> None:
        """End every thread where it next waits, finishes a tile, or would let a file appear."""
        self._cancelled.set()
        self._to_work.cut()
        self._to_write.cut()

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def _repeat(self, step: Callable[[], bool], sink: _Channel[_Piece] | None) -> None:
        """A thread: one job after the other, until `step` finds no more."""
        try:
            while step():
                pass
        except Cancelled:
            pass
        except BaseException as error:  # the end of the run, raised where it is waited for
            self.outcomes.put(error)
        finally:
            if sink is not None:
                sink.leave()
            self.outcomes.put(None)

    # Each step keeps its picture in a frame of its own: a loop's variable would hold the last one
    # while it waits for the next.

    def _read_one(self) -> bool:
        self._check()
        job = next(self._jobs, None)
        if job is None:
            return False
        outcome = Outcome(job=job, status="done")
        try:
            picture = self._read(job)
        except Exception as error:
            self._fail(outcome, error)
        else:
            outcome = replace(outcome, input_size=(picture.height, picture.width))
            self._to_work.put(_Piece(picture, outcome))
        return True

    def _work_on_one(self, lane: Lane) -> bool:
        piece = self._to_work.get()
        if piece is None:
            return False
        job = piece.outcome.job

        def after_tile(done: int, total: int) -> None:
            self._check()
            if self._progress is not None:
                self._progress(job, done, total)

        started = time.perf_counter()
        try:
            piece.picture = lane(piece.picture, job.name, after_tile)
        except Exception as error:
            self._fail(piece.outcome, error)
        else:
            piece.outcome = replace(piece.outcome, seconds=time.perf_counter() - started)
            self._to_write.put(piece)
        return True

    def _write_one(self) -> bool:
        piece = self._to_write.get()
        if piece is None:
            return False
        picture, outcome = piece.picture, piece.outcome
        try:
            self._check()
            written = self._write(outcome.job, picture, self._check)
        except Exception as error:
            self._fail(outcome, error)
        else:
            self.outcomes.put(
                replace(
                    outcome,
                    output_size=(picture.height, picture.width),
                    notes=(*picture.notes, *written.notes),
                    bytes=written.bytes,
                )
            )
        return True

    def _fail(self, outcome: Outcome, error: Exception) -> None:
        _logger.debug("%s failed", outcome.job.name, exc_info=error)
        link: BaseException | None = error
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
        self.outcomes.put(replace(outcome, status="failed", error=error))
