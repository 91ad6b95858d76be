"""TIFF as a list of tags: what is read of one beside its pixels, and EXIF added to one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import TiffTags

from allosr2.imaging.exif import (
    ASCII,
    SHORT,
    SIZES,
    UTF8,
    Directory,
    Entry,
    exif_of_tiff,
    form_of,
    lay,
    parse,
    read_lines,
    table,
)

_SUBFILE, _SUB_DIRECTORIES, _DNG_VERSION = 254, 330, 50706
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_FILL_ORDER, _STRIP_ROWS, _PREDICTOR, _JPEG_TABLES = 266, 278, 317, 347
_FAX_OPTIONS = 292, 293
_STRIP_OFFSETS, _STRIP_COUNTS = 273, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_SAMPLES, _PLANAR, _EXTRA, _FORMAT = 277, 284, 338, 339
_COLOR_MAP, _INKS, _SUBSAMPLING = 320, 332, 530
_XMP, _ICC = 700, 34675

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLORS = {
    _WHITE_IS_ZERO: 1,
    _BLACK_IS_ZERO: 1,
    _RGB: 3,
    _PALETTE: 1,
    _CMYK: 4,
    _YCBCR: 3,
    _LAB: 3,
}
"""Samples of color that a pixel has in the file, by its PhotometricInterpretation."""
_ASSOCIATED, _ALPHA = 1, 2
"""Kinds of an extra sample: opacity that the colors were multiplied by, and opacity."""

_NONE, _JPEG = 1, 7
_OF_LIBVIPS = frozenset({_NONE, 2, 3, 4, 5, _JPEG, 8, 32773, 32946, 50001})
"""Compressions: none, CCITT, LZW, JPEG, deflate, PackBits, WebP."""
_OF_PILLOW = frozenset({34925, 50000})
"""LZMA and Zstandard."""

_PLACES = ((_STRIP_OFFSETS, _STRIP_COUNTS), (_TILE_OFFSETS, _TILE_COUNTS))
_STORAGE_TAGS = frozenset(
    {_WIDTH, _HEIGHT, _COMPRESSION, _FILL_ORDER, _STRIP_ROWS, _PREDICTOR, _JPEG_TABLES}
    | {_TILE_WIDTH, _TILE_HEIGHT, *_FAX_OPTIONS}
)
"""How samples are stored, whatever they mean."""
_NEEDED_TAGS = _STORAGE_TAGS.union(
    {_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT, _COLOR_MAP, _INKS, _SUBSAMPLING},
    {_XMP, _ICC},
    *_PLACES,
)
"""What a picture is not right without."""
_MADE_UP_TAGS = frozenset({274, 282, 283, 296})

_MOST_OTHERS = 4
"""Channels that may follow the colors: they are decoded to be left out, but for opacity."""
_UNSIGNED = frozenset({1, SHORT, 4, 13, 16, 18})
"""Types of whole numbers."""
_MOST_NUMBERS_BYTES = 2**24
"""Enough for the places of two million strips or tiles."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the first directory of a TIFF file says."""

    height: int
    width: int
    bits: int
    """Of a sample; the largest number where they differ."""
    integer: bool
    """Samples are unsigned whole numbers."""
    colors: int
    """Channels of color when it is read, at most: gray 1, RGB and palettes 3, CMYK 4."""
    lab: bool
    """Colors are CIE L*a*b*."""
    inverted: bool
    """0 is white."""
    others: int
    """Channels that follow the colors."""
    alpha: int | None
    """Which of them is opacity."""
    associated: bool
    """Colors were multiplied by their opacity."""
    apart: bool
    """Each channel lies on its own."""
    pillow: bool
    """libvips cannot decode it and Pillow can."""
    icc_profile: bytes | None
    xmp: bytes | None
    exif: bytes | None
    unread: str | None = None
    """What of it is valid, and read by nobody here; None where there is nothing."""


def read_layout(stream: BinaryIO) -> Layout:
    """Read the first directory. Raises ValueError for a file that is damaged or cut off."""
    tags = _Tags(stream)
    _check_places(tags)
    photometric, compression = tags.number(_PHOTOMETRIC), tags.number(_COMPRESSION, _NONE)
    samples, bits = tags.number(_SAMPLES, 1), max(_bits(tags))
    colors = _COLORS.get(photometric, 0)
    if samples < colors:
        raise ValueError(f"{samples} samples a pixel, fewer than it has colors")
    if photometric == _PALETTE and bits <= 16 and len(tags.numbers(_COLOR_MAP)) != 3 << bits:
        raise ValueError("no ColorMap of its palette")
    extra = tags.numbers(_EXTRA)[: samples - colors]
    opacities = [index for index, kind in enumerate(extra) if kind in (_ASSOCIATED, _ALPHA)]
    layout = Layout(
        height=tags.number(_HEIGHT),
        width=tags.number(_WIDTH),
        bits=bits,
        integer=set(tags.numbers(_FORMAT)) <= {1, 4},  # 4 is undefined: taken for whole
        colors=3 if photometric == _PALETTE else colors,
        lab=photometric == _LAB,
        inverted=photometric == _WHITE_IS_ZERO,
        others=samples - colors,
        alpha=opacities[0] if opacities else None,
        associated=bool(opacities) and extra[opacities[0]] == _ASSOCIATED,
        apart=tags.number(_PLANAR, 1) == 2 and (samples > 1 or _TILE_WIDTH in tags),
        pillow=bits == 12 or compression in _OF_PILLOW,
        icc_profile=tags.value(_ICC),
        xmp=tags.value(_XMP),
        exif=exif_of_tiff(stream),
    )
    return replace(layout, unread=_unread(tags, layout, photometric, compression))


