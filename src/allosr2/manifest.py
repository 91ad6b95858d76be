"""What a folder's results were made from, kept in that folder, so that a run goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from allosr2.errors import ConfigError
from allosr2.storage import clear_partials, located

MANIFEST = ".allosr2-manifest.jsonl"
"""Name of the file: one JSON object a line, only ever appended to."""
LOCK = ".allosr2.lock"
"""Name of the file that a run holds locked as long as it writes into the folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stamp:
    """By which a file is known again without reading it."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        status = path.stat()
        return cls(size=status.st_size, mtime_ns=status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """One result: which file it is, and all that it depends on."""

    target: str
    """Path from the folder, with slashes."""
    written: _Stamp
    """Of the partial file; the rename that makes it the target keeps both."""
    source: str
    """Likewise, so that both may be moved together; absolute where no path leads there, as to another drive."""
    read: _Stamp
    """Of the source, from before it was read."""
    key: str
    """Of settings and weights, see `key_of`."""


class Manifest:
    """The results that a folder holds, and the record of each new one.

    A result is recorded just before the rename that lets it appear. A kill between the two leaves an
    entry without its file, which counts as nothing; a file without its entry is somebody else's.
    """

    def __init__(self, folder: Path) -> None:
        """Read what `folder` has of a manifest; it need not exist. Raises ConfigError if it cannot be read."""
        self.folder = folder
        self._path = folder / MANIFEST
        self._root = os.path.realpath(folder)
        self._lock = threading.Lock()
        self._seen: dict[Path, _Stamp] = {}
        self._entries: dict[str, list[_Entry]] = {}
        self._tiles: dict[str, Any] = {}
        try:
            content = self._path.read_bytes() if self._path.exists() else b""
        except OSError as error:
            raise ConfigError(
                f"{self._path} cannot be read ({error.strerror}); change its permissions, or delete it"
            ) from error
        self._torn = bool(content) and not content.endswith(b"\n")
        for line in content.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            if not isinstance(values, dict):
                return
            if "begun" in values:
                begun = values["begun"]
                self._tiles[_canonical(begun["asked"])] = begun["tile"]
            else:
                written, read = _Stamp(**values.pop("written")), _Stamp(**values.pop("read"))
                entry = _Entry(written=written, read=read, **values)
                # a kill before the rename leaves the former file, which the line before is of
                self._entries.setdefault(entry.target, []).append(entry)
        except (ValueError, TypeError, KeyError):
            pass  # a kill or a full disk tore this line; its file never appeared

    def tile_of(self, asked: Mapping[str, Any]) -> int | None:
        """The tile of the newest run that was asked for the same; None if there was none.

        Which tile `auto` comes to depends on the memory that is free at the time; going on after a kill
        must not depend on it.
        """
        tile = self._tiles.get(_canonical(asked))
        return tile if isinstance(tile, int) else None

    def begin(self, asked: Mapping[str, Any], tile: int) -> None:
        """Record what a run was asked for and which tile it takes, if that is not known yet.

        Raises ConfigError if it cannot be written.
        """
        if self.tile_of(asked) == tile:
            return
        try:
            self._append({"begun": {"asked": asked, "tile": tile}})
        except OSError as error:
            raise ConfigError(
                f"{self._path} cannot be written ({error.strerror}); "
                "choose a folder that is writable and has room"
            ) from error

    def is_done(self, source: Path, target: Path, key: str | None = None) -> bool:
        """Whether `target` is the whole result of this very `source` with the settings of `key`.

        Without a key, whether it was that of any settings.
        """
        entry = self._entry_of(target)
        if entry is None or entry.source != self._name(source) or key not in (None, entry.key):
            return False
        try:
            return entry.read == _Stamp.of(source)
        except OSError:
            return False

    def source_of(self, path: Path) -> Path | None:
        """What a run made a file in the folder from, as `located`; None for a file of any other origin.

        A file that was changed since is none of a run's.
        """
        entry = self._entry_of(path)
        return None if entry is None else Path(os.path.normpath(Path(self._root, entry.source)))

    def _entry_of(self, path: Path) -> _Entry | None:
        """The newest record of a file as it is now."""
        entries = self._entries.get(self._name(path), [])
        try:
            stamp = _Stamp.of(path) if entries else None
        except OSError:
            return None
        return next((entry for entry in reversed(entries) if entry.written == stamp), None)

    def see(self, source: Path, target: Path) -> None:
        """Note size and time of a source that is about to be read for a target. Raises OSError."""
        self._seen[target] = _Stamp.of(source)

    def record(self, source: Path, target: Path, partial: Path, key: str) -> None:
        """Record that `partial`, whole and on disk, is about to become `target`.

        `source` was seen before it was read for `target`. Raises OSError.
        """
        entry = _Entry(
            target=self._name(target),
            written=_Stamp.of(partial),
            source=self._name(source),
            read=self._seen[target],
            key=key,
        )
        self._append(asdict(entry))

    def _append(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(values).encode() + b"\n"
        with self._lock, self._path.open("ab") as stream:
            begin = b"\n" if self._torn else b""
            self._torn = True  # a full disk may take a part of it
            stream.write(begin + line)
            stream.flush()
            os.fsync(stream.fileno())
            self._torn = False

    def _name(self, path: Path) -> str:
        path = located(path)
        with suppress(ValueError):  # another drive
            path = Path(os.path.relpath(path, self._root))
        return path.as_posix()


def key_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 of everything that a result depends on beside its source, whatever the order of the names."""
    return hashlib.sha256(_canonical(settings).encode()).hexdigest()


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


@contextmanager
def locked(folder: Path, written_into: Iterable[Path] = ()) -> Generator[None]:
    """Hold `folder` for one run alone, and clear away what killed runs left half-written.

    Args:
        folder: exists; the lock is gone with the process that held it, however that ended.
        written_into: the folders that the run's files go to.

    Raises:
        ConfigError: if another run holds it, or it cannot be written.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"another run is writing into {folder}; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); choose another folder"
        ) from error
    try:
        clear_partials({folder, *written_into})
        yield
    finally:
        lock.release()
