"""ICC profiles, EXIF and XMP: checked against the pixels, and made true of an upright picture."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from PIL import Image

from allosr2.imaging.exif import (
    EXIF,
    IMAGE_DESCRIPTION,
    ORIENTATION,
    PIXEL_LAYOUT_TAGS,
    SHORT,
    Entry,
    parse,
    serialize,
)

_PIXEL_SIZE_TAGS = frozenset({40962, 40963})
"""PixelXDimension and PixelYDimension, which cameras write: wrong of the enlarged picture."""

_OF_AN_ARRAY = (b'{"shape":', b"ImageJ=")
"""What descriptions start with in which tifffile and ImageJ keep shape and kind of the source's array."""

# In an attribute of rdf:Description, or an element in it (XMP specification part 1, 7.9.2.2).
_XMP_ORIENTATION = re.compile(
    rb"""(tiff:Orientation\s{0,20}=\s{0,20}["']|<tiff:Orientation[^<>]{0,200}>)\s{0,20}([1-8])\s{0,20}(?=["'<])"""
)

_CHANNELS = {b"GRAY": 1, b"RGB ": 3}


def orientation_of(exif: Image.Exif | bytes | None, xmp: bytes | None) -> int:
    """The EXIF orientation, 1 to 8, of pixels as they are stored; XMP's where EXIF has none."""
    try:
        found: object = (
            exif.get(ORIENTATION)
            if isinstance(exif, Image.Exif)
            else parse(exif or b"", strict=False).number(ORIENTATION)
        )
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


def upright_exif(block: bytes | None) -> bytes | None:
    """The EXIF block without the source's orientation, pixel layout, size and thumbnail.

    None where nothing is left. Raises ValueError for a damaged one.
    """
    if not block:
        return None
    stored = parse(block)
    kept = stored.without(PIXEL_LAYOUT_TAGS)
    entries, nested = dict(kept.entries), dict(kept.nested)
    if ORIENTATION in entries:
        entries[ORIENTATION] = Entry(SHORT, (1).to_bytes(2, stored.order))
    description = entries.get(IMAGE_DESCRIPTION)
    if description and description.value.startswith(_OF_AN_ARRAY):
        del entries[IMAGE_DESCRIPTION]
    if EXIF in nested:
        nested[EXIF] = nested[EXIF].without(_PIXEL_SIZE_TAGS)
    upright = replace(kept, entries=entries, nested=nested)
    return serialize(upright) if upright else None


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
