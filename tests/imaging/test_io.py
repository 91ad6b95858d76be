"""Files and arrays, in and out, against Pillow's own encoders, palettes and transposition."""

import errno
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps

from allosr2.errors import ImageError
from allosr2.imaging import io as io_module
from allosr2.imaging.io import (
    Limits,
    check_target,
    find_images,
    image_from_any,
    read_image,
    read_rgb,
    read_size,
    to_array,
    write_image,
)
from allosr2.imaging.picture import Metadata, Picture
from allosr2.storage import PARTIAL

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def color() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 37, 3), dtype=np.uint8)


def exif_block(**tags: object) -> bytes:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[ExifTags.Base[name]] = value
    return exif.tobytes()


def assert_one_line(error: pytest.ExceptionInfo[ImageError], path: Path) -> None:
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    assert ";" in message  # what and where; what to do


# ---------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp"])
def test_lossless_formats_return_the_written_values(tmp_path, color, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(color).save(path, lossless=True)
    picture = read_image(path)
    image, metadata = picture.color, picture.metadata
    np.testing.assert_array_equal(image, color)
    assert image.dtype == np.uint8
    assert metadata == Metadata()
    assert (picture.alpha, picture.notes) == (None, ())


def test_content_counts_not_the_suffix(tmp_path, color):
    path = tmp_path / "photo.png"
    Image.fromarray(color).save(path, "BMP")
    np.testing.assert_array_equal(read_image(path).color, color)


def test_grey_and_bilevel(tmp_path, color):
    gray = color[..., 0]
    Image.fromarray(gray).save(tmp_path / "l.png")
    np.testing.assert_array_equal(read_image(tmp_path / "l.png").color, gray[..., None])
    Image.fromarray(gray > 127).save(tmp_path / "1.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "1.png").color, np.where(gray > 127, 255, 0)[..., None]
    )


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_stays(tmp_path, suffix):
    gray = np.array([[0, 1, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    Image.fromarray(gray).save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}").color
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, gray[..., None])
    rounded = np.rint(gray / 257).astype(np.uint8)
    np.testing.assert_array_equal(read_rgb(tmp_path / f"a{suffix}"), np.dstack([rounded] * 3))


def test_palette_with_and_without_transparency(tmp_path):
    indices = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)
    palette = np.array([[255, 0, 0], [10, 20, 30], [0, 0, 255]], dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "keyed.png", transparency=bytes([255, 7, 0]))
    picture = read_image(tmp_path / "plain.png")
    colors = picture.color
    np.testing.assert_array_equal(colors, palette[indices])
    assert picture.alpha is None
    picture = read_image(tmp_path / "keyed.png")
    colors = picture.color
    np.testing.assert_array_equal(colors, palette[indices])
    np.testing.assert_array_equal(picture.alpha, np.array([255, 7, 0])[indices])


def test_rgba_and_grey_alpha(tmp_path, color):
    alpha = color[..., 1]
    Image.fromarray(np.dstack([color, alpha])).save(tmp_path / "rgba.png")
    picture = read_image(tmp_path / "rgba.png")
    image = picture.color
    np.testing.assert_array_equal(image, color)
    np.testing.assert_array_equal(picture.alpha, alpha)
    Image.merge("LA", [Image.fromarray(color[..., 0]), Image.fromarray(alpha)]).save(
        tmp_path / "la.png"
    )
    picture = read_image(tmp_path / "la.png")
    image = picture.color
    np.testing.assert_array_equal(image, color[..., :1])
    np.testing.assert_array_equal(picture.alpha, alpha)


def test_transparent_16_bit_grey(tmp_path):
    gray = np.array([[0, 257, 514]], dtype=np.uint16)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 3, 1, 16, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", 257)),
        (b"IDAT", zlib.compress(b"\0" + gray.astype(">u2").tobytes())),
        (b"IEND", b""),
    ]
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )
    picture = read_image(path)
    image = picture.color
    np.testing.assert_array_equal(image[0, :, 0], [0, 257, 514])
    np.testing.assert_array_equal(picture.alpha, [[65535, 0, 65535]])


