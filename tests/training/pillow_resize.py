"""Pillow's bicubic resize, which the stages' resizing is compared with."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pillow_bicubic(plane: Tensor, side: int) -> Tensor:
    """One float plane, resized to a square."""
    image = Image.fromarray(plane.numpy(), mode="F")
    return torch.from_numpy(np.array(image.resize((side, side), Image.Resampling.BICUBIC)))
