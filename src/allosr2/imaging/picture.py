"""A picture in memory: its colors, its opacity, and what its file said beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allosr2.errors import ImageError

FULL = {"uint8": 255, "uint16": 65535, "float32": 1}
"""The level of full intensity, by the dtype of a picture's levels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """What an image file holds beside its pixels; true of the pixels as they lie in a `Picture`."""

    icc_profile: bytes | None = None
    """ICC profile of the levels, gray or RGB as they are; None for sRGB."""

    exif: bytes | None = None
    """EXIF block; its orientation, where there is one, says upright."""

    xmp: bytes | None = None
    """XMP packet; its orientation, where there is one, says upright."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """What a viewer shows of an image file: upright, gray or RGB, at the depth that the file has.

    Raises ImageError for levels of another shape or dtype.
    """

    color: np.ndarray
    """`h w c` with c = 1 (gray) or 3 (RGB), not premultiplied; uint8, uint16, or float32 in [0, 1]."""

    alpha: np.ndarray | None = None
    """Opacity `h w` of the same dtype; None where there is no transparency."""

    metadata: Metadata = field(default_factory=Metadata)

    format: str | None = None
    """Pillow's name of the file format that it was read from."""

    notes: tuple[str, ...] = ()
    """What reading changed or left out, each in a few words: "the first of 12 frames"."""

    def __post_init__(self) -> None:
        shape, dtype = self.color.shape, self.color.dtype
        if (
            len(shape) != 3
            or shape[2] not in (1, 3)
            or not self.color.size
            or dtype.name not in FULL
        ):
            raise ImageError(
                f"a picture's color has shape {shape} and dtype {dtype}; give h w 1 (gray) or h w 3 (RGB) of "
                + ", ".join(FULL)
            )
        if self.alpha is not None and (self.alpha.shape, self.alpha.dtype) != (shape[:2], dtype):
            raise ImageError(
                f"a picture's alpha has shape {self.alpha.shape} and dtype {self.alpha.dtype}; "
                f"give {shape[:2]} of {dtype}, as its color"
            )

    @property
    def height(self) -> int:
        """In pixels."""
        return self.color.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.color.shape[1]


def rounded(levels: np.ndarray, dtype: type[np.uint8 | np.uint16]) -> np.ndarray:
    """Levels of any dtype of a picture's at a depth of no more bits; floats are clamped to [0, 1]."""
    if levels.dtype == dtype:
        return levels
    if levels.dtype == np.float32:
        return np.rint(levels.clip(0, 1) * FULL[np.dtype(dtype).name]).astype(dtype)
    return ((levels.astype(np.uint32) * 255 + 32767) // 65535).astype(dtype)


def to_tensor(levels: np.ndarray) -> Float[Tensor, "1 c h w"]:
    """Levels `h w c` or `h w` as float32 in [0, 1]."""
    channels_last = torch.from_numpy(np.atleast_3d(levels).astype(np.float32))
    channels_first = rearrange(channels_last, "h w c -> 1 c h w").contiguous()
    return channels_first / FULL[levels.dtype.name]


def to_levels(image: Float[Tensor, "1 c h w"], dtype: np.dtype | type) -> np.ndarray:
    """A picture in [0, 1] as `h w c` of uint8, uint16 or float32; values outside are clamped.

    Raises:
        ImageError: for values that are not finite, which would be written as black dots.
    """
    if not torch.isfinite(image).all():
        raise ImageError("the image holds values that are not finite; compute it in float32")
    full = FULL[np.dtype(dtype).name]
    levels = image.detach().cpu().float().clamp(0, 1).mul_(full)
    if full != 1:
        levels = levels.round_()
    return rearrange(levels.numpy(), "1 c h w -> h w c").astype(dtype)