def test_cmyk_becomes_rgb_and_loses_its_profile(tmp_path):
    profile = bytearray(SRGB)
    profile[16:20] = b"CMYK"
    ink = np.zeros((2, 4, 4), dtype=np.uint8)
    ink[:, 0, 0] = ink[:, 1, 1] = ink[:, 2, 2] = ink[:, 3, 3] = 255
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.tif", icc_profile=bytes(profile))
    picture = read_image(tmp_path / "a.tif")
    image, metadata = picture.color, picture.metadata
    cyan, magenta, yellow, black = [0, 255, 255], [255, 0, 255], [255, 255, 0], [0, 0, 0]
    np.testing.assert_array_equal(image[0], [cyan, magenta, yellow, black])
    assert metadata.icc_profile is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_exactly_once(tmp_path, suffix, orientation):
    # Large flat corners, so that JPEG keeps them apart.
    stored = np.zeros((32, 48, 3), dtype=np.uint8)
    stored[:16, :16] = [255, 0, 0]
    stored[:16, 32:] = [0, 255, 0]
    stored[16:, :16] = [0, 0, 255]
    source, copy = tmp_path / f"source{suffix}", tmp_path / f"copy{suffix}"
    Image.fromarray(stored).save(source, exif=exif_block(Orientation=orientation, Make="Camera"))
    with Image.open(source) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    picture = read_image(source)
    image = picture.color
    np.testing.assert_array_equal(image, expected)
    write_image(copy, picture)
    with Image.open(copy) as opened:
        assert opened.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert opened.getexif()[ExifTags.Base.Make] == "Camera"
    assert np.abs(read_image(copy).color.astype(int) - image).max() <= (
        20 if suffix == ".jpg" else 0
    )


def test_exif_of_a_tiff_carries_no_pixel_layout(tmp_path, color):
    path = tmp_path / "a.tif"
    tags = {ExifTags.Base.Artist: "Someone", ExifTags.Base.Predictor: 2}
    Image.fromarray(color).save(path, compression="tiff_lzw", tiffinfo=tags)
    metadata = read_image(path).metadata
    exif = Image.Exif()
    exif.load(metadata.exif)
    assert exif[ExifTags.Base.Artist] == "Someone"
    assert set(exif) == {ExifTags.Base.Artist}
    enlarged = Picture(color=np.repeat(color, 4, axis=0), metadata=metadata)
    write_image(tmp_path / "b.tif", enlarged)
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif").color, np.repeat(color, 4, axis=0))


def test_exif_of_a_camera_tells_no_size(tmp_path, color):
    """PixelXDimension and its like would be wrong of the enlarged picture; the rest stays."""
    path = tmp_path / "camera.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    details = exif.get_ifd(ExifTags.IFD.Exif)
    details |= {
        ExifTags.Base.ExifImageWidth: 4000,
        ExifTags.Base.ExifImageHeight: 3000,
        ExifTags.Base.ISOSpeedRatings: 200,
    }
    Image.fromarray(color).save(path, exif=exif)
    picture = read_image(path)
    write_image(tmp_path / "out.jpg", picture)
    with Image.open(tmp_path / "out.jpg") as opened:
        found = opened.getexif()
        assert found[ExifTags.Base.Make] == "Camera"
        assert dict(found.get_ifd(ExifTags.IFD.Exif)) == {ExifTags.Base.ISOSpeedRatings: 200}


def test_damaged_exif_is_left_out(tmp_path, color):
    path = tmp_path / "a.jpg"
    Image.fromarray(color).save(path, exif=b"Exif\0\0II*\0nonsense that is no directory")
    picture = read_image(path)
    image, metadata = picture.color, picture.metadata
    assert image.shape == color.shape
    assert metadata.exif is None


def test_first_picture_of_a_camera_jpeg_with_previews(tmp_path, color):
    photograph = Image.fromarray(np.full((40, 60, 3), 200, np.uint8))
    preview = Image.fromarray(np.zeros((10, 15, 3), np.uint8))
    photograph.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO"
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").color, 200)


def test_one_pixel_and_thin_images(tmp_path):
    for shape in [(1, 1, 3), (1, 50, 3), (50, 1, 3)]:
        write_image(tmp_path / "a.png", Picture(color=np.full(shape, 9, np.uint8)))
        assert read_image(tmp_path / "a.png").color.shape == shape


# ------------------------------------------------------------------------- reading: refusals


def test_paths_that_are_no_files(tmp_path):
    for path, words in [(tmp_path / "no.png", "does not exist"), (tmp_path, "is a folder")]:
        with pytest.raises(ImageError, match=words) as error:
            read_image(path)
        assert_one_line(error, path)


