"""ICC profiles, EXIF and XMP: checked against the pixels, and made true of an upright picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import ExifTags, Image

# Where the pixels of the *source* file lie and how they are packed (a TIFF keeps this among its
# EXIF tags), with its color profile and XMP, which travel on their own. All wrong for any other
# file.
PIXEL_LAYOUT_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317}
    | {320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532}
    | {513, 514, 700, 33723, 34377, 34675, 37724}
)

_PIXEL_SIZE_TAGS = frozenset({40962, 40963})
"""PixelXDimension and PixelYDimension, which cameras write: wrong of the enlarged picture."""

# In an attribute of rdf:Description, or an element in it (XMP specification part 1, 7.9.2.2).
_XMP_ORIENTATION = re.compile(
    rb"""(tiff:Orientation\s*=\s*["']|<tiff:Orientation[^>]*>)\s*([1-8])\s*(?=["'<])"""
)

_CHANNELS = {b"GRAY": 1, b"RGB ": 3}


def exif_of_tags(tags: Mapping[int, Any], nested: Mapping[int, Mapping[int, Any]]) -> Image.Exif:
    """EXIF from the tags of a TIFF, with its nested blocks by the tag that points to them."""
    exif = Image.Exif()
    for tag, value in tags.items():
        if tag not in nested:
            exif[tag] = value
    for tag, block in nested.items():
        exif.get_ifd(tag).update(block)
        exif[tag] = 0  # there is one; where it lies is found out when it is written
    return exif


def orientation_of(exif: Image.Exif | bytes | None, xmp: bytes | None) -> int:
    """The EXIF orientation, 1 to 8, of pixels as they are stored; XMP's where EXIF has none."""
    try:
        found: object = None if exif is None else _parsed(exif).get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block is no reason to refuse the picture
        found = None
    if found is None and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[2])
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def turn_upright(levels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored levels `h w ...` the way a viewer shows them; `w h ...` for orientations 5 to 8."""
    turned = levels.swapaxes(0, 1) if orientation >= 5 else levels
    # Which sides of what is shown now are mirrored (EXIF 3.0, 4.6.5.1, tag 274).
    if orientation in (3, 4, 7, 8):
        turned = turned[::-1]
    if orientation in (2, 3, 6, 7):
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def upright_exif(block: Image.Exif | bytes | None) -> bytes | None:
    """The EXIF block without the source's orientation, pixel layout, size and thumbnail.

    None where nothing is left. Raises ValueError for a damaged one.
    """
    if not block:
        return None
    try:
        exif = _parsed(block)
        for tag in PIXEL_LAYOUT_TAGS.intersection(exif):
            del exif[tag]
        if ExifTags.IFD.Exif in exif:
            details = exif.get_ifd(ExifTags.IFD.Exif)
            for tag in _PIXEL_SIZE_TAGS.intersection(details):
                del details[tag]
        if ExifTags.Base.Orientation in exif:
            exif[ExifTags.Base.Orientation] = 1
        return exif.tobytes() if len(exif) else None
    except Exception as error:  # damaged values make Pillow raise nearly anything
        raise ValueError("damaged EXIF") from error


def upright_xmp(xmp: bytes | None) -> bytes | None:
    """The XMP packet with its orientation, where there is one, set to upright."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if xmp else None


def fits(icc_profile: bytes, channels: int) -> bool:
    """Whether an ICC profile describes levels of so many channels: gray 1, RGB 3."""
    # Bytes 16 to 19 of an ICC header name the color space, 36 to 39 are its signature
    # (ICC.1:2022, 7.2).
    return (
        _CHANNELS.get(icc_profile[16:20]) == channels
        and icc_profile[36:40] == b"acsp"
        and int.from_bytes(icc_profile[:4], "big") <= len(icc_profile)
    )


def _parsed(block: Image.Exif | bytes) -> Image.Exif:
    if isinstance(block, Image.Exif):
        return block
    exif = Image.Exif()
    exif.load(block)
    return exif
