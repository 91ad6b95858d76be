"""Files, whole or absent, and the names of both; and pickles, which are not read."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from safetensors.torch import save
from torch import Tensor

from allosr2.errors import ModelError

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
"""Suffixes of files that run code when they are read."""

PARTIAL = re.compile(r"\.allosr2-(?P<process>\d{1,9})-(?P<token>[0-9a-f]+)\.part")
"""Names of images that are being written: by which process, and what tells them apart."""

_OURS = secrets.token_hex(4)
"""Begins the tokens of this process: a former one, in a container that is gone, may have had its id."""


def partial_of(target: Path) -> Path:
    """A new name beside an image, hidden, for the time until it is whole."""
    token = _OURS + secrets.token_hex(4)
    return target.with_name(f".allosr2-{os.getpid()}-{token}.part")


def clear_partials(folders: Iterable[Path], *, idle: float = 0.0) -> None:
    """Remove what processes that are gone left half-written in folders, which need not exist.

    What a live process is writing stays, as does what may not be removed. Processes of other machines
    and containers count as gone: where they may be at work, only what nobody has written to for `idle`
    seconds is removed.
    """
    latest = time.time() - idle
    for folder in folders:
        for path in folder.glob(".allosr2-*.part"):
            name = PARTIAL.fullmatch(path.name)
            if name and not _is_written(int(name["process"]), name["token"]):
                with suppress(OSError):
                    if path.stat().st_mtime <= latest:
                        path.unlink()


def _is_written(process: int, token: str) -> bool:
    return token.startswith(_OURS) if process == os.getpid() else psutil.pid_exists(process)


def located(path: Path) -> Path:
    """The one name of a file that may be written in several ways: absolute, its folder without links.

    What a link in the last place leads to is another file with a name of its own.
    """
    return Path(os.path.realpath(path.parent), path.name)


def refuse_pickles(folder: Path, remedy: str, stem: str = "*") -> None:
    """Raise ModelError, naming the file, for a pickle in a folder whose name without suffix matches `stem`."""
    for path in sorted(folder.glob(f"{stem}.*")):
        if path.suffix in PICKLES:
            raise ModelError(
                f"{path}: a pickle, which can run code when it is read, is not read; {remedy}"
            )


def save_text(path: Path, text: str) -> None:
    """Write a text file as `save_tensors` does. Raises OSError."""
    _save(path, text.encode())


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file beside its place, then rename it. Raises OSError.

    safetensors' own `save_file` is not whole or absent, and lets nobody but its owner read what it writes.
    """
    _save(path, save({k: v.contiguous() for k, v in tensors.items()}, dict(metadata or {})))


def _save(path: Path, content: bytes) -> None:
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        with written.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        written.replace(path)
