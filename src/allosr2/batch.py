"""Image files through one or more lanes of work: how each is read and written, and what is recorded."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from allosr2.errors import ConfigError
from allosr2.imaging.io import (
    FORMAT_OF_SUFFIX,
    Limits,
    check_target,
    notes_of_writing,
    read_image,
    write_image,
)
from allosr2.imaging.picture import Picture
from allosr2.imaging.profiles import without_metadata
from allosr2.manifest import Manifest
from allosr2.pipeline import Job, Lane, Outcome, Written, run

SAME = "same"
"""Instead of a file format: the one that the picture came in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileOptions:
    """How image files are read and written."""

    file_format: str | None = None
    """Pillow's name of the format, or "same"; None goes by the target's suffix, and is PNG for stdout."""
    quality: int | None = None
    """Of lossy formats, from 1 to 100; None is the format's default."""
    strip_metadata: bool = False
    """Leave out EXIF, XMP and the ICC profile, by which the colors are converted to sRGB."""
    replace: bool = True
    """Replace a file that is in a result's place when that is whole."""
    limits: Limits = field(default_factory=Limits)
    """What a file may ask of the machine when it is read."""

    def __post_init__(self) -> None:
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ConfigError(f"quality is {self.quality}: use a whole number from 1 to 100")

    def format_of(self, job: Job, picture: Picture) -> str | None:
        """Pillow's name of the format to write a job's result in; None for a suffix that names none."""
        if self.file_format not in (None, SAME):
            return self.file_format
        same = picture.format if self.file_format == SAME else None
        if job.target is not None:
            return FORMAT_OF_SUFFIX.get(job.target.suffix.lower(), same)
        return same or "PNG"


PLAIN = FileOptions()
"""Formats by suffix, with metadata, at each format's own quality."""


def upscale_files(
    jobs: Iterable[Job],
    lanes: Sequence[Lane],
    options: FileOptions,
    *,
    size_of: Callable[[int, int], tuple[int, int]],
    manifest: Manifest | None = None,
    key: str = "",
    progress: Callable[[Job, int, int], None] | None = None,
) -> Generator[Outcome]:
    """Read, enlarge and write every job; yields outcomes as `pipeline.run`, which see for the rest.

    Files appear whole or not at all, and their folders are made for the first of them.

    Args:
        jobs: what to enlarge and where to put it.
        lanes: `Upscaler.upscale_picture` of one upscaler a device, its size given.
        options: how files are read and written.
        size_of: height and width of the result of a picture, by which a format that cannot hold it is
            refused before any work.
        manifest: records each result of a file, under `key`; None records nothing.
        key: `manifest.key_of` all that the results depend on.
        progress: called from other threads with a job, parts done and parts in all.
    """

    def read(job: Job) -> Picture:
        if manifest is not None and job.source is not None and job.target is not None:
            with suppress(OSError):  # reading says what is wrong with it
                manifest.see(job.source, job.target)
        source = sys.stdin.buffer if job.source is None else job.source
        picture = read_image(source, options.limits)
        if options.strip_metadata:
            picture = without_metadata(picture)
        if job.target is not None:
            size = size_of(picture.height, picture.width)
            check_target(job.target, picture, options.format_of(job, picture), size=size)
        return picture

    def write(job: Job, picture: Picture, check: Callable[[], None]) -> Written:
        source, target = job.source, job.target
        file_format = options.format_of(job, picture)
        notes = notes_of_writing(picture, file_format) if file_format else ()
        if target is None:
            stdout = _Stdout(check)
            stream = cast("BinaryIO", stdout)
            write_image(stream, picture, file_format=file_format, quality=options.quality)
            return Written(stdout.size, notes)

        size = 0

        def before_rename(partial: Path) -> None:
            nonlocal size
            check()
            size = partial.stat().st_size
            if manifest is not None and source is not None:
                manifest.record(source, target, partial, key)

        with suppress(OSError):  # writing says what is wrong
            # where a link leads to, if it is one
            Path(os.path.realpath(target)).parent.mkdir(parents=True, exist_ok=True)
        write_image(
            target,
            picture,
            file_format=file_format,
            quality=options.quality,
            replace=options.replace,
            before_rename=before_rename,
        )
        return Written(size, notes)

    return run(
        jobs, read=read, lanes=lanes, write=write, writers=_writers(len(lanes)), progress=progress
    )


class _Stdout:
    """Stdout as a stream to write to: named for messages, counted, and closed to a cancelled run."""

    name = "stdout"

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self.size = 0

    def write(self, chunk: bytes) -> int:
        rest = memoryview(chunk)
        while rest:
            self._check()
            # an unbuffered stdout takes as much as the pipe has room for
            written = sys.stdout.buffer.write(rest)
            if not written:
                raise BlockingIOError(errno.EAGAIN, "it takes no more for now; use a blocking pipe")
            self.size += written
            rest = rest[written:]
        return len(chunk)

    def flush(self) -> None:
        sys.stdout.buffer.flush()


def _writers(lanes: int) -> int:
    # a fast GPU makes several pictures in the time that one core takes to compress one
    return max(1, min((os.cpu_count() or 1) // 2, 4 * lanes))
