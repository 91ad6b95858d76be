"""Damaged files: refused in one line or read whole, without a crash, a hang, or a word on stderr."""

from __future__ import annotations

import io
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from imaging.malformed import difference_of, mutations, png_chunk, small_files, survey
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


@pytest.mark.parametrize("name", small_files())
def test_every_cut(name):
    whole = small_files()[name]
    expected = decode(whole, Limits(), name)
    step = max(1, len(whole) // 150)
    for end in [*range(0, len(whole), step), *range(len(whole) - 20, len(whole))]:
        try:
            found = decode(whole[:end], Limits(), name)
        except ImageError:
            continue
        assert difference_of(found, expected) == ""


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
        with pytest.raises(ImageError, match=r"a\.png cannot be decoded \((?!unable to call)"):
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


PEAK = """
import resource, sys
from pathlib import Path
from allosr2.imaging.io import read_image
for name in sys.argv[1:]:
    read_image(Path(name))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_many_texts_beside_the_pixels_take_no_memory(tmp_path):
    """Each is 16 MB unpacked, and 50 times as much together."""
    packed = zlib.compress(b"x" * (2**24 - 100))
    texts = [b"Raw profile type %d\0\0" % number + packed for number in range(25)]
    extra = b"".join(png_chunk(b"zTXt", text) for text in (*texts, *[b"Comment\0\0" + packed] * 25))
    files = tmp_path / "plain.png", tmp_path / "texts.png"
    for path, content in zip(files, (png(), png(extra=extra)), strict=True):
        path.write_bytes(content)
    # in a process of its own, whose peak nothing else has raised
    peaks = subprocess.check_output([sys.executable, "-c", PEAK, *map(str, files)]).split()
    assert int(peaks[1]) - int(peaks[0]) < 2**27


@pytest.mark.parametrize("orientation", [b"<tiff:Orientation ", b"tiff:Orientation =      "])
def test_xmp_that_never_closes_takes_no_time(orientation):
    """Half an hour, if each were searched to the end; regular expressions cannot be interrupted."""
    packet = orientation * 200_000
    extra = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet))
    picture = decode(png(extra=extra), Limits(), "a.png")
    assert picture.metadata.xmp == packet


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


def test_a_jpeg_without_some_of_its_restart_intervals():
    stream = io.BytesIO()
    photograph = Image.open(Path(skimage.data.__file__).with_name("coffee.png")).convert("RGB")
    photograph.resize((300, 300)).save(stream, "JPEG", restart_marker_rows=1)
    whole = stream.getvalue()
    assert decode(whole, Limits(), "a.jpg").color.shape == (300, 300, 3)
    starts = [match.start() for match in re.finditer(rb"\xff[\xd0-\xd7]", whole)]
    for damaged in (
        whole[: starts[0]] + b"\xff\xd9",
        whole[: starts[3]] + whole[starts[4] :],
        whole[: starts[3]] + whole[starts[11] :],
        whole[: starts[5] + 40] + bytes(64),  # a download that was cut, padded with zeros
    ):
        with pytest.raises(ImageError, match=r"its scan (ends early|is damaged)"):
            decode(damaged, Limits(), "a.jpg")


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}])
def test_bytes_between_the_segments_of_a_jpeg_are_passed_over(options):
    stream = io.BytesIO()
    y, x = np.indices((40, 32), np.uint8) * 6
    Image.fromarray(np.dstack([x, y, x])).save(stream, "JPEG", **options)
    whole = stream.getvalue()
    expected = np.asarray(Image.open(stream))
    behind = whole[:-2] + b"\0\0\0\xff\xd9"
    for content in (
        whole[:20] + b"\0\0junk" + whole[20:],
        behind,
        behind[:20] + b"\0\0junk" + behind[20:],
        behind + whole,  # another picture behind the first
    ):
        np.testing.assert_array_equal(decode(content, Limits(), "a.jpg").color, expected)


def test_a_thumbnail_is_not_taken_for_the_picture():
    """It has a scan and an end marker of its own, before the picture's."""
    small, stream = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(small, "JPEG")
    thumbnail = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + small.getvalue()
    y, x = np.indices((40, 32), np.uint8) * 6
    Image.fromarray(np.dstack([x, y, x])).save(stream, "JPEG", progressive=True, exif=thumbnail)
    whole = stream.getvalue()
    found = decode(whole[:-2] + bytes(16) + whole[-2:], Limits(), "a.jpg").color
    np.testing.assert_array_equal(found, np.asarray(Image.open(stream)))


def test_a_warning_behind_which_others_may_be_is_said():
    stream = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(stream, "JPEG")
    content = bytearray(stream.getvalue())
    scan = content.index(b"\xff\xda")
    length = int.from_bytes(content[scan + 2 : scan + 4], "big")
    content[scan + 2 + length - 3 : scan + 2 + length] = bytes(3)  # spectral selection, T.81 B.2.3
    (note,) = decode(bytes(content), Limits(), "a.jpg").notes
    assert "look whether the picture is whole" in note


def test_junk_does_not_hide_that_a_scan_ends_early():
    stream = io.BytesIO()
    photograph = Image.open(Path(skimage.data.__file__).with_name("coffee.png")).convert("RGB")
    photograph.save(stream, "JPEG")
    content = stream.getvalue()
    content = content[:20] + b"\0\0junk" + content[20 : len(content) // 2] + b"\xff\xd9"
    with pytest.raises(ImageError, match="its scan ends early"):
        decode(content, Limits(), "a.jpg")


# ---------------------------------------------------------------------------- valid, and not read


@pytest.mark.parametrize(
    ("file_format", "place", "value", "what"),
    [
        ("BMP", b"", 4, "Unsupported BMP compression"),  # a JPEG inside
        ("JPEG", b"\xff\xc0", 12, "12-bit"),
    ],
)
def test_variants_are_not_called_damaged(file_format, place, value, what):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, file_format)
    content = bytearray(stream.getvalue())
    content[content.index(place) + 4 if place else 30] = value
    with pytest.raises(ImageError, match=rf"^a uses a variant of its format \(.*{what}.*not read"):
        decode(bytes(content), Limits(), "a")


# ------------------------------------------------------------------------------------- threads


def test_threads_decode_at_once_and_leave_the_warnings_as_they_were():
    files = small_files()
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
