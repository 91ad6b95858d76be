"""Depths, colors, opacity and metadata of files that other programs wrote, against their own arrays."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from imaging.malformed import png_chunk
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from allosr2.errors import ImageError
from allosr2.imaging.io import Limits, read_image, read_rgb, read_size, write_image
from allosr2.imaging.picture import Metadata, Picture

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (40, 50, 4), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# ----------------------------------------------------------------------------------------- PNG


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png(tmp_path, channels, interlace):
    image = pyvips.Image.new_from_array(DEEP[..., :channels])
    image = image.copy(interpretation="grey16" if channels <= 2 else "rgb16")
    image.pngsave(str(tmp_path / "a.png"), interlace=interlace)
    picture = read_image(tmp_path / "a.png")
    found = [picture.color] if picture.alpha is None else [picture.color, picture.alpha]
    np.testing.assert_array_equal(np.dstack(found), DEEP[..., :channels])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_key_of_shallow_gray_png(tmp_path, bits):
    """A transparent level is stored at the file's depth, as the gray levels are."""
    levels = np.arange(2**bits, dtype=np.uint8)[None].repeat(4, axis=0)
    packed = np.packbits(((levels[..., None] >> np.arange(bits)[::-1]) & 1).reshape(4, -1), axis=1)
    header = struct.pack(">IIBBBBB", 2**bits, 4, bits, 0, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"tRNS", b"\0\1")
    content += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(content)
    picture = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.color[..., 0], levels * (255 // (2**bits - 1)))
    np.testing.assert_array_equal(picture.alpha, np.where(levels == 1, 0, 255))


def test_text_behind_the_pixels_of_a_png(tmp_path):
    """exiftool and ImageMagick write metadata there."""
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    info = PngImagePlugin.PngInfo()
    xmp = '<a tiff:Orientation="6"/>'
    info.add_itxt("XML:com.adobe.xmp", xmp)
    Image.new("L", (9, 5)).save(stream, "PNG", exif=exif.tobytes(), pnginfo=info)
    content = stream.getvalue()
    start, end = content.index(b"iTXt") - 4, content.index(b"IDAT") - 4
    moved = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    (tmp_path / "a.png").write_bytes(moved)
    picture = read_image(tmp_path / "a.png")
    assert picture.color.shape == (9, 5, 1)
    assert read_size(tmp_path / "a.png") == (9, 5)
    assert picture.metadata.xmp == xmp.replace("6", "1").encode()


# ---------------------------------------------------------------------------------------- AVIF


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_deep_avif_is_not_dark(tmp_path, bits, channels):
    ramp = (
        np.linspace(0, 65535, 64).astype(np.uint16)[None, :, None].repeat(48, 0).repeat(channels, 2)
    )
    image = pyvips.Image.new_from_array(ramp).copy(
        interpretation="rgb16" if channels > 1 else "grey16"
    )
    image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=bits, Q=95)
    picture = read_image(tmp_path / "a.avif")
    assert picture.color.dtype == np.uint16
    assert np.abs(picture.color[..., 0].astype(int) - ramp[..., 0]).max() < 800
    assert picture.color.max() > 65000
    assert (picture.alpha is None) == (channels < 4)


@pytest.mark.parametrize("bits", [8, 10])
def test_orientation_of_avif_is_applied_once(tmp_path, bits):
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = [255, 0, 0]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    if bits == 8:
        Image.fromarray(stored).save(
            tmp_path / "a.avif", exif=exif.tobytes(), quality=100, subsampling="4:4:4"
        )
    else:
        image = pyvips.Image.new_from_array(stored.astype(np.uint16) * 257)
        image = image.copy(interpretation="rgb16")
        image.set_type(pyvips.GValue.gint_type, "orientation", 6)
        image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=bits, Q=100)
    picture = read_image(tmp_path / "a.avif")
    expected = np.rot90(stored, -1) if picture.color.shape[0] == 48 else stored
    assert np.abs(picture.color / (255 if bits == 8 else 65535) - expected / 255).max() < 0.2
    assert read_size(tmp_path / "a.avif") == picture.color.shape[:2]
    if bits == 8:
        assert picture.color.shape == (48, 32, 3)


# -------------------------------------------------------------------------------------- colors


