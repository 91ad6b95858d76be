"""Photographs written into WebDataset tar shards, the same bytes for the same photographs."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path, PurePosixPath

from allosr2.data.photo import Photo
from allosr2.data.sources import Source, members_of
from allosr2.errors import ConfigError, DataError, ImageError
from allosr2.imaging.limits import unreadable
from allosr2.storage import PARTIAL, clear_partials, partial_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A photograph and what it is called in a shard."""

    photo: Photo
    name: str
    """Path with slashes; its last part has no dot but the suffix's, and no other member has it but for that."""
    length: int
    """Bytes of the photograph."""

    @property
    def header(self) -> tarfile.TarInfo:
        """What precedes its bytes: nothing in it but name and length."""
        info = tarfile.TarInfo(self.name)
        info.size = self.length
        return info

    @property
    def tar_length(self) -> int:
        """Bytes that it takes in a tar file."""
        blocks = ceil(self.length / tarfile.BLOCKSIZE)
        return len(self.header.tobuf(tarfile.PAX_FORMAT)) + blocks * tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A tar file and what belongs into it."""

    path: Path
    members: tuple[Member, ...]

    @property
    def length(self) -> int:
        """Bytes of the file."""
        return _file_length(sum(member.tar_length for member in self.members))

    def is_written(self) -> bool:
        """Whether the file is there, by its length and its members' names and lengths. Raises DataError."""
        if not self.path.exists():
            return False
        there = [(photo.key, photo.length) for photo in members_of(self.path)]
        return self.path.stat().st_size == self.length and there == [
            (member.name, member.length) for member in self.members
        ]


def name_members(sources: Iterable[str]) -> Iterator[Member]:
    """The photographs of all sources in their order, each with a name of its own.

    A name is the source's last part and the photograph's path in it. As WebDataset takes what stands before
    the first dot of a file's name for its key, and files of one key for one sample, other dots become
    underscores, and names that would have the same key get a number.

    Raises as `Source.photos`, and DataError for a photograph that cannot be looked at any more.
    """
    taken: set[str] = set()
    for source in map(Source.parse, sources):
        for photo in source.photos():
            path = PurePosixPath(source.name, photo.key)
            stem = path.stem.replace(".", "_")
            key, number = path.with_name(stem), 1
            # no two names are the same on a disk that does not tell A from a, on which they may be unpacked
            while str(key).casefold() in taken:
                number += 1
                key = path.with_name(f"{stem}-{number}")
            taken.add(str(key).casefold())
            try:
                length = photo.path.stat().st_size if photo.length is None else photo.length
            except OSError as error:
                raise _unreadable(photo, error) from error
            yield Member(photo=photo, name=f"{key}{path.suffix}", length=length)


def plan_shards(members: Iterable[Member], output: Path, limit: float) -> list[Shard]:
    """Share members out, in their order, to `output/shard-000000.tar` and so on, of at most `limit` bytes each.

    A photograph that is larger has a shard of its own.
    """
    shards: list[list[Member]] = []
    length = 0
    for member in members:
        length += member.tar_length
        if not shards or _file_length(length) > limit:
            shards.append([])
            length = member.tar_length
        shards[-1].append(member)
    return [
        Shard(path=output / f"shard-{number:06d}.tar", members=tuple(group))
        for number, group in enumerate(shards)
    ]


def missing_shards(shards: Sequence[Shard], output: Path) -> list[Shard]:
    """The shards that are still to be written; makes the folder, and clears what a killed run left in it.

    Raises ConfigError if the folder cannot be made, or holds anything but some of these shards.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        clear_partials([output])
        names = {path.name for path in output.iterdir() if not PARTIAL.fullmatch(path.name)}
    except OSError as error:
        raise _refused(output, error) from error
    others = sorted(names - {shard.path.name for shard in shards})
    missing: list[Shard] = []
    for shard in shards:
        try:
            written = shard.is_written()
        except DataError:
            written = False
        if not written:
            missing.append(shard)
            if shard.path.name in names:
                others.append(shard.path.name)
    if others:
        raise ConfigError(
            f"--output is {output}: {others[0]} in it is no shard of these photographs and this size; "
            "name another folder, or empty it"
        )
    return missing


def write_shard(shard: Shard) -> None:
    """Write a shard, whole or not at all.

    Raises ConfigError where it cannot be written, DataError for a photograph that changed or cannot be read.
    """
    partial = partial_of(shard.path)
    try:
        with (
            partial.open("xb") as stream,
            tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for member in shard.members:
                tar.addfile(member.header, io.BytesIO(_content_of(member)))
            tar.close()
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(shard.path)
    except OSError as error:
        raise _refused(shard.path.parent, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _file_length(content: int) -> int:
    """Bytes of a tar file: two empty blocks end it, and tarfile fills up records of 20 blocks."""
    return ceil((content + 2 * tarfile.BLOCKSIZE) / tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _content_of(member: Member) -> bytes:
    try:
        with member.photo.open() as stream:
            content = stream.read()
    except ImageError as error:
        raise DataError(f"{error}; then run the same command again") from error
    except OSError as error:
        raise _unreadable(member.photo, error) from error
    if len(content) != member.length:
        raise DataError(
            f"{member.photo.name} changed since it was found; run the same command again"
        )
    return content


def _unreadable(photo: Photo, error: OSError) -> DataError:
    return DataError(f"{unreadable(photo.name, error)}; then run the same command again")


def _refused(output: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"--output is {output}: {error.strerror or error}; choose a folder that is writable and has room, "
        "and run the command again: whole shards stay"
    )
