"""Where photographs lie: files in folders, and members of WebDataset tar shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from allosr2.errors import DataError, ImageError, one_line
from allosr2.imaging.decoding import decode_size
from allosr2.imaging.io import FORMAT_OF_SUFFIX, find_images
from allosr2.imaging.limits import Limits, unreadable

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""First bytes of gzip, bzip2, xz and Zstandard."""
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


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
        """Height and width of the upright picture, by its header. Raises ImageError."""
        # not `read_size`: its watch over decoders that hang takes ten times as long as a header, and there may
        # be 85,000 of them
        with self.open() as stream:
            if not stream.read(1):
                raise ImageError(f"{self.name} is empty; fetch it again")
            stream.seek(0)
            return decode_size(stream, Limits(), self.name)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What one of `--photos` says: a folder of photographs or shards, or a shard; all of it, or the first."""

    path: Path
    """The folder, or the shard."""
    first: int | None = None
    """How many photographs are taken, by name; None for all."""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read `NAME` or `NAME:N`; a name that exists with its colon is a name. Raises DataError."""
        name, colon, number = text.rpartition(":")
        if Path(text).exists() or not colon or not number.isdecimal():
            return cls(path=Path(text))
        if not int(number):
            raise DataError(f"{text} takes no photograph; use {name}:1 or more, or {name} for all")
        return cls(path=Path(name), first=int(number))

    @property
    def name(self) -> str:
        """Its last name, without what leads to it and without `.tar`."""
        return self.path.resolve().name.removesuffix(".tar")

    def photos(self) -> list[Photo]:
        """Its photographs, by their suffixes, in the order of their names; hidden ones are left out.

        Photographs of shards are in the order of the shards' names and, within one, as they lie there.

        Raises:
            DataError: for a source that is missing or neither folder nor shard, a folder that holds both
                photographs and shards or only compressed ones, and a shard that is damaged, or cut off: which
                is better told before a run than after a day without a part of the photographs.
            ImageError: for a folder that cannot be read.
        """
        path = self.path
        if path.is_dir():
            shards = sorted(p for p in path.rglob("*.tar") if p.is_file())
            files = find_images(path, recursive=True)
            if shards and files:
                raise DataError(
                    f"{path} holds photographs ({files[0].name}) and tar shards ({shards[0].name}); "
                    "give each kind a folder, and name the one that is meant"
                )
            if not shards and not files:
                _refuse_compressed(path)
            found = (
                Photo(path=file, key=file.relative_to(path).as_posix()) for file in files
            )  # of shards only as many are read as are needed
            members = chain.from_iterable(map(members_of, shards))
            return list(islice(members if shards else found, self.first))
        if not path.exists():
            raise DataError(f"{path}: no such folder of photographs or shards; check its path")
        if path.suffix != ".tar" or not path.is_file():
            raise DataError(f"{path} is no folder and no .tar shard; name a folder of photographs")
        return list(islice(members_of(path), self.first))


def members_of(shard: Path) -> Iterator[Photo]:
    """The photographs in an uncompressed tar file, in its order.

    Raises DataError for one that is compressed, damaged or cut off.
    """
    try:
        with shard.open("rb") as stream:
            if stream.read(6).startswith(_COMPRESSED):
                raise _compressed(shard)
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for info in tar:
                    path = PurePosixPath(info.name.lstrip("/"))
                    if (
                        info.isreg()
                        and not info.issparse()
                        and path.suffix.lower() in FORMAT_OF_SUFFIX
                        and not any(part.startswith(".") for part in path.parts)
                    ):
                        yield Photo(
                            path=shard, key=str(path), offset=info.offset_data, length=info.size
                        )
                # tarfile takes a damaged header, and the end of the file, for the end of the archive
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end after byte {tar.offset}")
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{shard}: the tar shard is cut off or damaged ({one_line(error)}); copy or write it again"
        ) from error


def _refuse_compressed(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.name.lower().endswith(_COMPRESSED_SUFFIXES):
            raise _compressed(path)


def _compressed(shard: Path) -> DataError:
    return DataError(
        f"{shard} is compressed, which rules out reading photographs in any order; decompress it to a .tar"
    )
