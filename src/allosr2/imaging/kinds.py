"""What Python programs hold as a picture, PIL images, arrays and tensors, and the way back."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from allosr2.errors import ImageError
from allosr2.imaging import metadata, pillow
from allosr2.imaging.decoding import decoding
from allosr2.imaging.picture import FULL, Picture, to_levels, to_tensor

Kind = TypeVar("Kind", Image.Image, np.ndarray)

_PIL = "the given PIL image"
_ARRAY = "the given array"


def picture_of(image: Image.Image | np.ndarray) -> Picture:
    """A PIL image of any 8-bit or 16-bit mode, turned upright by its EXIF, or an array, as a picture.

    Arrays are `h w` or `h w 1` (gray), `h w 2` (with opacity), `h w 3` (RGB) or `h w 4` (with opacity), of
    uint8, uint16 or float in [0, 1]. Floats may leave [0, 1] by 0.001 (rounding, resampling) and are clamped.

    Raises:
        ImageError: for anything else, for values out of range or not finite, and for empty images.
    """
    if isinstance(image, Image.Image):
        return _of_pil(image)
    if not isinstance(image, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ImageError(
            f"{type(image).__name__} is no image; give a PIL image, a NumPy array or a torch tensor"
        )
    levels = image[..., None] if image.ndim == 2 else image
    if levels.ndim != 3 or levels.shape[2] not in (1, 2, 3, 4) or not levels.size:
        raise ImageError(
            f"{_ARRAY} has shape {image.shape}; give h w (gray), h w 3 (RGB) or h w 4 (with opacity)"
        )
    if np.issubdtype(image.dtype, np.floating):
        _check_range(float(levels.min()), float(levels.max()), _ARRAY)
        levels = levels.clip(0, 1).astype(np.float32)
    elif image.dtype.name not in FULL:
        raise ImageError(f"{_ARRAY} has dtype {image.dtype}; give uint8, uint16 or float in [0, 1]")
    levels = levels.astype(levels.dtype.newbyteorder("="), copy=False)
    if levels.shape[2] in (1, 3):
        return Picture(color=levels)
    return Picture(color=levels[..., :-1], alpha=levels[..., -1])


def like(image: Kind, picture: Picture) -> Kind:
    """A picture as the kind of thing that `picture_of` was given: a PIL image, or an array of its dtype.

    Raises:
        ImageError: for 16-bit gray with opacity as a PIL image, which has no mode for it.
    """
    levels = picture.color
    if picture.alpha is not None:
        levels = np.dstack([levels, picture.alpha])
    if isinstance(image, np.ndarray):
        return levels.reshape(*levels.shape[:2], *image.shape[2:]).astype(image.dtype)
    if levels.dtype == np.uint16 and levels.shape[2] > 1:
        raise ImageError("PIL has no image of 16-bit gray with opacity; give an array, or a file")
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def image_from_any(
    image: Image.Image | np.ndarray | Float[Tensor, "..."],
) -> Float[Tensor, "b 3 h w"]:
    """The colors of a picture as float32 RGB in [0, 1], gray repeated, a PIL image's opacity left out.

    Accepted: what `picture_of` does but arrays with opacity, and a float tensor `3 h w` or `b 3 h w` in [0, 1],
    which stays on its device. Errors as there.
    """
    if not isinstance(image, Tensor):
        picture = picture_of(image)
        if picture.alpha is not None and isinstance(image, np.ndarray):
            raise ImageError(f"{_ARRAY} has shape {image.shape}; give h w (gray) or h w 3 (RGB)")
        color = to_tensor(picture.color)
        return repeat(color, "1 1 h w -> 1 3 h w") if color.shape[1] == 1 else color
    where = "the given tensor"
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or batch.shape[1] != 3 or not batch.numel():
        raise ImageError(f"{where} has shape {tuple(image.shape)}; give 3 h w or b 3 h w (RGB)")
    if not batch.is_floating_point():
        raise ImageError(f"{where} has dtype {image.dtype}; give float in [0, 1] (divide by 255)")
    low, high = torch.aminmax(batch.detach().float())
    _check_range(float(low), float(high), where)
    return batch.float().clamp(0, 1)


def to_array(image: Float[Tensor, "1 3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Round a picture in [0, 1] to 8 bits; values outside are clamped. Raises ImageError if not finite."""
    return np.ascontiguousarray(to_levels(image, np.uint8))


def _of_pil(image: Image.Image) -> Picture:
    with decoding(_PIL):
        color, alpha = pillow.levels_of(image, _PIL)
        if color.shape[2] == 4:
            color = pillow.inks_to_rgb(color)
        xmp = image.info.get("xmp")
        try:
            exif = image.getexif()  # as a program may have changed it since the file was read
        except Exception:  # a damaged EXIF block is no reason to refuse the picture
            exif = None
        orientation = metadata.orientation_of(exif, xmp if isinstance(xmp, bytes) else None)
        return Picture(
            color=metadata.turn_upright(color, orientation),
            alpha=None if alpha is None else metadata.turn_upright(alpha, orientation),
        )


def _check_range(low: float, high: float, where: str) -> None:
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN comes through as NaN
        raise ImageError(f"{where} has values from {low:g} to {high:g}; give floats in [0, 1]")
