"""Where photographs lie: files in folders, and members of WebDataset tar shards."""

from __future__ import annotations

import logging
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath

from allosr2.data.photo import Photo
from allosr2.errors import DataError, one_line
from allosr2.imaging.io import FORMAT_OF_SUFFIX
from allosr2.imaging.limits import unreadable

logger = logging.getLogger(__name__)

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""First bytes of gzip, bzip2, xz and Zstandard."""
_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_PADDING = 2**20
"""Bytes, all zero, that may follow the end of an archive: tar fills up records, of 10 KiB as a rule."""


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
        if _exists(Path(text)) or not colon or not number.isdecimal():
            return cls(path=Path(text))
        if not int(number):
            raise DataError(f"{text} takes no photograph; use {name}:1 or more, or {name} for all")
        return cls(path=Path(name), first=int(number))

    @property
    def name(self) -> str:
        """Its last name, without what leads to it and without `.tar`."""
        path = self.path.resolve()
        return path.stem if path.suffix.lower() == ".tar" else path.name

    def photos(self) -> list[Photo]:
        """Its photographs, by their suffixes, in the order of their names; hidden ones are left out.

        Photographs of shards are in the order of the shards' names and, within one, as they lie there. Links
        to files are followed, links to folders inside the source are not, which is warned of.

        Raises:
            DataError: for a source that is missing or neither folder nor shard, a folder that holds both
                photographs and shards or only compressed ones or links, and a shard that is damaged, or cut
                off: which is better told before a run than after a day without a part of the photographs.
            ImageError: for a folder that cannot be read.
        """
        path = self.path
        if os.path.isdir(path):  # noqa: PTH112 - False, too, for what may not be looked at
            found = _search(path)
            found.check(path)
            photographs = (
                Photo(path=file, key=file.relative_to(path).as_posix())
                for file in found.photographs
            )  # of shards only as many are read as are needed
            members = chain.from_iterable(map(members_of, found.shards))
            return list(islice(members if found.shards else photographs, self.first))
        if not _exists(path):
            raise DataError(f"{path}: no such folder of photographs or shards; check its path")
        if path.suffix.lower() != ".tar" or not path.is_file():
            raise DataError(f"{path} is no folder and no .tar shard; name a folder of photographs")
        return list(islice(members_of(path), self.first))


@dataclass(kw_only=True, slots=True)
class _Found:
    """What lies in a folder, each sorted."""

    photographs: list[Path] = field(default_factory=list[Path])
    shards: list[Path] = field(default_factory=list[Path])
    compressed: list[Path] = field(default_factory=list[Path])
    linked: list[Path] = field(default_factory=list[Path])
    """Links to folders."""

    def check(self, folder: Path) -> None:
        """Raise DataError if the folder holds both kinds, or what is not read instead of them."""
        if self.photographs and self.shards:
            raise DataError(
                f"{folder} holds photographs ({self.photographs[0].name}) and tar shards "
                f"({self.shards[0].name}); give each kind a folder, and name the one that is meant"
            )
        if self.photographs or self.shards:
            if self.linked:
                logger.warning(
                    "%s: linked folders in it, such as %s, are not searched; name them beside it",
                    folder,
                    self.linked[0].name,
                )
            return
        if self.compressed:
            raise _compressed(self.compressed[0])
        if self.linked:
            raise DataError(
                f"{folder} holds a link to a folder ({self.linked[0].name}) and no photograph; such links are "
                f"not followed: name {self.linked[0]} itself"
            )


def _search(folder: Path) -> _Found:
    """Walk through a folder, once. Raises ImageError if it cannot be read; folders in it are passed over."""

    def refuse(error: OSError) -> None:
        if error.filename == str(folder):
            raise unreadable(str(folder), error) from error

    found = _Found()
    for root, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.linked += [path for path in map(Path(root).joinpath, folders) if path.is_symlink()]
        for name in files:
            path = Path(root, name)
            suffix = path.suffix.lower()
            if name.startswith("."):
                continue
            if suffix in FORMAT_OF_SUFFIX:
                kind = found.photographs
            elif suffix == ".tar":
                kind = found.shards
            elif name.lower().endswith(_COMPRESSED_SUFFIXES):
                kind = found.compressed
            else:
                continue
            if os.path.isfile(path):  # noqa: PTH113 - False, too, in a folder that may not be searched
                kind.append(path)
    for paths in (found.photographs, found.shards, found.compressed, found.linked):
        paths.sort()
    return found


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - False, too, for what may not be looked at


def members_of(shard: Path) -> Iterator[Photo]:
    """The photographs in an uncompressed tar file, in its order.

    Raises DataError for one that is compressed, damaged or cut off, and for several in one file.
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
                rest = stream.read(_PADDING + 1)
                if not tarfile.BLOCKSIZE <= len(rest) <= _PADDING or any(rest):
                    raise tarfile.ReadError(f"no end, or more behind it, at byte {tar.offset}")
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{shard}: the tar shard is cut off or damaged ({one_line(error)}); copy or write it again"
        ) from error


def _compressed(shard: Path) -> DataError:
    return DataError(
        f"{shard} is compressed, which rules out reading photographs in any order; decompress it to a .tar"
    )
