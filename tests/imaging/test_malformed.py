"""Damaged files: refused in one line or read whole, without a crash, a hang, or a word on stderr."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from imaging.malformed import mutations, png_chunk, survey, ten_files
from PIL import Image

from allosr2.errors import ImageError
from allosr2.imaging.decoding import decode
from allosr2.imaging.io import read_image
from allosr2.imaging.limits import Limits


def test_mutations(tmp_path):
    found, wrong = survey(mutations(300), tmp_path)
    assert wrong == []
    assert found.total() == 300
    assert min(found["picture"], found["refused"]) > 30


@pytest.mark.parametrize("name", ten_files())
def test_every_cut(name):
    whole = ten_files()[name]
    expected = decode(whole, Limits(), name).color
    step = max(1, len(whole) // 150)
    for end in [*range(0, len(whole), step), *range(len(whole) - 20, len(whole))]:
        try:
            found = decode(whole[:end], Limits(), name)
        except ImageError:
            continue
        np.testing.assert_array_equal(found.color, expected)


# ---------------------------------------------------------------------------------------- PNG


def png(
    *,
    signature: bytes = b"\x89PNG\r\n\x1a\n",
    depth: int = 8,
    color_type: int = 2,
    header_sum: int | None = None,
    pixels: bytes | None = None,
    pixels_sum: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A PNG file of 32 x 32 pixels, whole but for what is given."""
    header = struct.pack(">IIBBBBB", 32, 32, depth, color_type, 0, 0, 0)
    packed = zlib.compress(bytes(32 * 97)) if pixels is None else pixels
    body = png_chunk(b"IDAT", packed, pixels_sum) if packed else b""
    return (
        signature + png_chunk(b"IHDR", header, header_sum) + extra + body + png_chunk(b"IEND", b"")
    )


# The defects of PngSuite's corrupted files (Willem van Schaik), each by the name of its file.
PNG_SUITE = {
    "xs1n0g01": png(signature=b"\x88PNG\r\n\x1a\n"),
    "xs2n0g01": png(signature=b"\x89MNG\r\n\x1a\n"),
    "xs4n0g01": png(signature=b"\x89PNF\r\n\x1a\n"),
    "xs7n0g01": png(signature=b"\x89PNG\r\n\x1b\n"),
    "xcrn0g04": png().replace(b"\r\n", b"\r\r\n"),  # carriage returns added
    "xlfn0g04": png().replace(b"\r\n", b"\n"),  # line feeds added, carriage returns lost
    "xhdn0g08": png(header_sum=0x12345678),
    "xc1n0g08": png(color_type=1),
    "xc9n2c08": png(color_type=9),
    "xd0n2c08": png(depth=0),
    "xd3n2c08": png(depth=3),
    "xd9n2c08": png(depth=99),
    "xdtn0g01": png(pixels=b""),  # no pixels
    "xcsn0g01": png(pixels_sum=0x12345678),
}


@pytest.mark.parametrize("name", PNG_SUITE)
def test_corrupted_files_of_png_suite(tmp_path, name):
    path = tmp_path / f"{name}.png"
    path.write_bytes(PNG_SUITE[name])
    with pytest.raises(ImageError, match=r"; ") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_pixels_that_end_early_inside_whole_chunks():
    decode(png(), Limits(), "a.png")
    packed = zlib.compress(bytes(32 * 97))
    for pixels in (zlib.compress(bytes(31 * 97)), packed[:-8], packed[:-1]):
        with pytest.raises(ImageError, match=r"a\.png cannot be decoded"):
            decode(png(pixels=pixels), Limits(), "a.png")


def test_bombs_beside_the_pixels_are_left_out():
    bomb = zlib.compress(bytes(2**25))
    extra = png_chunk(b"iCCP", b"x\0\0" + bomb) + png_chunk(
        b"zTXt", b"Raw profile type exif\0\0" + bomb
    )
    extra += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)
    picture = decode(png(extra=extra), Limits(), "a.png")
    assert picture.color.shape == (32, 32, 3)
    assert (picture.metadata.icc_profile, picture.metadata.xmp) == (None, None)


# --------------------------------------------------------------------------------------- JPEG


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 100}, {"subsampling": 0}])
def test_a_jpeg_scan_that_ends_early_with_an_end_marker(options):
    """libjpeg merely warns of these, and paints the rest gray."""
    stream = io.BytesIO()
    photograph = Image.open(Path(skimage.data.__file__).with_name("coffee.png")).convert("RGB")
    photograph.save(stream, "JPEG", **options)
    whole = stream.getvalue()
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(ImageError, match="its scan ends early"):
            decode(whole[: int(len(whole) * part)] + b"\xff\xd9", Limits(), "a.jpg")


def test_bytes_between_the_segments_of_a_jpeg_are_passed_over():
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 77, np.uint8)).save(stream, "JPEG")
    whole = stream.getvalue()
    picture = decode(whole[:20] + b"\0\0junk" + whole[20:], Limits(), "a.jpg")
    assert np.abs(picture.color.astype(int) - 77).max() <= 1


# ------------------------------------------------------------------------------------- threads


def test_threads_decode_at_once_and_leave_the_warnings_as_they_were():
    files = ten_files()
    expected = {name: decode(content, Limits(), name).color for name, content in files.items()}
    before = list(warnings.filters)
    wrong: list[str] = []

    def work() -> None:
        for name, content in files.items():
            if not np.array_equal(decode(content, Limits(), name).color, expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert list(warnings.filters) == before
