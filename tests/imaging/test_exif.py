"""EXIF, byte by byte: against blocks built by hand, Pillow, tifffile and a reader of its own."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from allosr2.imaging import exif, metadata, tiff
from allosr2.imaging.io import read_image, write_image
from allosr2.imaging.picture import Metadata, Picture

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, SRATIONAL, FLOAT, DOUBLE, IFD = (
    1, 2, 3, 4, 5, 7, 10, 11, 12, 13,
)  # fmt: skip
LONG8, SLONG8, IFD8, UTF8 = 16, 17, 18, 129
SIZES = {BYTE: 1, ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, 6: 1, UNDEFINED: 1, 8: 2, 9: 4}
SIZES |= {SRATIONAL: 8, FLOAT: 4, DOUBLE: 8, IFD: 4, LONG8: 8, SLONG8: 8, IFD8: 8, UTF8: 1}

MAKE, ORIENTATION, COPYRIGHT = 0x010F, 0x0112, 0x8298
EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005
OWNER = "© Jürgen 日本".encode() + b"\0"

Value = tuple[int, bytes]
Tree = dict[int, "Value | Tree"]

both_orders = pytest.mark.parametrize("order", "<>")


# ------------------------------------------------------------- blocks, and a reader of its own


def packed(order: str, letters: str, *numbers: float) -> bytes:
    return struct.pack(order + letters, *numbers)


def camera(order: str = "<") -> Tree:
    """What a camera writes, of every type, and its owner in UTF-8."""
    return {
        MAKE: (ASCII, b"Camera\0"),
        0x011A: (RATIONAL, packed(order, "2I", 300, 1)),
        COPYRIGHT: (ASCII, OWNER),
        EXIF: {
            0x829A: (RATIONAL, packed(order, "2I", 1, 250)),
            0x8827: (SHORT, packed(order, "H", 400)),
            0x9000: (UNDEFINED, b"0300"),
            0x9101: (UNDEFINED, b"\1\2\3\0"),
            0x9204: (SRATIONAL, packed(order, "2i", 1, 3)),
            0x9214: (SHORT, packed(order, "4H", 9, 8, 7, 6)),
            0x927C: (UNDEFINED, b"MAKER\0\x80\xff odd"),
            0x9286: (UNDEFINED, b"UNICODE\0\x65\xe5\x67\x2c"),
            INTEROP: {1: (ASCII, b"R98\0"), 2: (UNDEFINED, b"0100")},
            0xA300: (UNDEFINED, b"\3"),
            0xA301: (UNDEFINED, b"\1"),
        },
        GPS: {
            0: (BYTE, b"\2\3\0\0"),
            1: (ASCII, b"N\0"),
            2: (RATIONAL, packed(order, "6I", 48, 1, 8, 1, 1234, 100)),
        },
        0x9C9B: (BYTE, "日本\0".encode("utf-16-le")),
    }


def rare(order: str = "<") -> Tree:
    """Types that libexif, and so libvips, drops."""
    return {
        0xFDE8: (FLOAT, packed(order, "2f", 1.5, -2.25)),
        0xFDE9: (DOUBLE, packed(order, "d", 0.1)),
        0xFDEA: (UTF8, OWNER),
        0xFDEB: (6, b"\xff"),
        0xFDEC: (8, packed(order, "3h", -1, 2, -3)),
        0xFDED: (9, packed(order, "i", -70_000)),
    }


def built(tree: Tree, order: str = "<", *, big: bool = False, thumbnail: bytes = b"") -> bytes:
    """A TIFF structure with its values before its directories, at odd offsets too."""
    wide, number = ("Q", "Q") if big else ("I", "H")
    inline = 8 if big else 4
    content = bytearray(bytes(16 if big else 8))

    def directory(tree: Tree, after: int = 0) -> int:
        lines = b""
        for tag, value in tree.items():
            if isinstance(value, dict):
                kind, count = IFD8 if big else LONG, 1
                field = packed(order, wide, directory(value))
            else:
                kind, stored = value
                count, field = len(stored) // SIZES[kind], stored.ljust(inline, b"\0")
                if len(stored) > inline:
                    field = packed(order, wide, len(content))
                    content.extend(stored)
            lines += packed(order, f"HH{wide}", tag, kind, count) + field
        start = len(content)
        content.extend(packed(order, number, len(tree)) + lines + packed(order, wide, after))
        return start

    after = directory({513: (LONG, packed(order, "I", 8))}) if thumbnail else 0
    content.extend(thumbnail)
    first = directory(tree, after)
    mark = b"II" if order == "<" else b"MM"
    head = mark + (
        packed(order, "HHHQ", 43, 8, 0, first) if big else packed(order, "HI", 42, first)
    )
    content[: len(head)] = head
    return bytes(content)


def read(content: bytes) -> Tree:
    """The first directory of a TIFF structure and those nested, by the specification."""
    content = content.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}[content[:2]]
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    wide, number = ("Q", "Q") if big else ("I", "H")
    pointer = struct.calcsize(order + wide)

    def directory(start: int, pointers: tuple[int, ...]) -> Tree:
        assert start % 2 == 0
        (count,) = struct.unpack_from(order + number, content, start)
        start += struct.calcsize(order + number)
        tree: Tree = {}
        for place in range(start, start + count * (4 + 2 * pointer), 4 + 2 * pointer):
            tag, kind, values = struct.unpack_from(f"{order}HH{wide}", content, place)
            place += 4 + pointer
            (offset,) = struct.unpack_from(order + wide, content, place)
            length = values * SIZES[kind]
            if tag in pointers:
                assert (kind, values) == (LONG8 if big else LONG, 1)
                tree[tag] = directory(offset, (INTEROP,) if tag == EXIF else ())
            else:
                assert length <= pointer or offset % 2 == 0
                place = place if length <= pointer else offset
                assert place + length <= len(content)
                tree[tag] = kind, content[place : place + length]
        assert list(tree) == sorted(tree)
        assert len(tree) == count
        end = start + count * (4 + 2 * pointer)
        assert content[end : end + pointer] == bytes(pointer)  # no directory after it
        return tree

    (first,) = struct.unpack_from(order + wide, content, 8 if big else 4)
    return directory(first, (EXIF, GPS))


def block_in(path: Path) -> bytes:
    """The EXIF of a file, found by Pillow; of a TIFF, the file itself."""
    if path.suffix == ".tif":
        return path.read_bytes()
    if path.suffix == ".png":  # Pillow puts the prefix there
        content = path.read_bytes()
        start = content.index(b"eXIf")
        return content[start + 4 :][: int.from_bytes(content[start - 4 : start], "big")]
    with Image.open(path) as opened:
        return opened.info["exif"]


def ramp(dtype: type = np.uint8) -> np.ndarray:
    return np.arange(24 * 32 * 3).reshape(24, 32, 3).astype(dtype)


# ------------------------------------------------------------------------------ parse, serialize


LITTLE = (
    b"II*\0\x08\0\0\0"  # first directory at 8
    b"\x03\0"  # three entries
    b"\x0f\x01\x02\0\x07\0\0\0\x32\0\0\0"  # Make: 7 characters at 50
    b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"  # Orientation: 6
    b"\x69\x87\x04\0\x01\0\0\0\x3a\0\0\0"  # Exif: at 58
    b"\0\0\0\0"  # none after it
    b"Camera\0\0"
    b"\x01\0"
    b"\x27\x88\x03\0\x01\0\0\0\x90\x01\0\0"  # ISO: 400
    b"\0\0\0\0"
)
BIG = (
    b"MM\0*\0\0\0\x08"
    b"\0\x03"
    b"\x01\x0f\0\x02\0\0\0\x07\0\0\0\x32"
    b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"
    b"\x87\x69\0\x04\0\0\0\x01\0\0\0\x3a"
    b"\0\0\0\0"
    b"Camera\0\0"
    b"\0\x01"
    b"\x88\x27\0\x03\0\0\0\x01\x01\x90\0\0"
    b"\0\0\0\0"
)


@pytest.mark.parametrize(("block", "order"), [(LITTLE, "little"), (BIG, "big")])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_a_block_by_hand(block, order, prefix):
    found = exif.parse(prefix + block)
    assert found.order == order
    assert {tag: (entry.kind, entry.count) for tag, entry in found.entries.items()} == {
        MAKE: (ASCII, 7),
        ORIENTATION: (SHORT, 1),
    }
    assert found.entries[MAKE].value == b"Camera\0"
    assert found.number(ORIENTATION) == 6
    assert found.nested[EXIF].number(0x8827) == 400
    assert exif.serialize(found) == b"Exif\0\0" + block


@both_orders
def test_everything_stays_but_the_layout(order):
    tree = camera(order) | rare(order)
    block = exif.serialize(exif.parse(built(tree, order)))
    assert read(block) == tree
    assert block.startswith(b"Exif\0\0" + (b"II*\0" if order == "<" else b"MM\0*"))
    # By Pillow's reading too, which takes a text for Latin-1.
    found = Image.Exif()
    found.load(block)
    assert found[COPYRIGHT].encode("latin-1") == OWNER[:-1]
    details = found.get_ifd(ExifTags.IFD.Exif)
    assert details[ExifTags.Base.ExposureBiasValue] == pytest.approx(1 / 3)
    assert details[ExifTags.Base.UserComment] == tree[EXIF][0x9286][1]
    assert found.get_ifd(ExifTags.IFD.Interop)[1] == "R98"
    assert found.get_ifd(ExifTags.IFD.GPSInfo)[2] == (48, 8, 12.34)


@both_orders
def test_big_tiff_becomes_classic(order):
    tree = camera(order) | {
        0xFDE8: (LONG8, packed(order, "2Q", 7, 2**32 - 1)),
        0xFDE9: (SLONG8, packed(order, "2q", -7, 7)),
        0xFDEA: (LONG8, packed(order, "2Q", 7, 2**32)),
        0xFDEB: (SLONG8, packed(order, "q", -(2**40))),
        0xFDEC: (IFD8, packed(order, "Q", 8)),
        0xFDED: (LONG8, b""),
    }
    expected = camera(order) | {
        0xFDE8: (LONG, packed(order, "2I", 7, 2**32 - 1)),
        0xFDE9: (9, packed(order, "2i", -7, 7)),
        0xFDED: (LONG, b""),
    }
    content = built(tree, order, big=True)
    assert read(exif.exif_of_tiff(io.BytesIO(content)) or b"") == expected
    assert read(exif.serialize(exif.parse(content))) == expected


def test_a_thumbnail_is_left_out():
    block = built(camera(), thumbnail=b"\xff\xd8 thumbnail \xff\xd9")
    found = Image.Exif()
    found.load(block)
    assert found.get_ifd(ExifTags.IFD.IFD1)  # as Pillow sees it, there is one
    upright = metadata.upright_exif(block) or b""
    assert read(upright) == camera()  # which asserts that none comes after the first
    assert b"thumbnail" not in upright


def test_what_would_point_nowhere_is_left_out():
    nowhere: Tree = {
        0xFDE8: (IFD, packed("<", "I", 8)),
        INTEROP: (LONG, packed("<", "I", 8)),  # belongs into the Exif directory
    }
    details: Tree = {0x8827: (SHORT, packed("<", "H", 400)), GPS: (LONG, packed("<", "I", 8))}
    block = built({MAKE: (ASCII, b"Camera\0")} | nowhere | {EXIF: details})
    expected = {MAKE: (ASCII, b"Camera\0"), EXIF: {0x8827: details[0x8827]}}
    assert read(exif.serialize(exif.parse(block))) == expected


def test_an_unknown_type_is_left_out_and_the_first_of_two_counts():
    unknown = packed("<", "HHII", 0xFDE8, 99, 1000, 1_000_000)
    lines = [packed("<", "HHII", ORIENTATION, SHORT, 1, value) for value in (6, 3)]
    block = b"II*\0\x08\0\0\0\x03\0" + b"".join([*lines, unknown]) + bytes(4)
    assert read(exif.serialize(exif.parse(block))) == {ORIENTATION: (SHORT, b"\6\0")}


# ------------------------------------------------------------------------------------- upright


@both_orders
@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG])
def test_orientation_is_reset_in_place(order, kind):
    letters = {BYTE: "B", SHORT: "H", LONG: "I"}
    tree = camera(order) | {ORIENTATION: (kind, packed(order, letters[kind], 6))}
    block = built(tree, order)
    assert metadata.orientation_of(block, None) == 6
    upright = metadata.upright_exif(block) or b""
    expected = camera(order) | {ORIENTATION: (SHORT, packed(order, "H", 1))}
    assert read(upright) == expected
    assert metadata.orientation_of(upright, None) == 1
    assert ORIENTATION not in read(metadata.upright_exif(built(camera(order), order)) or b"")


@pytest.mark.parametrize("value", [(SHORT, b"\0\0"), (SHORT, b"\x09\0"), (SHORT, b"\6\0\6\0")])
def test_an_orientation_that_is_none(value):
    assert metadata.orientation_of(built({ORIENTATION: value}), None) == 1


def test_what_describes_the_pixels_of_the_source_is_left_out():
    numbers = packed("<", "6d", *range(6))
    layout: Tree = {
        256: (SHORT, packed("<", "H", 4000)),
        258: (SHORT, packed("<", "3H", 8, 8, 8)),
        273: (LONG, packed("<", "2I", 8, 1000)),
        322: (SHORT, packed("<", "H", 256)),
        33550: (DOUBLE, numbers),
        33922: (DOUBLE, numbers),
        34264: (DOUBLE, numbers),
        42112: (ASCII, b"<GDALMetadata/>\0"),
    }
    sizes: Tree = {40962: (LONG, packed("<", "I", 4000)), 40963: (LONG, packed("<", "I", 3000))}
    tree = camera() | layout | {EXIF: camera()[EXIF] | sizes}
    assert read(metadata.upright_exif(built(tree)) or b"") == camera()
    assert read(exif.exif_of_tiff(io.BytesIO(built(camera() | layout))) or b"") == camera()
    assert metadata.upright_exif(built(layout | {EXIF: sizes})) is None
    assert exif.exif_of_tiff(io.BytesIO(built(layout))) is None
    assert metadata.upright_exif(b"") is None


def test_descriptions_of_an_array_are_left_out(tmp_path):
    tifffile.imwrite(tmp_path / "shaped.tif", ramp(), photometric="rgb", metadata={"axes": "YXS"})
    tifffile.imwrite(tmp_path / "imagej.tif", ramp()[..., 0], imagej=True)
    tifffile.imwrite(tmp_path / "said.tif", ramp(), photometric="rgb", description="a garden")
    for name, expected in (("shaped", None), ("imagej", None), ("said", (ASCII, b"a garden\0"))):
        block = read_image(tmp_path / f"{name}.tif").metadata.exif
        assert (read(block).get(270) if block else None) == expected


# --------------------------------------------------------------------------------- in the files


FILES = [(".png", 8), (".png", 16), (".jpg", 8), (".webp", 8), (".tif", 8), (".tif", 16)]
FILES += [(".avif", 8), (".avif", 16)]


@both_orders
@pytest.mark.parametrize(("suffix", "bits"), FILES)
def test_every_format_keeps_every_byte(tmp_path, suffix, bits, order):
    source, again = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    Image.fromarray(ramp()).save(
        tmp_path / "camera.jpg", exif=b"Exif\0\0" + built(camera(order), order)
    )
    picture = read_image(tmp_path / "camera.jpg")
    assert picture.notes == ()
    assert read(picture.metadata.exif or b"") == camera(order)
    levels = picture.color.astype(np.uint16) * 257 if bits == 16 else picture.color
    write_image(source, Picture(color=levels, metadata=picture.metadata))
    write_image(again, read_image(source))
    for path in (source, again):
        found, expected = read(block_in(path)), camera(order)
        if suffix == ".tif":
            found = {
                tag: value for tag, value in found.items() if tag not in exif.PIXEL_LAYOUT_TAGS
            }
            if order == ">":  # libvips writes the other order
                expected = {tag: camera("<")[tag] for tag in expected}
        if (suffix, bits) == (".avif", 16):  # libvips makes up a resolution, libexif a few more
            del expected[0x011A]
            found[EXIF] = {tag: found[EXIF].get(tag) for tag in expected[EXIF]}
            assert {tag: found.get(tag) for tag in expected} == expected
        else:
            assert found == expected
        with Image.open(path) as opened:
            seen = opened.getexif()
            assert seen[COPYRIGHT].encode("latin-1") == OWNER[:-1]
            assert seen.get_ifd(ExifTags.IFD.Interop)[1] == "R98"
            details = seen.get_ifd(ExifTags.IFD.Exif)
            assert details[ExifTags.Base.ExposureTime] == 1 / 250
            assert seen.get_ifd(ExifTags.IFD.GPSInfo)[2] == (48, 8, 12.34)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_every_format_keeps_rare_types(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    tree = camera() | rare() | {ORIENTATION: (SHORT, b"\1\0")}
    write_image(path, Picture(color=ramp(), metadata=Metadata(exif=b"Exif\0\0" + built(tree))))
    block = read_image(path).metadata.exif or b""
    # AVIF has the orientation outside of EXIF, and says nothing for upright.
    expected = camera() | rare() if suffix == ".avif" else tree
    if suffix == ".tif":
        expected |= {0xFDEA: (ASCII, OWNER)}  # TIFF knows no type for UTF-8
    assert read(block) == expected


def test_an_orientation_alone_in_avif(tmp_path):
    """Nothing is left of it there, and nothing is said."""
    block = built({ORIENTATION: (SHORT, b"\1\0")})
    write_image(tmp_path / "a.avif", Picture(color=ramp(), metadata=Metadata(exif=block)))
    assert read_image(tmp_path / "a.avif").metadata.exif is None


@both_orders
@pytest.mark.parametrize("big", [False, True])
def test_exif_added_to_a_tiff(tmp_path, order, big):
    path = tmp_path / "a.tif"
    image = pyvips.Image.new_from_array(ramp()).copy(interpretation="srgb")
    image.tiffsave(str(path), bigtiff=big)
    own: Tree = {
        256: (SHORT, packed(order, "H", 4000)),
        ORIENTATION: (SHORT, packed(order, "H", 6)),
    }
    tree = camera(order) | rare(order)
    tiff.add_exif(path, built(tree | own, order))

    found = read(path.read_bytes())
    little = camera("<") | rare("<") | {ORIENTATION: (SHORT, b"\6\0")}  # as libvips writes it
    little[0xFDEA] = (ASCII, OWNER)
    assert {tag: found[tag] for tag in sorted(little)} == little
    assert found[256][1] in (b"\x20\0", b"\x20\0\0\0")  # the file's own width counts
    assert read_image(path).color.shape == (32, 24, 3)

    block = read_image(path).metadata.exif or b""
    assert read(block) == little | {ORIENTATION: (SHORT, b"\1\0")}
    with tifffile.TiffFile(path) as opened:
        assert opened.is_bigtiff == big
        page = opened.pages[0]
        np.testing.assert_array_equal(page.asarray(), ramp())
        assert page.tags["XResolution"].value == (300, 1)
        details = page.tags["ExifTag"].value
        assert details["ExposureTime"] == (1, 250)
        assert details["ExposureBiasValue"] == (1, 3)
        assert details["MakerNote"] == tree[EXIF][0x927C][1]
        assert page.tags["GPSTag"].value["GPSLatitude"] == (48, 1, 8, 1, 1234, 100)


def test_tiff_without_exif_says_nothing_of_its_own(tmp_path):
    write_image(tmp_path / "a.tif", Picture(color=ramp()))
    assert read_image(tmp_path / "a.tif").metadata.exif is None
    with tifffile.TiffFile(tmp_path / "a.tif") as opened:
        names = {tag.name for tag in opened.pages[0].tags}
    assert not names & {"XResolution", "YResolution", "ResolutionUnit", "Orientation"}


@pytest.mark.parametrize("big", [False, True])
@both_orders
def test_tags_of_a_tiff_of_another_program(tmp_path, big, order):
    tags = [
        (COPYRIGHT, ASCII, len(OWNER), OWNER, True),
        (0xFDE8, UNDEFINED, 5, b"12345", True),
        (0xFDE9, SRATIONAL, 1, (1, 3), True),
    ]
    tifffile.imwrite(
        tmp_path / "a.tif", ramp(), bigtiff=big, photometric="rgb", extratags=tags, byteorder=order,
        resolution=(300, 300), software=False, metadata=None,
    )  # fmt: skip
    found = read(read_image(tmp_path / "a.tif").metadata.exif or b"")
    assert found[COPYRIGHT] == (ASCII, OWNER)
    assert found[0xFDE8] == (UNDEFINED, b"12345")
    assert found[0xFDE9] == (SRATIONAL, packed(order, "2i", 1, 3))
    assert set(found) == {COPYRIGHT, 0xFDE8, 0xFDE9, 0x011A, 0x011B, 0x0128}


def test_pixels_of_a_tiff_are_passed_over():
    class Counted(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            found = super().read(size)
            self.taken += len(found)
            return found

    strips = packed("<", "1000000I", *range(1_000_000))
    content = built(camera() | {273: (LONG, strips), 279: (LONG, strips)})
    stream = Counted(content)
    assert read(exif.exif_of_tiff(stream) or b"") == camera()
    assert stream.taken < 1000


# ------------------------------------------------------------------------------------- damaged


def test_header():
    for block in (
        b"",
        b"Exif\0\0",
        b"II",
        b"XX*\0\x08\0\0\0",
        b"II+*\x08\0\0\0",
        b"MM*\0\0\0\0\x08",
    ):
        with pytest.raises(ValueError, match="no TIFF header"):
            exif.parse(block)
        assert metadata.orientation_of(block, b'<a tiff:Orientation="6"/>') == 6


@pytest.mark.parametrize(
    "line",
    [
        packed("<", "HHII", MAKE, ASCII, 7, 2**32 - 1),  # beyond the end
        packed("<", "HHII", MAKE, ASCII, 2**32 - 1, 8),
        packed("<", "HHII", MAKE, DOUBLE, 2**31, 8),
        packed("<", "HHI", MAKE, ASCII, 1),  # cut off
    ],
)
def test_a_damaged_first_directory_is_refused(line):
    """But for its orientation, if that is readable."""
    turned = packed("<", "HHII", ORIENTATION, SHORT, 1, 6)
    block = b"II*\0\x08\0\0\0\x02\0" + turned + line
    with pytest.raises(ValueError, match="damaged EXIF"):
        exif.parse(block)
    with pytest.raises(ValueError, match="damaged EXIF"):
        metadata.upright_exif(block)
    assert metadata.orientation_of(block, None) == 6
    # The tags of a TIFF file are its own: one that is damaged is left out.
    assert read(exif.exif_of_tiff(io.BytesIO(block)) or b"") == {ORIENTATION: (SHORT, b"\6\0")}


def test_damage_is_noted(tmp_path):
    block = LITTLE.replace(packed("<", "2I", 7, 50), packed("<", "2I", 7, 5000))
    for suffix in (".jpg", ".png", ".webp"):
        Image.fromarray(ramp()).save(tmp_path / f"a{suffix}", exif=b"Exif\0\0" + block)
        picture = read_image(tmp_path / f"a{suffix}")
        assert picture.metadata.exif is None
        assert picture.notes == ("EXIF left out: it is damaged",)
        assert picture.color.shape == (32, 24, 3)  # turned


@pytest.mark.parametrize("tag", [EXIF, GPS, INTEROP])
@pytest.mark.parametrize("offset", [0, 1, 8, 2**31, 2**32 - 1])
def test_a_damaged_nested_directory_is_left_out(tag, offset):
    pointer = (LONG, packed("<", "I", offset))
    tree, expected = camera(), camera()
    if tag == INTEROP:
        tree[EXIF] |= {INTEROP: pointer}
        del expected[EXIF][INTEROP]
    else:
        tree[tag] = pointer
        del expected[tag]
    assert read(metadata.upright_exif(built(tree)) or b"") == expected


def test_directories_in_a_circle_are_left_out():
    first = packed("<", "HHII", EXIF, LONG, 1, 8) + packed("<", "HHII", GPS, LONG, 1, 38)
    nested = packed("<", "HHII", INTEROP, LONG, 1, 38)
    block = b"II*\0\x08\0\0\0\x02\0" + first + bytes(4) + b"\x01\0" + nested + bytes(4)
    assert not exif.parse(block).nested[GPS]
    assert set(exif.parse(block).nested) == {GPS}
    assert metadata.upright_exif(block) is None


def bomb(count: int, length: int) -> bytes:
    """A directory of entries that all lie on the same bytes."""
    shared = 8 + 2 + 12 * count + 4
    lines = (packed("<", "HHII", 1000 + tag, UNDEFINED, length, shared) for tag in range(count))
    return b"II*\0\x08\0\0\0" + packed("<", "H", count) + b"".join(lines) + bytes(4 + length)


def test_bombs():
    content = bomb(60_000, 1_000_000)
    with pytest.raises(ValueError, match="damaged EXIF"):
        exif.parse(content)
    assert len(exif.exif_of_tiff(io.BytesIO(content)) or b"") < 3 * len(content)
    # Two resolutions on the same bytes are nothing bad.
    assert len(exif.parse(bomb(2, 1000)).entries) == 2


def test_a_bomb_in_a_nested_directory():
    content = bytearray(bomb(10_000, 100_000))
    start = len(content)
    content[4:8] = packed("<", "I", start)
    content += b"\x02\0" + packed("<", "HHII", MAKE, ASCII, 4, 0x00636261)
    content += packed("<", "HHII", EXIF, LONG, 1, 8) + bytes(4)
    block = metadata.upright_exif(bytes(content)) or b""
    assert read(block)[MAKE] == (ASCII, b"abc\0")
    assert len(block) < 3 * len(content)


def test_large_values_of_a_tiff_are_left_out():
    megabytes = 2**20
    lengths = {1000: 17, 1001: 15, 1002: 15, 1003: 15, 1004: 15, 1005: 15, 1006: 1}
    start = 8 + 2 + 12 * len(lengths) + 4
    lines = (
        packed("<", "HHII", tag, UNDEFINED, length * megabytes, start)
        for tag, length in lengths.items()
    )
    content = b"II*\0\x08\0\0\0" + packed("<", "H", len(lengths)) + b"".join(lines)
    found = read(exif.exif_of_tiff(io.BytesIO(content + bytes(40 * megabytes))) or b"")
    assert list(found) == [1001, 1002, 1003, 1004, 1006]  # 61 of at most 64


def assert_a_block_or_refused(content: bytes) -> None:
    """And a block that comes out comes through again as it is."""
    assert 1 <= metadata.orientation_of(content, None) <= 8
    for function in (metadata.upright_exif, lambda block: exif.exif_of_tiff(io.BytesIO(block))):
        try:
            found = function(content)
        except ValueError:
            continue
        if found is not None:
            assert exif.serialize(exif.parse(found)) == found
            assert len(found) <= 4 * len(content) + 100
            read(found)


@pytest.mark.parametrize("big", [False, True])
@both_orders
def test_every_cut(order, big):
    content = built(camera(order), order, big=big)
    for end in range(len(content)):
        assert_a_block_or_refused(content[:end])
        assert_a_block_or_refused(b"Exif\0\0" + content[:end])


@pytest.mark.parametrize("big", [False, True])
@given(
    order=st.sampled_from("<>"),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_mutations(big, order, changes):
    content = bytearray(built(camera(order), order, big=big))
    for place, value in changes:
        content[place % len(content)] = value
    assert_a_block_or_refused(bytes(content))


@given(st.binary(max_size=200))
def test_noise(content):
    assert_a_block_or_refused(b"II*\0\x08\0\0\0" + content)
    assert_a_block_or_refused(b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10" + content)


def test_any_number_of_prefixes():
    block = exif.PREFIX * 300_000 + bomb(2, 10)
    assert len(exif.parse(block).entries) == 2


def test_a_damaged_value_of_a_nested_directory_leaves_the_others():
    details = packed("<", "HHII", 0x8822, 3, 1, 2) + packed("<", "HHII", 0x927C, UNDEFINED, 500, 60)
    first = packed("<", "HHII", EXIF, LONG, 1, 26)
    block = b"II*\0\x08\0\0\0\x01\0" + first + bytes(4) + b"\x02\0" + details + bytes(4)
    assert set(exif.parse(block).nested[EXIF].entries) == {0x8822}