def test_special_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no regular file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.png", b"", "is empty"),
        ("a.png", b"just some text, no picture\n" * 9, "no readable image"),
        ("a.gif", None, "no readable image"),
    ],
)
def test_files_that_are_no_images(tmp_path, color, name, content, words):
    path = tmp_path / name
    if content is None:
        Image.fromarray(color).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=words) as error:
        read_image(path)
    assert_one_line(error, path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    stream = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    picture.save(stream, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:]))
    whole, path = stream.getvalue(), tmp_path / f"a{suffix}"
    for fraction in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * fraction)])
        with pytest.raises(ImageError) as error:
            read_image(path)
        assert_one_line(error, path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_damaged_bytes_give_an_image_or_an_image_error(tmp_path, color, file_format):
    generator = np.random.default_rng(1)
    stream = io.BytesIO()
    Image.fromarray(color).save(stream, file_format, exif=exif_block(Orientation=6, Make="x"))
    whole, path = np.frombuffer(stream.getvalue(), np.uint8), tmp_path / "a"
    messages: list[str] = []
    for _ in range(60):
        damaged = whole.copy()
        places = generator.integers(0, min(len(whole), 300), 4)
        damaged[places] = generator.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            image = read_image(path).color
        except ImageError as error:
            messages.append(str(error))
        else:
            assert image.dtype == np.uint8
            assert image.shape[2] in (1, 3)
    assert messages
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".avif"])
def test_the_first_of_several_frames(tmp_path, color, suffix):
    path = tmp_path / f"a{suffix}"
    frames = [Image.fromarray(np.full_like(color, level)) for level in (200, 90, 30)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    picture = read_image(path)
    assert np.abs(picture.color.astype(int) - 200).max() <= 2
    assert picture.notes == ("the first of 3 frames",)


def bmp_header(width: int, height: int) -> bytes:
    head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.filterwarnings("error")
def test_decompression_bombs_are_refused_from_the_header(tmp_path):
    path = tmp_path / "a.bmp"
    for width, height in [(15_000, 10_001), (100_000, 100_000)]:
        path.write_bytes(bmp_header(width, height))
        with pytest.raises(ImageError, match="limit is 150 megapixels") as error:
            read_image(path)
        assert_one_line(error, path)


@pytest.mark.filterwarnings("error")
def test_sizes_that_pillow_warns_of_pass_in_silence(tmp_path):
    # 100 megapixels: Pillow's DecompressionBombWarning, then a file that is merely truncated.
    (tmp_path / "a.bmp").write_bytes(bmp_header(10_000, 10_000))
    before = list(warnings.filters)
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "a.bmp")
    assert warnings.filters == before


def test_limits(tmp_path, color, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(color).save(path)
    pixels, length = color.shape[0] * color.shape[1], path.stat().st_size
    assert read_image(path, Limits(pixels=pixels, bytes=length)).color.shape == color.shape
    assert read_size(path, Limits(pixels=pixels)) == color.shape[:2]
    for limits, flag in [
        (Limits(pixels=pixels - 1), "--max-megapixels"),
        (Limits(bytes=length - 1), "--max-megabytes"),
        (Limits(seconds=0.05), "--max-seconds"),
    ]:
        if limits.seconds < 1:
            monkeypatch.setattr(io_module, "decode", lambda *_: time.sleep(0.5))
        with pytest.raises(ImageError, match=flag) as error:
            read_image(path, limits)
        assert_one_line(error, path)


def test_a_raised_limit_reads_what_pillow_alone_refuses(tmp_path):
    white = pyvips.Image.black(20_000, 10_000, bands=1).invert()
    white.pngsave(str(tmp_path / "a.png"), compression=1)
    white.tiffsave(str(tmp_path / "a.tif"), compression="deflate")
    white.jpegsave(str(tmp_path / "a.jpg"))
    for name in ("a.png", "a.tif", "a.jpg"):
        with pytest.raises(ImageError, match="has 200 megapixels, the limit is 150 megapixels"):
            read_image(tmp_path / name)
        picture = read_image(tmp_path / name, Limits(pixels=200_000_000))
        assert picture.color.shape == (10_000, 20_000, 1)
        assert picture.color.min() == 255


def test_32_bit_samples_are_refused(tmp_path):
    for dtype in (np.float32, np.int32):
        Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / "a.tif")
        with pytest.raises(ImageError, match="32-bit"):
            read_image(tmp_path / "a.tif")


