"""Pictures that tests of the command line are run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save_noise(path: Path, height: int = 6, width: int = 9) -> Path:
    """Write noise, the same for the same height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path
