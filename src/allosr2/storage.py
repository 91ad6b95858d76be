"""Files, whole or absent; and pickles, which are not read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save
from torch import Tensor

from allosr2.errors import ModelError

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
"""Suffixes of files that run code when they are read."""


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
