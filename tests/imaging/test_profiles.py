"""Profiles that are applied, against LittleCMS through Pillow and against closed forms."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from allosr2.imaging.picture import Metadata, Picture
from allosr2.imaging.profiles import without_metadata

P3 = bytes(pyvips.Image.profile_load("p3"))


def gray_profile(gamma: float) -> bytes:
    """A display of gray levels whose light is their power (ICC.1:2001-04, 6.3.2)."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1, 0.8249)))
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = [(b"wtpt", white), (b"kTRC", curve)]
    at, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    header = bytearray(128)
    header[:4] = struct.pack(">I", at + len(body))
    header[8:24] = b"\x02\x40\0\0mntrGRAYXYZ "
    header[36:40] = b"acsp"
    header[68:80] = white[8:]
    return bytes(header) + table + body


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_wide_gamut_becomes_srgb(dtype):
    y, x = np.indices((32, 32)) / 31
    color = np.rint(np.dstack([x, y, 0.5 * (1 - x) + 0.2]) * 255).astype(np.uint8)
    expected = ImageCms.profileToProfile(
        Image.fromarray(color),
        ImageCms.ImageCmsProfile(io.BytesIO(P3)),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
    )
    assert np.abs(np.asarray(expected).astype(int) - color).max() > 20  # they do differ
    levels = color if dtype == np.uint8 else color.astype(np.uint16) * 257
    alpha = levels[..., 0]
    metadata = Metadata(icc_profile=P3, exif=b"Exif\0\0", xmp=b"<x/>")
    bare = without_metadata(Picture(color=levels, alpha=alpha, metadata=metadata, notes=("a",)))
    assert bare.metadata == Metadata()
    assert bare.notes == ("a", "colors converted to sRGB by their profile")
    assert bare.color.dtype == dtype
    assert bare.alpha is alpha
    found = bare.color / np.iinfo(dtype).max * 255
    difference = np.abs(found - np.asarray(expected))
    # LittleCMS goes by a grid of colors in 16 bits, which is coarse where sRGB ends
    assert difference.max() <= (2 if dtype == np.uint8 else 15)
    assert difference.mean() <= 0.3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_becomes_srgb_s_gray(dtype):
    levels = np.arange(256, dtype=dtype).reshape(16, 16, 1)
    if dtype == np.uint16:
        levels *= 257
    bare = without_metadata(Picture(color=levels, metadata=Metadata(icc_profile=gray_profile(1.0))))
    light = np.arange(256) / 255
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert bare.color.shape == levels.shape
    np.testing.assert_allclose(bare.color.ravel() / np.iinfo(dtype).max, srgb, atol=0.002)


def test_without_a_profile_the_levels_stay():
    picture = Picture(color=np.arange(12, dtype=np.uint8).reshape(2, 2, 3), notes=("a",))
    bare = without_metadata(picture)
    assert bare.color is picture.color
    assert bare.notes == ("a",)


def test_a_broken_profile_goes_and_is_said():
    color = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    broken = P3[:128] + bytes(len(P3) - 128)
    bare = without_metadata(Picture(color=color, metadata=Metadata(icc_profile=broken)))
    np.testing.assert_array_equal(bare.color, color)
    assert bare.metadata.icc_profile is None
    assert bare.notes == ("ICC profile left out: it cannot be used",)