def _unread(tags: _Tags, layout: Layout, photometric: int, compression: int) -> str | None:
    """What is valid and not read, or read wrongly, by libvips and Pillow; None where there is nothing."""
    bits, plain = layout.bits, not (layout.others or layout.apart)
    single = not layout.others and photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _PALETTE)
    packed = plain and photometric == _BLACK_IS_ZERO and compression == _NONE
    opacity = layout.alpha == 0 and layout.others == 1 and not (layout.associated or layout.apart)
    preview = tags.number(_SUBFILE, 0) & 1 and (tags.following or _SUB_DIRECTORIES in tags)
    # Pillow makes 8 bits of 16 but for one gray channel, and does not invert that.
    pillow_holds = (
        plain and photometric == _BLACK_IS_ZERO
        if bits == 16
        else (plain and photometric not in (_YCBCR, _LAB))
        or (opacity and photometric in (_BLACK_IS_ZERO, _RGB))
    )
    variants = (
        (
            "a preview in front of the picture, as raw photographs (DNG) do",
            preview or _DNG_VERSION in tags,
        ),
        (f"compression {compression}", compression not in _OF_LIBVIPS | _OF_PILLOW),
        (f"colors of kind {photometric}", photometric not in _COLORS),
        (f"{layout.others} channels beside its colors", layout.others > _MOST_OTHERS),
        ("samples of different bits", len(set(_bits(tags))) > 1),
        (
            f"{bits}-bit samples",
            not (bits in (8, 16) or (bits in (1, 2, 4) and single) or (bits == 12 and packed)),
        ),
        ("inks that are not CMYK", photometric == _CMYK and tags.number(_INKS, 1) != 1),
        (
            "YCbCr colors without JPEG compression",
            photometric == _YCBCR and compression != _JPEG and tags.numbers(_SUBSAMPLING) == (1, 1),
        ),
        (
            "a palette or YCbCr colors in separate planes",
            photometric in (_PALETTE, _YCBCR) and layout.apart,
        ),
        (
            "such colors multiplied by their opacity",
            photometric in (_WHITE_IS_ZERO, _PALETTE, _LAB) and layout.associated,
        ),
        (
            "LZMA or Zstandard compression of such samples",
            compression in _OF_PILLOW and not pillow_holds,
        ),
    )
    return next((what for what, found in variants if found), None)


def _bits(tags: _Tags) -> tuple[int, ...]:
    """Bits of each sample of a pixel, or of all."""
    return tags.numbers(_BITS)[: tags.number(_SAMPLES, 1)] or (1,)


def count_pages(stream: BinaryIO) -> int:
    """How many directories follow one another, the first one included.

    Raises ValueError for one that is damaged or cut off, which no decoder should be given, and for
    directories that overlap, of which a small file can have any number.
    """
    tags = _Tags(stream)
    seen, room = {tags.offset}, tags.end - tags.length
    while tags.following and tags.following not in seen:
        tags = _Tags(stream, tags.following)
        seen.add(tags.offset)
        room -= tags.length
        if room < 0:
            raise ValueError("its directories overlap")
    return len(seen)


def raw_files(content: bytes) -> Iterator[bytes]:
    """A file as others of mere samples, as gray: one a channel where the channels lie apart, else one.

    libvips reads no tiles of channels that lie apart, nor L*a*b* of 8 bits, and wrongly strips of
    channels that are not RGB or CMYK. The samples stay where they are; each copy has a directory of
    its own.
    """
    tags = _Tags(io.BytesIO(content))
    form, samples = tags.form, tags.number(_SAMPLES, 1)
    apart = tags.number(_PLANAR, 1) == 2
    kept = {tag: tags.entry(tag) for tag in _STORAGE_TAGS if tag in tags}

    def shorts(*numbers: int) -> Entry:
        return Entry(SHORT, b"".join(number.to_bytes(2, form.order) for number in numbers))

    kept[_PHOTOMETRIC] = shorts(_BLACK_IS_ZERO)
    kept[_SAMPLES] = shorts(1 if apart else samples)
    kept[_BITS] = shorts(*_bits(tags)[:1] * (1 if apart else samples))
    padding = b"\0" * (len(content) % 2)
    position = len(content) + len(padding)
    for number in range(samples if apart else 1):
        entries = dict(kept)
        for tag in (tag for pair in _PLACES for tag in pair if tag in tags):
            places = tags.entry(tag)
            length = len(places.value) // (samples if apart else 1)
            own = places.value[number * length :][:length]
            entries[tag] = Entry(places.kind, own)
        lines, pointed = lay(
            Directory(order=form.order, entries=entries, nested={}), position, form
        )
        first = (position + len(pointed)).to_bytes(form.pointer_bytes, form.order)
        behind = memoryview(content)[form.first.stop :]
        yield b"".join(
            (content[: form.first.start], first, behind, padding, pointed, table(lines, form))
        )


