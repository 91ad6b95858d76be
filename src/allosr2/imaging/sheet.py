"""Pictures side by side under captions: what a person looks at to judge results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from math import ceil

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

_GAP = 8
_CAPTION = 22
_FONT_SIZE = 14
_PAPER = (250, 250, 248)
_INK = (34, 34, 34)

Panel = tuple[str, UInt8[np.ndarray, "h w 3"]]
"""A caption and the RGB picture that it stands above."""


def sheet(rows: Sequence[Sequence[Panel]]) -> UInt8[np.ndarray, "height width 3"]:
    """Rows of captioned RGB pictures, pixel for pixel, one below the other.

    A column is as wide as its widest picture or caption, a row as high as its highest picture.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    columns = list(zip_longest(*rows))
    widths = [
        max(max(panel[1].shape[1], ceil(font.getlength(panel[0]))) for panel in column if panel)
        for column in columns
    ]
    heights = [max(picture.shape[0] for _, picture in row) for row in rows]
    page = Image.new(
        "RGB",
        (
            sum(widths) + _GAP * (len(widths) + 1),
            sum(heights) + (_CAPTION + _GAP) * len(heights) + _GAP,
        ),
        _PAPER,
    )
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for (caption, picture), width in zip(row, widths, strict=False):
            strip = Image.new("RGB", (width, _CAPTION), _PAPER)
            ImageDraw.Draw(strip).text((0, 0), caption, fill=_INK, font=font)
            page.paste(strip, (left, top))
            page.paste(Image.fromarray(picture), (left, top + _CAPTION))
            left += width + _GAP
        top += _CAPTION + height + _GAP
    return np.array(page)
