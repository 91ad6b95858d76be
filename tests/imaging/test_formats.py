"""What each format keeps, cell by cell of docs/formats.md, as other readers see it: Pillow and libvips."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import ExifTags, Image, ImageCms

from allosr2.errors import ImageError
from allosr2.imaging.formats import FORMATS, FileFormat, notes_of_writing, sniff
from allosr2.imaging.io import check_target, read_image, write_image
from allosr2.imaging.picture import Metadata, Picture

DOCS = Path(__file__).parents[2] / "docs" / "formats.md"
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a>caf\xc3\xa9</a></x:xmpmeta>'
FULL = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}

every_format = pytest.mark.parametrize("holds", FORMATS.values(), ids=FORMATS)
every_depth = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


def gray_icc() -> bytes:
    """The header of an ICC profile of gray levels, which is all that readers look at here."""
    profile = bytearray(SRGB)
    profile[16:20] = b"GRAY"
    return bytes(profile)


def exif_block() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif.tobytes()


def ramp(channels: int, dtype: type = np.uint8) -> np.ndarray:
    """Smooth `48 h 64 w channels`, so that formats with a loss stay close."""
    y, x = np.indices((48, 64)) / 64
    layers = [
        (0.9 * x + 0.05, 0.6 * y + 0.2, 0.5 * x + 0.3, 0.4 * y + 0.4)[i] for i in range(channels)
    ]
    return np.rint(np.dstack(layers) * FULL[np.dtype(dtype)]).astype(dtype)


def written(tmp_path: Path, holds: FileFormat, picture: Picture) -> Path:
    path = tmp_path / f"a{holds.suffixes[-1]}"
    write_image(path, picture)
    assert sniff(path.read_bytes()) == holds.name
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    return path


# -------------------------------------------------------------------------------- the table


def matrix() -> str:
    """The table of docs/formats.md, out of the table that the code writes by."""
    names = ("format", "suffixes", "bits", "gray", "gray and alpha", "alpha", "ICC", "EXIF", "XMP")
    lines = [" | ".join((*names, "lossless", "largest")), "|".join(["---"] * (len(names) + 2))]

    def length(longest: int | None) -> str:
        return "yes" if longest is None else f"to {longest} bytes" if longest else "no"

    for holds in FORMATS.values():
        area = f", {holds.largest_area / 1e6:.0f} megapixels" if holds.largest_area else ""
        grays = {0: "no", holds.depth: "yes"}
        flags = (holds.gray_alpha, holds.alpha, holds.icc)
        cells = (
            holds.name,
            ", ".join(f"`{suffix}`" for suffix in holds.suffixes),
            "8" if holds.depth == 8 else f"8, {holds.depth}",
            grays.get(holds.gray, f"of {holds.gray} bits"),
            *("yes" if flag else "no" for flag in flags),
            length(holds.exif),
            length(holds.xmp),
            holds.lossless,
            f"{holds.longest_side} px a side{area}",
        )
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def test_the_documented_table_is_the_code_s():
    assert matrix() in DOCS.read_text()


# -------------------------------------------------------------------------------- its cells


@every_format
def test_depth(tmp_path, holds):
    picture = Picture(color=ramp(3, np.uint16))
    path = written(tmp_path, holds, picture)
    found = pyvips.Image.new_from_file(str(path)).numpy() if holds.name != "BMP" else None
    note = (f"16 bits rounded to {holds.depth}: {holds.name} holds no more",)
    assert notes_of_writing(picture, holds.name) == (() if holds.depth == 16 else note)
    if holds.depth == 16:
        np.testing.assert_array_equal(found, picture.color)
    elif holds.depth == 12:
        assert pyvips.Image.new_from_file(str(path)).get("bits-per-sample") == 12
        assert found.dtype == np.uint16
        # Less than half of a level of 8 bits on the average.
        assert np.abs(found.astype(int) - picture.color).mean() < 128
        assert len(np.unique(found[..., 0])) > 256 / 4
    else:
        rounded = np.rint(picture.color / 257)
        assert np.abs(np.asarray(Image.open(path)) - rounded).max() <= (
            6 if holds.name == "JPEG" else 0
        )
    mine = read_image(path)
    assert mine.color.dtype == (np.uint8 if holds.depth == 8 else np.uint16)
    assert np.abs(mine.color / FULL[mine.color.dtype] - picture.color / 65535).max() < 0.03


@every_format
@every_depth
def test_gray(tmp_path, holds, dtype):
    path = written(tmp_path, holds, Picture(color=ramp(1, dtype)))
    stays = holds.gray >= (8 if dtype == np.uint8 else holds.depth)
    with Image.open(path) as opened:
        assert opened.mode in (("L", "I;16") if stays else ("RGB",))
    mine = read_image(path)
    assert mine.metadata == Metadata()  # nothing is made up
    assert mine.color.shape == (48, 64, 1 if stays else 3)
    assert np.abs(mine.color[..., 0] / FULL[mine.color.dtype] - ramp(1)[..., 0] / 255).max() < 0.02


@every_format
@every_depth
def test_gray_and_alpha(tmp_path, holds, dtype):
    if not holds.alpha:
        return
    levels = ramp(2, dtype)
    path = written(tmp_path, holds, Picture(color=levels[..., :1], alpha=levels[..., 1]))
    bands = pyvips.Image.new_from_file(str(path)).bands
    assert bands == (2 if holds.gray_alpha else 4)
    mine = read_image(path)
    assert mine.color.shape[2] == (1 if holds.gray_alpha else 3)
    for found, expected in ((mine.color[..., 0], levels[..., 0]), (mine.alpha, levels[..., 1])):
        assert np.abs(found / FULL[found.dtype] - expected / FULL[levels.dtype]).max() < 0.02


@every_format
@every_depth
def test_alpha(tmp_path, holds, dtype):
    levels = ramp(4, dtype)
    picture = Picture(color=levels[..., :3], alpha=levels[..., 3])
    if not holds.alpha:
        with pytest.raises(ImageError, match="holds no transparency"):
            write_image(tmp_path / f"a{holds.suffixes[0]}", picture)
        assert not list(tmp_path.iterdir())
        return
    path = written(tmp_path, holds, picture)
    with Image.open(path) as opened:
        assert opened.mode == "RGBA"
        if dtype == np.uint8:
            alpha = np.asarray(opened)[..., 3]
            np.testing.assert_allclose(alpha, levels[..., 3], atol=0 if holds.name != "AVIF" else 3)


@every_format
@every_depth
@pytest.mark.parametrize("channels", [1, 3])
def test_profile(tmp_path, holds, dtype, channels):
    profile = SRGB if channels == 3 else gray_icc()
    picture = Picture(color=ramp(channels, dtype), metadata=Metadata(icc_profile=profile))
    path = written(tmp_path, holds, picture)
    stays = holds.gray >= (8 if dtype == np.uint8 else holds.depth)
    kept = holds.icc and (channels == 3 or stays)
    with Image.open(path) as opened:
        assert opened.info.get("icc_profile") == (profile if kept else None)
    assert read_image(path).metadata.icc_profile == (profile if kept else None)
    notes = [note for note in notes_of_writing(picture, holds.name) if "ICC" in note]
    reason = "no such gray" if holds.icc else "none"
    assert notes == ([] if kept else [f"ICC profile left out: {holds.name} holds {reason}"])


@every_format
@every_depth
def test_exif(tmp_path, holds, dtype):
    picture = Picture(color=ramp(3, dtype), metadata=Metadata(exif=exif_block()))
    path = written(tmp_path, holds, picture)
    noted = any("EXIF left out" in note for note in notes_of_writing(picture, holds.name))
    assert noted == (holds.exif == 0)
    for source in (path, written(tmp_path, holds, read_image(path))):
        with Image.open(source) as opened:
            found = opened.getexif()
            if holds.exif == 0:
                assert not found
                continue
            assert found[ExifTags.Base.Make] == "Camera"
            details = found.get_ifd(ExifTags.IFD.Exif)
            assert details[ExifTags.Base.ISOSpeedRatings] == 400
            assert found.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"


@every_format
@every_depth
def test_xmp(tmp_path, holds, dtype):
    picture = Picture(color=ramp(3, dtype), metadata=Metadata(xmp=XMP))
    path = written(tmp_path, holds, picture)
    noted = any("XMP left out" in note for note in notes_of_writing(picture, holds.name))
    assert noted == (holds.xmp == 0)
    expected = None if holds.xmp == 0 else XMP
    with Image.open(path) as opened:
        opened.load()
        assert opened.info.get("xmp") == expected
    assert read_image(path).metadata.xmp == expected


@every_format
def test_longest_blocks(tmp_path, holds):
    """Blocks of up to the length that the table says are kept, longer ones left out and noted."""
    for length, kept in ((60_000, True), (70_000, holds.exif is None)):
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = "x" * length
        metadata = Metadata(exif=exif.tobytes(), xmp=XMP.replace(b"caf", b"c" * length))
        picture = Picture(color=ramp(3), metadata=metadata)
        path = written(tmp_path, holds, picture)
        found = read_image(path).metadata
        kept_here = kept and holds.exif != 0
        assert (found.xmp == metadata.xmp) == kept_here
        assert ((found.exif or b"") > b"" and len(found.exif or b"") >= length) == kept_here
        assert len(notes_of_writing(picture, holds.name)) == (0 if kept_here else 2)


@every_format
def test_lossless(tmp_path, holds):
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (24, 37, 3), dtype=np.uint8)
    alpha = rng.integers(0, 256, (24, 37), dtype=np.uint8) if holds.alpha else None
    path = written(tmp_path, holds, Picture(color=color, alpha=alpha))
    with Image.open(path) as opened:
        same = np.array_equal(np.asarray(opened)[..., :3], color)
    assert same == (holds.lossless != "never")


@every_format
def test_quality(tmp_path, holds):
    picture = Picture(color=np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    sizes: list[int] = []
    for quality in (30, 100, None):
        path = tmp_path / f"a{holds.suffixes[0]}"
        write_image(path, picture, quality=quality)
        sizes.append(path.stat().st_size)
    if holds.lossless == "always":
        assert len(set(sizes)) == 1
    else:
        assert sizes[0] < sizes[1]
    for wrong in (0, 101):
        with pytest.raises(ImageError, match="from 1 to 100"):
            write_image(tmp_path / "b.png", picture, quality=wrong)


@every_format
def test_largest(tmp_path, holds):
    picture, path = Picture(color=ramp(3)), tmp_path / f"a{holds.suffixes[0]}"
    check_target(path, picture, size=(1, holds.longest_side))
    sizes = [(1, holds.longest_side + 1), (holds.longest_side + 1, 1)]
    if holds.largest_area:
        side = int(holds.largest_area**0.5)
        check_target(path, picture, size=(side, side))
        sizes.append((side + 1, side + 1))
    for size in sizes:
        with pytest.raises(ImageError, match=f"too large for {holds.name}"):
            check_target(path, picture, size=size)


@every_format
def test_stream(holds):
    """A stream gets the same bytes that a file would."""
    picture = dataclasses.replace(read_back(holds), format=holds.name)
    stream = io.BytesIO()
    write_image(stream, picture)
    stream.seek(0)
    again = read_image(stream)
    assert again.format == holds.name
    assert again.color.shape == picture.color.shape
    with pytest.raises(ImageError, match="format GIF is unknown"):
        write_image(stream, picture, file_format="GIF")


def read_back(holds: FileFormat) -> Picture:
    stream = io.BytesIO()
    write_image(stream, Picture(color=ramp(3)), file_format=holds.name)
    stream.seek(0)
    return read_image(stream)


def test_floats_are_written_as_deep_as_the_format_goes(tmp_path):
    levels = np.array([[[0.0, 0.5, 1.0], [1e-5, 2e-5, 1.5]]], np.float32)
    write_image(tmp_path / "a.png", Picture(color=levels))
    expected = np.rint(levels.clip(0, 1) * 65535)
    found = pyvips.Image.new_from_file(str(tmp_path / "a.png")).numpy()
    np.testing.assert_array_equal(found, expected)