def cmyk_profile() -> bytes:
    profile = pyvips.Image.profile_load("cmyk")
    return profile if isinstance(profile, bytes) else bytes(profile)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_cmyk_goes_through_its_profile(tmp_path, suffix, dtype):
    if (suffix, dtype) == (".jpg", np.uint16):
        return
    profile, path = cmyk_profile(), tmp_path / f"a{suffix}"
    y, x = np.indices((32, 32)) / 32
    inks = np.rint(np.dstack([x, y, (1 - x) * 0.8, x * y * 0.5]) * 255).astype(np.uint8)
    if dtype == np.uint16:
        deep = inks.astype(np.uint16) * 257
        tifffile.imwrite(path, deep, photometric="separated", iccprofile=profile)
    else:
        Image.fromarray(inks, "CMYK").save(path, icc_profile=profile, quality=100, subsampling=0)
        inks = np.asarray(Image.open(path))
    expected = ImageCms.profileToProfile(
        Image.fromarray(inks, "CMYK"),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    picture = read_image(path)
    assert picture.notes == ("CMYK converted to sRGB by its profile",)
    assert picture.metadata.icc_profile is None
    assert picture.color.dtype == dtype
    found = picture.color / np.iinfo(dtype).max * 255
    assert np.abs(found - np.asarray(expected)).max() <= 3


@pytest.mark.parametrize(("mode", "channels", "space"), [("L", 1, b"GRAY"), ("RGB", 3, b"RGB ")])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_profiles_that_fit_and_that_do_not(tmp_path, mode, channels, space, suffix):
    path = tmp_path / f"a{suffix}"
    for name in (b"GRAY", b"RGB ", b"Lab "):
        profile = SRGB[:16] + name + SRGB[20:]
        Image.new(mode, (8, 8), 90 if mode == "L" else (90, 90, 90)).save(path, icc_profile=profile)
        picture = read_image(path)
        assert picture.color.shape == (8, 8, channels)
        assert picture.metadata.icc_profile == (profile if name == space else None)
        assert bool(picture.notes) == (name != space)


@pytest.mark.parametrize(
    "xmp",
    [
        b'<d tiff:Orientation="6" a="6"/>',
        b"<d tiff:Orientation = '6'/>",
        b"<d><tiff:Orientation>6</tiff:Orientation></d>",
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_orientation_of_xmp_is_reset(xmp, file_format):
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture = Picture(
        color=np.zeros((6, 9, 3), np.uint8), metadata=Metadata(xmp=xmp, exif=exif.tobytes())
    )
    write_image(stream, picture, file_format=file_format)
    stream.seek(0)
    found = read_image(stream)
    assert found.color.shape == (9, 6, 3)
    assert found.metadata.xmp == xmp.replace(b"6", b"1", 1)
    assert b"Orientation" in (found.metadata.xmp or b"")


# ------------------------------------------------------------------------------------- sources


def test_standard_input(tmp_path):
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "a.png")
    script = """
import sys
from allosr2.imaging.io import Limits, read_image
print(read_image(sys.stdin.buffer).color.shape)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script],
        stdin=(tmp_path / "a.png").open("rb"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == "(40, 50, 1)\n"
    assert finished.stderr == ""


def test_a_stream_is_read_no_further_than_allowed():
    class Endless(io.RawIOBase):
        name = "<stdin>"
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return bytes(size)

    stream = Endless()
    with pytest.raises(ImageError, match=r"<stdin> has more than 3 megabytes.*--max-megabytes"):
        read_image(stream, Limits(bytes=3_000_000))
    assert stream.given == 3_000_001
    with pytest.raises(ImageError, match="is empty"):
        read_image(io.BytesIO(b""))


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr("allosr2.imaging.png.check_sums", fail)
    with pytest.raises(ImageError, match="does not fit into memory"):
        read_image(tmp_path / "a.png")


def test_read_rgb(tmp_path):
    Image.fromarray(DEEP[..., 0]).save(tmp_path / "a.png")
    expected = np.rint(DEEP[..., :1] / 257).astype(np.uint8).repeat(3, axis=2)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), expected)
    with (tmp_path / "a.png").open("rb") as stream:
        np.testing.assert_array_equal(read_rgb(stream), expected)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_is_of_the_upright_picture(tmp_path: Path, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (20, 12)).save(tmp_path / f"a{suffix}", exif=exif)
    size = read_size(tmp_path / f"a{suffix}")
    assert size == ((20, 12) if orientation == 6 else (12, 20))
    assert read_image(tmp_path / f"a{suffix}").color.shape[:2] == size


# ------------------------------------------------------------------ colors said without a profile

OTHER = ("taken for sRGB: it says without a profile that it is something else",)


@pytest.mark.parametrize(
    ("name", "content", "notes"),
    [
        (b"gAMA", struct.pack(">I", 45455), ()),
        (b"gAMA", struct.pack(">I", 100_000), OTHER),  # linear
        (b"cICP", bytes([1, 13, 0, 1]), ()),
        (b"cICP", bytes([12, 13, 0, 1]), OTHER),  # Display P3
        (b"cICP", bytes([9, 16, 0, 1]), OTHER),  # BT.2100 PQ
    ],
)
def test_other_colors_of_a_png_are_noted(tmp_path, name, content, notes):
    path = tmp_path / "a.png"
    Image.fromarray((DEEP[..., :3] >> 8).astype(np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + png_chunk(name, content) + whole[33:])
    assert read_image(path).notes == notes
    path.write_bytes(whole[:33] + png_chunk(b"iCCP", b"x\0\0" + zlib.compress(SRGB)) + whole[33:])
    assert read_image(path).notes == ()


@pytest.mark.parametrize(("codes", "notes"), [((1, 13), ()), ((12, 13), OTHER), ((9, 16), OTHER)])
def test_other_colors_of_an_avif_are_noted(tmp_path, codes, notes):
    stream = io.BytesIO()
    Image.fromarray((DEEP[..., :3] >> 8).astype(np.uint8)).save(stream, "AVIF")
    content = bytearray(stream.getvalue())
    at = content.index(b"colrnclx") + 8
    content[at : at + 4] = struct.pack(">2H", *codes)
    (tmp_path / "a.avif").write_bytes(content)
    assert read_image(tmp_path / "a.avif").notes == notes