def test_globals_of_pillow_stay(tmp_path, color):
    Image.fromarray(color).save(tmp_path / "a.png")
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)
    write_image(tmp_path / "b.jpg", read_image(tmp_path / "a.png"))
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, ImageFile.MAXBLOCK)
    assert before == after
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


# ---------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".TIFF"])
def test_everything_comes_back(tmp_path, color, suffix):
    path = tmp_path / f"a{suffix}"
    alpha = color[..., 2].copy()
    alpha[0, :5] = 0  # colors under full transparency count too
    exif = exif_block(Make="Camera", Copyright="Someone")
    metadata = Metadata(icc_profile=SRGB, exif=exif)
    write_image(path, Picture(color=color, alpha=alpha, metadata=metadata))
    picture = read_image(path)
    image, metadata = picture.color, picture.metadata
    np.testing.assert_array_equal(image, color)
    np.testing.assert_array_equal(picture.alpha, alpha)
    assert metadata.icc_profile == SRGB
    read_back = Image.Exif()
    read_back.load(metadata.exif)
    assert read_back[ExifTags.Base.Copyright] == "Someone"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_exif_keeps_camera_settings_and_place(tmp_path, color, suffix):
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    Image.fromarray(color).save(tmp_path / "a.jpg", exif=exif)
    write_image(tmp_path / f"b{suffix}", read_image(tmp_path / "a.jpg"))
    # Once more, from each format.
    write_image(tmp_path / "c.png", read_image(tmp_path / f"b{suffix}"))
    with Image.open(tmp_path / "c.png") as opened:
        read_back = opened.getexif()
        assert read_back.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] == 400
        assert read_back.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


def test_jpeg_is_close_and_keeps_its_profile(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    image = np.dstack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(90)))
    write_image(tmp_path / "a.jpg", Picture(color=image, metadata=Metadata(icc_profile=SRGB)))
    picture = read_image(tmp_path / "a.jpg")
    read_back, metadata = picture.color, picture.metadata
    assert np.abs(read_back.astype(int) - image).mean() < 2
    assert metadata.icc_profile == SRGB


def test_alpha_in_formats_without_it(tmp_path, color):
    opaque = np.full(color.shape[:2], 255, np.uint8)
    for suffix in (".jpg", ".bmp"):
        path = tmp_path / f"a{suffix}"
        write_image(path, Picture(color=color, alpha=opaque))
        with pytest.raises(ImageError, match="holds no transparency") as error:
            write_image(path, Picture(color=color, alpha=opaque - 1))
        assert_one_line(error, path)


@pytest.mark.parametrize("name", ["a.gif", "a", "a.png.bak"])
def test_unknown_suffix(tmp_path, color, name):
    with pytest.raises(ImageError, match="unknown suffix") as error:
        write_image(tmp_path / name, Picture(color=color))
    assert_one_line(error, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_sizes_that_a_format_cannot_hold(tmp_path):
    for suffix, length in [(".webp", 16_384), (".jpg", 65_536)]:
        with pytest.raises(ImageError, match=r"use \.png"):
            write_image(tmp_path / f"a{suffix}", Picture(color=np.zeros((1, length, 3), np.uint8)))
    assert not list(tmp_path.iterdir())


def test_missing_folder_and_target_that_is_a_folder(tmp_path, color):
    with pytest.raises(ImageError, match="No such file") as error:
        write_image(tmp_path / "no" / "a.png", Picture(color=color))
    assert_one_line(error, tmp_path / "no" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ImageError):
        write_image(tmp_path / "a.png", Picture(color=color))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="Not a directory"):
        write_image(tmp_path / "file" / "a.png", Picture(color=color))
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.png", "file"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failure_keeps_the_former_file_and_leaves_no_part(tmp_path, color, monkeypatch, failing):
    path = tmp_path / "a.png"
    path.write_bytes(b"former")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full_disk)
    else:
        monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(ImageError, match="No space left") as error:
        write_image(path, Picture(color=color))
    assert_one_line(error, path)
    assert path.read_bytes() == b"former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".avif"])
