"""Jobs through read, work and write: who runs beside whom, what an error costs, how it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from allosr2.errors import ImageError
from allosr2.imaging.picture import Picture
from allosr2.pipeline import Cancelled, Job, Written, run, still_at_work


def jobs(count: int) -> list[Job]:
    return [Job(source=Path(f"{i}.png"), target=Path(f"{i}.out")) for i in range(count)]


def read(job: Job) -> Picture:
    number = int(job.source.stem)
    return Picture(color=np.full((2, 3 + number, 1), number, np.uint8), notes=("read",))


def double(picture: Picture, where: str, progress) -> Picture:
    progress(1, 1)
    return Picture(color=picture.color.repeat(2, axis=1), notes=picture.notes)


class Recorder:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.levels: dict[str, int] = {}

    def __call__(self, job: Job, picture: Picture, check) -> Written:
        check()
        self.levels[job.target.name] = int(picture.color[0, 0, 0])
        return Written(picture.color.size, ("written",))


def test_every_job_has_its_outcome():
    write, tiles = Recorder(), []
    outcomes = list(
        run(
            jobs(5),
            read=read,
            lanes=[double],
            write=write,
            progress=lambda *step: tiles.append(step),
        )
    )
    assert [outcome.job for outcome in outcomes] == jobs(5)  # one lane, one writer: in order
    assert {outcome.status for outcome in outcomes} == {"done"}
    assert [outcome.input_size for outcome in outcomes] == [(2, 3 + i) for i in range(5)]
    assert [outcome.output_size for outcome in outcomes] == [(2, 6 + 2 * i) for i in range(5)]
    assert [outcome.bytes for outcome in outcomes] == [12 + 4 * i for i in range(5)]
    assert outcomes[0].notes == ("read", "written")
    assert write.levels == {f"{i}.out": i for i in range(5)}
    assert tiles == [(job, 1, 1) for job in jobs(5)]
    assert not still_at_work()


@pytest.mark.parametrize("stage", ["read", "work", "write"])
def test_an_error_stops_no_other_job(stage):
    def fail(name: str) -> None:
        if name == f"{stage} 1":
            raise ImageError(name)

    def failing_read(job: Job) -> Picture:
        fail(f"read {job.source.stem}")
        return read(job)

    def failing_lane(picture: Picture, where: str, progress) -> Picture:
        fail(f"work {Path(where).stem}")
        return double(picture, where, progress)

    def failing_write(job: Job, picture: Picture, check) -> Written:
        fail(f"write {job.source.stem}")
        return Written(1)

    found = run(jobs(3), read=failing_read, lanes=[failing_lane], write=failing_write)
    outcomes = {outcome.job.source.stem: outcome for outcome in found}
    assert [outcomes[name].status for name in "012"] == ["done", "failed", "done"]
    assert str(outcomes["1"].error) == f"{stage} 1"
    assert outcomes["1"].error.__traceback__ is None  # its frames would keep the picture
    assert outcomes["1"].output_size is None
    assert outcomes["1"].input_size == (None if stage == "read" else (2, 4))


def test_stages_overlap():
    """Reading, work and writing that take 50 ms each: 10 jobs take 12 steps, not 30."""

    def slow(function):
        def run_slowly(*arguments):
            time.sleep(0.05)
            return function(*arguments)

        return run_slowly

    started = time.perf_counter()
    found = list(run(jobs(10), read=slow(read), lanes=[slow(double)], write=slow(Recorder())))
    assert len(found) == 10
    assert time.perf_counter() - started < 0.05 * 20


def test_lanes_share_the_jobs():
    """Two lanes meet at a barrier, which one lane alone could not pass; each job is taken once."""
    barrier = threading.Barrier(2)
    taken: dict[str, list[str]] = {"a": [], "b": []}

    def lane(name: str):
        def work(picture: Picture, where: str, progress) -> Picture:
            barrier.wait(timeout=5)
            taken[name].append(where)
            return picture

        return work

    found = list(run(jobs(6), read=read, lanes=[lane("a"), lane("b")], write=Recorder()))
    assert {outcome.status for outcome in found} == {"done"}
    assert len(taken["a"]) == len(taken["b"]) == 3
    assert sorted(taken["a"] + taken["b"]) == [f"{i}.png" for i in range(6)]


def test_few_pictures_are_in_memory():
    """A writer that is stuck stops the reader soon: 2 wait or are held at each stage, 1 is written."""
    release, begun = threading.Event(), []

    def counted(job: Job) -> Picture:
        begun.append(job)
        return read(job)

    def stuck(job: Job, picture: Picture, check) -> Written:
        release.wait(timeout=5)
        return Written(1)

    outcomes = run(jobs(30), read=counted, lanes=[double], write=stuck)
    threading.Timer(0.5, release.set).start()
    ahead: list[int] = []
    threading.Timer(0.4, lambda: ahead.append(len(begun))).start()
    assert len(list(outcomes)) == 30
    assert ahead == [5]


def test_closing_cancels_at_the_next_tile():
    at_work, tiles = threading.Event(), []

    def endless(picture: Picture, where: str, progress) -> Picture:
        if where == "0.png":
            return picture
        at_work.set()
        try:
            while True:
                progress(len(tiles), 1000)
                tiles.append(where)
                time.sleep(0.01)
        except Exception:  # a handler of errors must not keep it going
            return picture

    write = Recorder()
    outcomes = run(jobs(3), read=read, lanes=[endless], write=write)
    assert next(outcomes).job == jobs(1)[0]
    assert at_work.wait(timeout=5)
    started = time.perf_counter()
    outcomes.close()
    assert time.perf_counter() - started < 0.4
    assert not still_at_work()
    assert write.levels == {"0.out": 0}


def test_a_lane_deep_in_a_tile_holds_nothing_up():
    release, at_work = threading.Event(), threading.Event()

    def deep(picture: Picture, where: str, progress) -> Picture:
        if where == "1.png":
            at_work.set()
            release.wait(timeout=10)
        return picture

    write = Recorder()
    outcomes = run(jobs(2), read=read, lanes=[deep], write=write)
    next(outcomes)
    assert at_work.wait(timeout=5)
    started = time.perf_counter()
    outcomes.close()
    assert time.perf_counter() - started < 0.9
    assert still_at_work()
    release.set()
    deadline = time.monotonic() + 5
    while still_at_work() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not still_at_work()
    assert write.levels == {"0.out": 0}


def test_a_writer_is_stopped_before_its_file_appears():
    at_write, cancelled = threading.Event(), threading.Event()
    seen = []

    def write(job: Job, picture: Picture, check) -> Written:
        if job == jobs(1)[0]:
            return Written(1)
        at_write.set()
        cancelled.wait(timeout=5)
        time.sleep(0.1)
        try:
            check()
        except Cancelled:
            seen.append("cancelled")
            raise
        seen.append("appeared")
        return Written(1)

    outcomes = run(jobs(2), read=read, lanes=[double], write=write)
    next(outcomes)
    assert at_write.wait(timeout=5)
    cancelled.set()
    outcomes.close()
    assert seen == ["cancelled"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_ends_the_run(error):
    def lane(picture: Picture, where: str, progress) -> Picture:
        raise error

    with pytest.raises(error):
        list(run(jobs(3), read=read, lanes=[lane], write=Recorder()))
    assert not still_at_work()


def test_jobs_that_cannot_be_listed_end_the_run():
    def listing():
        yield from jobs(1)
        raise OSError("the disk is gone")

    outcomes = run(listing(), read=read, lanes=[double], write=Recorder())
    with pytest.raises(OSError, match="the disk is gone"):
        list(outcomes)


def test_a_run_without_jobs():
    assert list(run([], read=read, lanes=[double, double], write=Recorder())) == []
