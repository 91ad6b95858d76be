"""Zoomed crops side by side, as in the paper's Figures 3 and 4: where methods differ, pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from allosr2.errors import ImageError
from allosr2.imaging.io import image_from_any
from allosr2.imaging.quality import luma
from allosr2.imaging.sheet import sheet

Box = tuple[int, int, int]
"""Left, top and side of a square in pixels."""

_LINE = (255, 196, 0)
_EDGE = (0, 0, 0)


def find_crop(pictures: Sequence[UInt8[np.ndarray, "h w 3"]], size: int) -> Box:
    """The square window in which pictures of one size differ most.

    That is the largest mean, over the window, of the variance of Y between the pictures. Windows lie on a grid
    of a quarter of their side; of equal ones the first wins, and where nothing differs, the middle.

    Args:
        pictures: RGB, at least one.
        size: side of the window in pixels, no longer than the pictures' sides.
    """
    planes = np.stack([luma(image_from_any(picture))[0, 0].numpy() for picture in pictures])
    height, width = planes.shape[1:]
    tops, lefts = _places(height, size), _places(width, size)
    # nothing is equal after sums in floating point: below a thousandth of a level squared counts as nothing
    scores = np.round(_window_means(planes.var(axis=0), tops, lefts, size), 3)
    if not scores.any():
        return (width - size) // 2, (height - size) // 2, size
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return lefts[column], tops[row], size


def crop_sheet(
    name: str,
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]],
    whole: UInt8[np.ndarray, "h w 3"],
    *,
    hr: UInt8[np.ndarray, "h w 3"] | None = None,
    side: int = 256,
) -> UInt8[np.ndarray, "height width 3"]:
    """The whole picture with a box, and beside it what each method, and last HR, has in the box.

    The box is a window of a quarter of the shorter side, where the results differ most (`find_crop`), or where
    a single one differs from HR.

    Args:
        name: of the picture; its caption.
        pictures: the methods' results by the methods' names, at least one.
        whole: what the box is drawn on: LR enlarged to the size of the results, or HR.
        hr: the last crop; left out if None.
        side: of each crop as it is shown, enlarged by nearest neighbor, in pixels.

    Raises:
        ImageError: if the pictures differ in size.
    """
    panels = [*pictures.items(), *([] if hr is None else [("HR", hr)])]
    for method, picture in panels:
        if picture.shape != whole.shape:
            raise ImageError(
                f"{name}: {method} has {_size(picture)} px, the whole picture {_size(whole)} px; "
                "give pictures of one size"
            )
    compared = list(pictures.items()) if len(pictures) > 1 else panels
    box = find_crop([picture for _, picture in compared], max(min(whole.shape[:2]) // 4, 1))
    left, top, size = box
    crops = [
        (method, _enlarged(picture[top : top + size, left : left + size], side))
        for method, picture in panels
    ]
    columns = ceil(len(crops) / 2) if len(crops) > 3 else len(crops)
    right = sheet([crops[first : first + columns] for first in range(0, len(crops), columns)])
    # what a sheet adds to the height of one picture
    frame = sheet([[("", np.zeros((1, 1, 3), np.uint8))]]).shape[0] - 1
    shown = sheet([[(name, _with_box(whole, box, right.shape[0] - frame))]])
    return np.hstack([shown, right])


def _places(length: int, size: int) -> list[int]:
    last = length - size
    return sorted({*range(0, last + 1, max(size // 4, 1)), last})


def _window_means(
    plane: Float[np.ndarray, "h w"], tops: list[int], lefts: list[int], size: int
) -> Float[np.ndarray, "tops lefts"]:
    sums = np.pad(plane.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = sums[np.add(tops, size)] - sums[tops]
    return (rows[:, np.add(lefts, size)] - rows[:, lefts]) / size**2


def _enlarged(crop: UInt8[np.ndarray, "s s 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    return np.array(Image.fromarray(crop).resize((side, side), Image.Resampling.NEAREST))


def _with_box(
    whole: UInt8[np.ndarray, "h w 3"], box: Box, height: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture at another height, and a frame around the box that is seen on any ground."""
    scale = height / whole.shape[0]
    image = Image.fromarray(whole).resize(
        (max(round(whole.shape[1] * scale), 1), height), Image.Resampling.LANCZOS
    )
    left, top, size = (round(number * scale) for number in box)
    draw = ImageDraw.Draw(image)
    for margin, color, line in ((2, _EDGE, 5), (1, _LINE, 3)):
        corners = (left - margin, top - margin, left + size + margin, top + size + margin)
        draw.rectangle(corners, outline=color, width=line)
    return np.array(image)


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"
