"""ICC profiles that are applied: CMYK, and pictures that are to go without one, become sRGB."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from allosr2.imaging import pillow, vips
from allosr2.imaging.picture import FULL, Metadata, Picture


def inks_to_srgb(inks: np.ndarray, icc_profile: bytes | None) -> tuple[np.ndarray, str]:
    """CMYK `h w 4` of uint8 or uint16, 0 is no ink, as sRGB `h w 3`, and a note of how."""
    if not icc_profile:
        return pillow.inks_to_rgb(inks), "CMYK converted to RGB without a profile"
    color = _to_srgb(inks, icc_profile)
    if color is None:
        return pillow.inks_to_rgb(inks), "CMYK converted to RGB: its profile cannot be used"
    return color, "CMYK converted to sRGB by its profile"


def without_metadata(picture: Picture) -> Picture:
    """A picture as read from a file, without profile, EXIF and XMP, that looks the same.

    What has no profile is taken for sRGB: the levels are converted to it by the profile that goes.
    """
    profile = picture.metadata.icc_profile
    bare = replace(picture, metadata=Metadata())
    if profile is None:
        return bare
    color = _to_srgb(picture.color, profile)
    if color is None:
        return replace(bare, notes=(*picture.notes, "ICC profile left out: it cannot be used"))
    note = "colors converted to sRGB by their profile"
    return replace(bare, color=color, notes=(*picture.notes, note))


def _to_srgb(levels: np.ndarray, icc_profile: bytes) -> np.ndarray | None:
    """Levels `h w n` as sRGB of the same dtype, gray or RGB; None where the profile cannot be used."""
    # With such a profile libvips would go on, with one that it has built in.
    transform = pillow.transform_to_srgb(icc_profile, levels.shape[2])
    if transform is None:
        return None
    if levels.shape[2] == 1:
        nodes = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        curve = np.asarray(transform.apply(nodes))[0, :, 0]
        full = FULL[levels.dtype.name]
        every = np.interp(np.arange(full + 1), np.arange(256) * (full // 255), curve)
        return np.rint(every * (full // 255)).astype(levels.dtype)[levels]
    try:
        return vips.to_srgb(levels, icc_profile)
    except vips.Error:
        return None