def add_exif(path: Path, exif: bytes | None) -> None:
    """Give a TIFF file the tags of an EXIF block, and take what libvips makes up: resolution, orientation.

    A new directory is written behind the pixels; the former one's entries hold as they are. Raises
    ValueError for a damaged block.
    """
    added = parse(exif) if exif else None
    with path.open("r+b") as stream:
        head = stream.read(16)
        form = form_of(head)
        first = int.from_bytes(head[form.first], form.order)
        found, _ = read_lines(stream, first, form)
        lines = {tag: line for tag, line in found.items() if tag not in _MADE_UP_TAGS}
        position = stream.seek(0, io.SEEK_END)
        position += stream.write(b"\0" * (position % 2))
        if added:
            # A type that only EXIF knows: libtiff has no such tags, and texts in UTF-8 go for ASCII.
            entries = {
                tag: Entry(ASCII, entry.value) if entry.kind == UTF8 else entry
                for tag, entry in added.entries.items()
            }
            exif_lines, pointed = lay(replace(added, entries=entries), position, form)
            lines = exif_lines | lines
            position += stream.write(pointed)
        stream.write(table(lines, form))
        stream.seek(form.first.start)
        stream.write(position.to_bytes(form.pointer_bytes, form.order))


class _Tags:
    """The first directory of a TIFF file, or another; values are read when they are asked for."""

    def __init__(self, stream: BinaryIO, offset: int | None = None) -> None:
        """Read the lines of a directory; those of unknown type, whose length nobody knows, are none.

        Raises ValueError for a file that is no TIFF, lines beyond its end, values beyond it that decoding
        rests on, and values that share their bytes so that together they are longer than the file.
        """
        self._stream = stream
        self.end = end = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(16)
        self.form = form_of(head)
        self.offset = self._int(head[self.form.first]) if offset is None else offset
        if self.offset >= end:
            raise ValueError("cut off before its end")
        lines, whole = read_lines(stream, self.offset, self.form)
        self.length = stream.tell() - self.offset
        self.following = self._int(stream.read(self.form.pointer_bytes))
        parts = {tag: self.form.parts(line) for tag, line in lines.items()}
        self._parts = {tag: part for tag, part in parts.items() if part[0] in SIZES}
        outside = {
            tag: self._int(field) + length
            for tag, (_, length, field) in self._parts.items()
            if length > len(field)
        }
        beyond = {tag for tag, stop in outside.items() if stop > end}
        if not whole or beyond & _NEEDED_TAGS:
            raise ValueError("cut off before its end")
        for tag in beyond:
            del self._parts[tag]
        if sum(self._parts[tag][1] for tag in outside.keys() - beyond) > end:
            raise ValueError("its tags share their values")

    def __contains__(self, tag: int) -> bool:
        return tag in self._parts

    def entry(self, tag: int) -> Entry:
        """The values of a tag that is there."""
        kind, length, field = self._parts[tag]
        if length <= len(field):
            return Entry(kind, field[:length])
        self._stream.seek(self._int(field))
        return Entry(kind, self._stream.read(length))

    def value(self, tag: int) -> bytes | None:
        """The values of a tag as they are stored; None where it is absent or empty."""
        return (self.entry(tag).value or None) if tag in self else None

    def numbers(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag, none where it is absent. Raises ValueError for other values."""
        if tag not in self:
            return ()
        kind, length, _ = self._parts[tag]
        if kind not in _UNSIGNED or length > _MOST_NUMBERS_BYTES:
            raise ValueError(f"its {_name(tag)} is damaged")
        order = "<" if self.form.order == "little" else ">"
        return tuple(np.frombuffer(self.entry(tag).value, f"{order}u{SIZES[kind]}").tolist())

    def number(self, tag: int, default: int | None = None) -> int:
        """The first number of a tag. Raises ValueError where there is none, and no default."""
        for number in self.numbers(tag):
            return number
        if default is None:
            raise ValueError(f"no {_name(tag)}")
        return default

    def _int(self, field: bytes) -> int:
        return int.from_bytes(field, self.form.order)


def _check_places(tags: _Tags) -> None:
    """Refuse strips or tiles that lie behind the end of the file. Raises ValueError."""
    for offsets, counts in _PLACES:
        parts = zip(tags.numbers(offsets), tags.numbers(counts), strict=False)
        if any(offset + count > tags.end for offset, count in parts):
            raise ValueError("cut off before its last strip or tile")
    if not any(offsets in tags for offsets, _ in _PLACES):
        raise ValueError(f"no {_name(_STRIP_OFFSETS)}")


def _name(tag: int) -> str:
    return TiffTags.lookup(tag).name
