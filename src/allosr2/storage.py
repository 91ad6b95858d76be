"""Files of tensors, whole or absent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import save
from torch import Tensor


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file beside its place, then rename it. Raises OSError.

    safetensors' own `save_file` is not whole or absent, and lets nobody but its owner read what it writes.
    """
    content = save({k: v.contiguous() for k, v in tensors.items()}, dict(metadata or {}))
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        written = Path(folder) / path.name
        with written.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        written.replace(path)
