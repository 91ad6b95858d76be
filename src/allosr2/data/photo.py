"""One photograph: a file, or a member of a tar shard; and whether it is damaged, or its disk in trouble."""

from __future__ import annotations

import errno
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import numpy as np
from jaxtyping import UInt8

from allosr2.errors import DataError, ImageError, one_line
from allosr2.imaging.decoding import decode_size
from allosr2.imaging.io import read_rgb
from allosr2.imaging.limits import Limits, unreadable

Result = TypeVar("Result")

_PAUSE = 0.5
"""Seconds before what failed for the moment is tried again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """One photograph: a file, or a member of a tar shard. Nothing is open, so that processes can share it."""

    path: Path
    """The file, or the shard."""
    key: str
    """Its name within its source: a path with slashes."""
    offset: int | None = None
    """Where its bytes begin in the shard; None for a file."""
    length: int | None = None
    """How many there are; None for a file."""

    @property
    def name(self) -> str:
        """What messages call it: a file's path, or a shard's followed by the member's."""
        return str(self.path) if self.offset is None else f"{self.path}/{self.key}"

    def open(self) -> BinaryIO:
        """Its bytes, as a file of that name. Raises ImageError if there is no such file."""
        try:
            if self.offset is None or self.length is None:
                return self.path.open("rb")
            section = _Section(self.path, self.name, self.offset, self.length)
        except OSError as error:
            raise unreadable(self.name, error) from error
        return cast(BinaryIO, io.BufferedReader(section))

    def size(self) -> tuple[int, int]:
        """Height and width of the upright picture, by its header. Errors as `pixels`."""

        # not `read_size`: its watch over decoders that hang takes ten times as long as a header, and there may
        # be 85,000 of them
        def read() -> tuple[int, int]:
            with self.open() as stream:
                if not stream.read(1):
                    raise ImageError(f"{self.name} is empty; fetch it again")
                stream.seek(0)
                return decode_size(stream, Limits(), self.name)

        return self._read(read)

    def pixels(self) -> UInt8[np.ndarray, "h w 3"]:
        """The upright picture, RGB.

        Raises:
            ImageError: if it is missing, empty, damaged or too large: whoever reads it finds the same.
            DataError: if reading it failed twice for a reason that says nothing of the photograph, such as a
                disk or a network that does not answer, too many open files, or too little memory or time.
        """

        def read() -> UInt8[np.ndarray, "h w 3"]:
            with self.open() as stream:
                return read_rgb(stream)

        return self._read(read)

    def _read(self, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except (ImageError, OSError, MemoryError) as error:
            if _trouble(error) is None:
                raise self._damaged(error) from error
        time.sleep(_PAUSE)
        try:
            return read()
        except (ImageError, OSError, MemoryError) as error:
            trouble = _trouble(error)
            if trouble is None:
                raise self._damaged(error) from error
            raise DataError(
                f"{self.name} cannot be read, twice in a row: {trouble}; see to that, and run the same "
                "command again"
            ) from error

    def _damaged(self, error: Exception) -> ImageError:
        """The same without options that other commands have."""
        what, limited, _ = str(error).partition("; raise it with --max-")
        return ImageError(f"{what}; make it smaller, or take it out" if limited else what)


def _trouble(error: Exception) -> str | None:
    """What kept a photograph from being read, where that is no property of the photograph's."""
    cause = error.__cause__ if isinstance(error, ImageError) else error
    if isinstance(cause, MemoryError) or "out of memory" in str(cause):
        return "there is not enough memory"
    # decoders raise OSError without a number for damaged bytes, and files for places that damaged bytes name
    if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT, errno.EINVAL):
        return cause.strerror or one_line(cause)
    if isinstance(cause, TimeoutError):
        return f"decoding it took more than {Limits().seconds:g} s"
    return None


class _Section(io.RawIOBase):
    """A part of a file as a file of its own, with a place in it that no other process moves."""

    def __init__(self, path: Path, name: str, offset: int, length: int) -> None:
        self.name = name
        self._file = path.open("rb", buffering=0)
        self._offset = offset
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._offset + self._position)
        read = self._file.readinto(memoryview(buffer)[:count])
        self._position += read
        return read

    def close(self) -> None:
        self._file.close()
        super().close()
