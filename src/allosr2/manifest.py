"""What a folder's results were made from, kept in that folder, so that a run goes on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from allosr2.errors import ConfigError

MANIFEST = ".allosr2-manifest.jsonl"
"""Name of the file: one JSON object a line, only ever appended to."""
LOCK = ".allosr2.lock"
"""Name of the file that a run holds locked as long as it writes into the folder."""
PARTIAL = ".allosr2-*.part"
"""Names of files that are not whole yet."""


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
    """Path in the folder, with slashes."""
    written: _Stamp
    """Of the partial file; the rename that makes it the target keeps both."""
    source: str
    """Absolute path."""
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
        self._lock = threading.Lock()
        self._seen: dict[Path, _Stamp] = {}
        self._entries: dict[str, _Entry] = {}
        self._begun: dict[str, Any] = {}
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
            if "begun" in values:
                self._begun = dict(values["begun"])
            else:
                written, read = _Stamp(**values.pop("written")), _Stamp(**values.pop("read"))
                entry = _Entry(written=written, read=read, **values)
                self._entries[entry.target] = entry
        except (ValueError, TypeError, KeyError):
            pass  # a kill tore this line; its file never appeared

    def tile_of(self, asked: Mapping[str, Any]) -> int | None:
        """The tile that the newest run took if it was asked for the same; None otherwise.

        Which tile `auto` comes to depends on the memory that is free at the time; going on after a kill
        must not depend on it.
        """
        tile = self._begun.get("tile")
        same = self._begun.get("asked") == json.loads(json.dumps(asked))
        return tile if same and isinstance(tile, int) else None

    def begin(self, asked: Mapping[str, Any], tile: int) -> None:
        """Record what a run was asked for and which tile it takes, unless the newest one says so already."""
        if self.tile_of(asked) != tile:
            self._append({"begun": {"asked": asked, "tile": tile}})

    def is_done(self, source: Path, target: Path, key: str | None = None) -> bool:
        """Whether `target` is the whole result of this very `source` with the settings of `key`.

        Without a key, whether it was that of any settings.
        """
        entry = self._entries.get(self._name(target))
        if entry is None or entry.source != _absolute(source) or key not in (None, entry.key):
            return False
        try:
            return entry.written == _Stamp.of(target) and entry.read == _Stamp.of(source)
        except OSError:
            return False

    def is_result(self, path: Path) -> bool:
        """Whether a file in the folder is one that a run wrote there, unchanged since."""
        entry = self._entries.get(self._name(path))
        return entry is not None and entry.written == _Stamp.of(path)

    def see(self, source: Path) -> None:
        """Note size and time of a source that is about to be read. Raises OSError."""
        self._seen[source] = _Stamp.of(source)

    def record(self, source: Path, target: Path, partial: Path, key: str) -> None:
        """Record that `partial`, whole and on disk, is about to become `target`. Raises OSError."""
        entry = _Entry(
            target=self._name(target),
            written=_Stamp.of(partial),
            source=_absolute(source),
            read=self._seen.pop(source),
            key=key,
        )
        self._append(asdict(entry))

    def _append(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(values).encode() + b"\n"
        with self._lock, self._path.open("ab") as stream:
            stream.write(b"\n" + line if self._torn else line)
            self._torn = False
            stream.flush()
            os.fsync(stream.fileno())

    def _name(self, target: Path) -> str:
        return Path(os.path.relpath(target, self.folder)).as_posix()


def key_of(settings: Mapping[str, Any]) -> str:
    """SHA-256 of everything that a result depends on beside its source, whatever the order of the names."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


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
        for written in {folder, *written_into}:
            for partial in written.glob(PARTIAL):
                partial.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _absolute(source: Path) -> str:
    return os.path.abspath(source)  # noqa: PTH100 - resolve() would name what a link leads to