def test_the_file_is_whole_before_it_is_renamed(tmp_path, color, suffix):
    path, seen = tmp_path / f"a{suffix}", []

    def look(partial):
        assert not path.exists()
        assert PARTIAL.fullmatch(partial.name)
        seen.append((partial.parent, read_image(partial).color.shape))

    write_image(path, Picture(color=color), before_rename=look)
    assert seen == [(tmp_path, color.shape)]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    def fail(_):
        raise KeyboardInterrupt

    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_image(path, Picture(color=255 - color), before_rename=fail)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_suffix_may_name_another_format(tmp_path, color):
    write_image(tmp_path / "a.part", Picture(color=color), file_format="PNG")
    with Image.open(tmp_path / "a.part") as opened:
        assert opened.format == "PNG"
    with pytest.raises(ImageError, match="format GIF is unknown; use one of PNG"):
        check_target(tmp_path / "a.gif", Picture(color=color), "GIF")


def test_interruption_leaves_no_part(tmp_path, color, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "a.png", Picture(color=color))
    assert not list(tmp_path.iterdir())


def test_file_size_limit_of_the_system(tmp_path):
    script = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from allosr2.errors import ImageError
from allosr2.imaging.io import write_image
from allosr2.imaging.picture import Picture
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
for suffix in ("png", "jpg", "webp", "tif", "bmp", "avif"):
    for levels in (noise, noise.astype(np.uint16) * 257):
        try:
            write_image(Path(sys.argv[1]) / f"a.{suffix}", Picture(color=levels))
        except ImageError as error:
            print(suffix, "File too large" in str(error), error, flush=True)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert finished.stderr == ""
    lines = finished.stdout.splitlines()
    assert len(lines) == 12
    assert all(" True " in line for line in lines), lines
    assert not list(tmp_path.iterdir())


def test_interruption_while_encoding(tmp_path, capfd):
    noise = np.random.default_rng(0).integers(0, 256, (4000, 4000, 3), np.uint8)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "a.png", Picture(color=noise))
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().err == ""


def test_permissions_follow_the_umask(tmp_path, color):
    write_image(tmp_path / "a.png", Picture(color=color))
    (tmp_path / "plain").write_bytes(b"")
    modes = {entry.stat().st_mode for entry in tmp_path.iterdir()}
    assert len(modes) == 1


# ---------------------------------------------------------------------------------- folders


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ImageError, match="may not be read; change its permissions"):
        find_images(tmp_path)


def test_find_images(tmp_path):
    names = ["b.PNG", "a.jpeg", "c.webp", "z.tif", ".hidden.png", "notes.txt", "x.png.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.bmp").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "e.png").write_bytes(b"")
    flat = ["a.jpeg", "b.PNG", "c.webp", "z.tif"]
    assert [path.name for path in find_images(tmp_path)] == flat
    deep = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path, recursive=True)]
    assert deep == [*flat[:3], "sub/d.bmp", "z.tif"]
    # A hidden folder that is named on purpose is not hidden.
    assert [path.name for path in find_images(tmp_path / ".cache")] == ["e.png"]
    with pytest.raises(ImageError, match="no folder"):
        find_images(tmp_path / "a.jpeg")


# ---------------------------------------------------------------------------------- arrays


def test_arrays_and_pil_agree(color):
    expected = torch.tensor(color / 255.0, dtype=torch.float32).permute(2, 0, 1)[None]
    rgba = Image.fromarray(np.dstack([color, color[..., 0]]))
    for image in (
        Image.fromarray(color),
        rgba,
        color,
        color.astype(np.uint16) * 257,
        color / 255,
        (color / 255).astype(np.float32),
        color[:, ::-1][:, ::-1],
        expected,
        expected[0],
        expected.double(),
    ):
        tensor = image_from_any(image)
        assert tensor.dtype == torch.float32
        assert tensor.shape == (1, 3, 24, 37)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_grey_array_batch_and_pil_orientation(color):
    gray = image_from_any(color[..., 0])
    np.testing.assert_array_equal(to_array(gray), np.dstack([color[..., 0]] * 3))
    assert image_from_any(torch.rand(5, 3, 4, 6)).shape == (5, 3, 4, 6)
    stream = io.BytesIO()
    Image.fromarray(color).save(stream, "PNG", exif=exif_block(Orientation=6))
    with Image.open(stream) as opened:
        np.testing.assert_array_equal(to_array(image_from_any(opened)), np.rot90(color, -1))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), "shape"),
        (np.zeros((3, 4, 4, 4), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.int64), "dtype int64"),
        (np.full((4, 4, 3), 255.0), "from 255 to 255"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (torch.full((3, 4, 4), -1.0), "from -1"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "divide by 255"),
        (torch.zeros(1, 4, 4), "shape"),
        (torch.zeros(0, 3, 4, 4), "shape"),
        (Image.new("RGB", (0, 4)), "no pixels"),
        (Image.new("F", (4, 4)), "32-bit"),
        ("photo.png", "str is no image"),
    ],
)
def test_what_is_no_picture(image, words):
    with pytest.raises(ImageError, match=words) as error:
        image_from_any(image)
    assert "\n" not in str(error.value)


