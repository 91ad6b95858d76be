"""A picture becomes a file of one format: what it holds is kept, the rest is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from allosr2.imaging import png, tiff, vips
from allosr2.imaging.exif import ORIENTATION, parse, serialize
from allosr2.imaging.formats import FORMATS, is_gray, keeps_profile, written_bits
from allosr2.imaging.picture import Metadata, Picture, rounded

# Photographs lose nothing that the enlargement put in: full chroma and high quality where there is
# a loss, none where it can be had.
_JPEG_QUALITY = 95
# 16.8 megapixels at speed 8 take 1.9 s of two cores, at 6 10 s for an eighth fewer bytes.
_AVIF_QUALITY, _AVIF_SPEED = 90, 8
# A quality of lossless WebP is effort: 80, Pillow's own, takes 14 times as long for 0.1 % fewer bytes.
_WEBP_LOSSLESS = {"lossless": True, "exact": True, "method": 1, "quality": 0}


def encode(path: Path, picture: Picture, file_format: str, quality: int | None) -> None:
    """Write a file that is not yet there, or is empty.

    Args:
        path: of any suffix.
        picture: of a size that the format holds, opaque where it holds no transparency.
        file_format: Pillow's name of the format.
        quality: 1 to 100; None for the format's own. PNG, TIFF and BMP have none.

    Raises:
        OSError: for a disk that is full or fails.
        Exception: whatever else an encoder raises.
    """
    metadata = _held(picture, file_format)
    levels = _levels(picture, file_format)
    if file_format == "PNG":
        with path.open("wb") as stream:
            vips.save_png(stream, levels, png.metadata_chunks(metadata), png.HEADER_BYTES)
    elif file_format == "TIFF":
        vips.save_tiff(path, levels, icc_profile=metadata.icc_profile, xmp=metadata.xmp)
        tiff.add_exif(path, metadata.exif)
    elif file_format == "AVIF" and levels.dtype == np.uint16:
        vips.save_avif(
            path,
            levels,
            quality or _AVIF_QUALITY,
            icc_profile=metadata.icc_profile,
            exif=metadata.exif,
            xmp=metadata.xmp,
        )
    else:
        options = _save_options(file_format, quality, gray=levels.shape[2] == 1)
        for name, block in (
            ("icc_profile", metadata.icc_profile),
            ("exif", _without_upright(metadata.exif) if file_format == "AVIF" else metadata.exif),
            ("xmp", metadata.xmp),
        ):
            if block:
                options[name] = block
        image = Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels)
        with path.open("wb") as stream:
            image.save(stream, file_format, **options)


def _save_options(file_format: str, quality: int | None, *, gray: bool) -> dict[str, Any]:
    if file_format == "JPEG":
        return {"quality": quality or _JPEG_QUALITY, "subsampling": 0}
    if file_format == "WEBP":
        if quality is None:
            return dict(_WEBP_LOSSLESS)
        return {"quality": quality, "exact": True}
    if file_format == "AVIF":
        return {
            "quality": quality or _AVIF_QUALITY,
            "speed": _AVIF_SPEED,
            "subsampling": "4:0:0" if gray else "4:4:4",
        }
    return {}


def _without_upright(block: bytes | None) -> bytes | None:
    """An EXIF block without an orientation that says upright.

    Pillow's AVIF would take it out, and lay the rest anew with a loss of types and texts.
    """
    exif = parse(block) if block else None
    if exif is None or exif.number(ORIENTATION) != 1:
        return block
    rest = exif.without(frozenset({ORIENTATION}))
    return serialize(rest) if rest else None


def _held(picture: Picture, file_format: str) -> Metadata:
    """The metadata that the format holds."""
    holds, metadata = FORMATS[file_format], picture.metadata

    def held(block: bytes | None, longest: int | None) -> bytes | None:
        return block if block and (longest is None or len(block) <= longest) else None

    return Metadata(
        icc_profile=metadata.icc_profile if keeps_profile(picture, file_format) else None,
        exif=held(metadata.exif, holds.exif),
        xmp=held(metadata.xmp, holds.xmp),
    )


def _levels(picture: Picture, file_format: str) -> np.ndarray:
    """The pixels `h w n` as they are written: uint8 or uint16, alpha last."""
    color = picture.color
    if color.shape[2] == 1 and not is_gray(picture, file_format):
        color = np.repeat(color, 3, axis=2)
    dtype = np.uint16 if written_bits(picture, file_format) > 8 else np.uint8
    if picture.alpha is None or not FORMATS[file_format].alpha:
        return rounded(color, dtype)
    return np.dstack([rounded(color, dtype), rounded(picture.alpha, dtype)])
