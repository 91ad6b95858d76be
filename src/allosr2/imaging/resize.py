"""Resampling, the same as Pillow's: shrinking does not alias, enlarging is the usual bicubic."""

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def resize(
    image: Float[Tensor, "b c h w"],
    size: tuple[int, int],
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Float[Tensor, "b c height width"]:
    """Resample to `size` = (height, width) in pixels, pixel centers at half integers.

    Bicubic is Keys' kernel with a = -0.5, widened by the factor when shrinking; both modes agree
    with Pillow's filters of the same name on floats. The result is *not* clamped: the operation
    stays linear, and bicubic overshoots [0, 1] at edges by up to about a tenth. Clamp where an
    image in [0, 1] is due.
    """
    if size[1] == 1 and size[0] != image.shape[-2]:
        # torch 2.15 mixes up the rows of what is one column wide; one row high is right
        column = resize(image, (image.shape[-2], 1), mode)
        return resize(column.mT, (1, size[0]), mode).mT
    return functional.interpolate(image, size=size, mode=mode, align_corners=False, antialias=True)


def enlarge(image: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h*s w*s"]:
    """Bicubic enlargement by a whole factor, clamped to [0, 1]: what the codec encodes of an LR image."""
    height, width = image.shape[-2:]
    return resize(image, (height * scale, width * scale)).clamp_(0, 1)


def support(rows: tuple[int, int], height: int, length: int) -> tuple[int, int]:
    """First and last + 1 of a picture's `height` rows on which `rows` rest of its resampling to `length`."""
    ratio = height / length
    reach = 2 * max(ratio, 1)
    first = math.floor((rows[0] + 0.5) * ratio - reach)
    last = math.ceil((rows[1] - 0.5) * ratio + reach)
    return max(first, 0), min(last, height)


def resize_rows(
    part: Float[Tensor, "b c p w"],
    first: int,
    height: int,
    size: tuple[int, int],
    rows: Int[Tensor, "n"],
) -> Float[Tensor, "b c n width"]:
    """Some rows of `resize(picture, size)`, bicubic, from the part of the picture that they rest on.

    Args:
        part: rows of the picture from row `first` on; at least the `support` of `rows`.
        first: row of the picture that `part` begins with.
        height: of the whole picture.
        size: height and width of the whole result.
        rows: which rows of it, in any order, from 0 to its height - 1.
    """
    if part.shape[-1] != size[1]:
        part = resize(part, (part.shape[-2], size[1]))
    if height == size[0]:
        return part.index_select(-2, rows - first)
    weights = _keys_weights(rows, first, part.shape[-2], height / size[0])
    return weights.to(part.dtype) @ part


def _keys_weights(
    rows: Int[Tensor, "n"], first: int, count: int, ratio: float
) -> Float[Tensor, "n count"]:
    """Weight of source rows `first` ... in each of the target's `rows`, which add up to 1. Float64."""
    centers = (rows.to(torch.float64) + 0.5) * ratio
    places = torch.arange(first, first + count, dtype=torch.float64) + 0.5
    distance = ((places - centers[:, None]) / max(ratio, 1)).abs()
    inner = (1.5 * distance - 2.5) * distance**2 + 1
    outer = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, inner, torch.where(distance < 2, outer, 0))
    return weights / weights.sum(dim=1, keepdim=True)