def test_a_tensor_that_is_given_stays_unchanged():
    given = torch.full((1, 3, 2, 2), 1.0005)
    assert image_from_any(given).max() == 1
    assert given.max() > 1


def test_to_array_rounds_and_clamps():
    levels = torch.tensor([-0.2, 0.0, 0.49, 0.51, 1.49, 254.4, 254.6, 255.0, 300.0]) / 255
    image = levels.expand(1, 3, 1, 9)
    np.testing.assert_array_equal(to_array(image)[0, :, 0], [0, 0, 0, 1, 1, 254, 255, 255, 255])
    every = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    np.testing.assert_array_equal(to_array(image_from_any(every)), every)
    with pytest.raises(ImageError, match="not finite"):
        to_array(torch.full((1, 3, 2, 2), torch.nan))


def test_a_link_is_written_through(tmp_path):
    place, link = tmp_path / "far" / "a.png", tmp_path / "b.png"
    place.parent.mkdir()
    link.symlink_to(place)
    for level in (7, 9):  # it leads nowhere at first
        write_image(link, Picture(color=np.full((2, 3, 1), level, np.uint8)))
        assert link.is_symlink()
        assert np.asarray(Image.open(place)).tolist() == [[level] * 3] * 2
    assert [path.name for path in place.parent.iterdir()] == ["a.png"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: it is no regular file; use - for a pipe"):
        write_image(tmp_path / "a.png", Picture(color=np.zeros((2, 3, 1), np.uint8)))
    assert (tmp_path / "a.png").is_fifo()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_not_written(tmp_path, value):
    levels = np.zeros((2, 3, 3), np.float32)
    levels[1, 1, 1] = value
    with pytest.raises(ImageError, match="holds values that are not finite"):
        write_image(tmp_path / "a.png", Picture(color=levels))
    assert list(tmp_path.iterdir()) == []


def test_names_that_no_disk_holds(tmp_path):
    long = tmp_path / ("a" * 300 + ".png")
    for work in (read_image, read_size):
        with pytest.raises(ImageError, match="cannot be read: File name too long"):
            work(long)
    with pytest.raises(ImageError, match=r"cannot write .*: File name too long"):
        write_image(long, Picture(color=np.zeros((2, 3, 1), np.uint8)))


def test_the_limit_of_bytes_holds_for_headers_too(tmp_path):
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="more than 1e-05 megabytes"):
        read_size(tmp_path / "a.png", Limits(bytes=10))


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(tmp_path, color, monkeypatch, hard_links):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not hard_links:
        monkeypatch.setattr(os, "link", no_links)
    path, link = tmp_path / "a.png", tmp_path / "b.png"
    write_image(path, Picture(color=color), replace=False)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), color)
    assert path.stat().st_nlink == 1
    link.symlink_to(path)
    path.unlink()

    for target in (path, link):  # an empty place, until the picture is whole
        with pytest.raises(ImageError, match="it exists by now; move it away") as error:
            write_image(
                target,
                Picture(color=color),
                replace=False,
                before_rename=lambda _: path.write_bytes(b"theirs"),
            )
        assert_one_line(error, target)
        assert path.read_bytes() == b"theirs"
        path.unlink()
    write_image(link, Picture(color=color), replace=False)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), color)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_folder_that_is_not_made_yet_is_checked_by_the_one_that_will_hold_it(
    tmp_path, color, monkeypatch
):
    picture, asked = Picture(color=color), []
    monkeypatch.setattr(os, "access", lambda folder, _: asked.append(folder) or len(asked) == 1)
    check_target(tmp_path / "new" / "folder" / "a.png", picture)
    with pytest.raises(ImageError, match="Permission denied"):
        check_target(tmp_path / "new" / "a.png", picture)
    assert asked == [tmp_path, tmp_path]

    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file/a.png", "file/new/a.png", "link/a.png", "link/new/a.png"):
        with pytest.raises(ImageError, match="Not a directory"):
            check_target(tmp_path / name, picture)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link"]
