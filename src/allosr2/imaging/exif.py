"""EXIF as it is stored: a TIFF structure of raw entries, read and laid anew with every value as it was.

EXIF 3.0 (CIPA DC-008-2023), 4.6; TIFF 6.0, section 2; BigTIFF as libtiff has it. What a value means is
nobody's business here, so that types, texts in UTF-8 and notes of camera makers come through. Such
notes may hold offsets into the block that they came from, which nothing can keep true.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

import numpy as np

PREFIX = b"Exif\0\0"
"""What EXIF starts with in a JPEG file; everything behind it is TIFF."""

EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005
"""Tags that point to a nested directory."""
IMAGE_DESCRIPTION, ORIENTATION = 270, 274

# Where the pixels of the *source* file lie, how they are packed (a TIFF keeps this among its EXIF
# tags) and where they are on a map (GeoTIFF, GDAL), with its color profile and XMP, which travel on
# their own. All wrong for any other file.
PIXEL_LAYOUT_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317}
    | {320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532}
    | {513, 514, 700, 33550, 33723, 33922, 34264, 34377, 34675, 37724, 42112}
)

_NESTED = {None: (EXIF, GPS), EXIF: (INTEROP,), GPS: (), INTEROP: ()}
"""What a directory may point to, by the tag that points to it; None for the first one."""

ASCII, SHORT, UTF8 = 2, 3, 129  # the last is new in EXIF 3.0
_LONG, _SLONG, _IFD, _LONG8, _SLONG8, _IFD8 = 4, 9, 13, 16, 17, 18
_TYPES = {
    1: (1, ASCII, 6, 7, UTF8),
    2: (SHORT, 8),
    4: (_LONG, 5, _SLONG, 10, 11, _IFD),
    8: (12, _LONG8, _SLONG8, _IFD8),
}
_UNITS = {kind: unit for unit, kinds in _TYPES.items() for kind in kinds}
"""Bytes of a number, by type."""
SIZES = _UNITS | {5: 8, 10: 8}
"""Bytes of one value, by type: fractions are two numbers."""
_WHOLE_NUMBERS = frozenset({1, SHORT, _LONG, 6, 8, _SLONG, _IFD, _LONG8, _SLONG8, _IFD8})
_NARROWED = {_LONG8: (_LONG, "u"), _SLONG8: (_SLONG, "i")}

_MOST_ENTRIES = 65_535
_SHARED = 2
"""Entries may lie on the same bytes; all values together are at most so many times the block."""
_LONGEST_VALUE, _MOST_BYTES = 16 * 2**20, 64 * 2**20
"""What is read of a TIFF file at most: of one value, and of all."""

Order = Literal["little", "big"]


@dataclass(frozen=True, slots=True)
class Form:
    """How a TIFF structure is stored: classic, or BigTIFF with its longer offsets."""

    order: Order
    big: bool = False

    @property
    def pointer_bytes(self) -> int:
        """Length of an offset, of a number of values, and of the values that stand in a line."""
        return 8 if self.big else 4

    @property
    def count_bytes(self) -> int:
        """Length of a directory's number of lines."""
        return 8 if self.big else 2

    @property
    def line_bytes(self) -> int:
        """Length of an entry in its directory: tag, type, number of values, values or their offset."""
        return 4 + 2 * self.pointer_bytes

    @property
    def first(self) -> slice:
        """Where in a file the offset of its first directory stands."""
        return slice(self.pointer_bytes, 2 * self.pointer_bytes)

    def parts(self, line: bytes) -> tuple[int, int, bytes]:
        """An entry's type, the length of its values in bytes, and the field that has them or their offset.

        The length is 0 for an unknown type, of which nobody knows it.
        """
        kind = int.from_bytes(line[2:4], self.order)
        count = int.from_bytes(line[4 : 4 + self.pointer_bytes], self.order)
        return kind, count * SIZES.get(kind, 0), line[4 + self.pointer_bytes :]


@dataclass(frozen=True, slots=True)
class Entry:
    """The values of a tag."""

    kind: int
    """Type: 1 to 13, or 129."""
    value: bytes
    """In the byte order of the directory."""

    @property
    def count(self) -> int:
        """Number of values; of a text, its bytes."""
        return len(self.value) // SIZES[self.kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class Directory:
    """An image file directory (IFD), and those that it points to."""

    order: Order
    entries: Mapping[int, Entry]
    """By tag, but for the tags that point to directories."""
    nested: Mapping[int, Directory]
    """By the tag that points to them."""

    def __bool__(self) -> bool:
        """Whether anything is in it."""
        return bool(self.entries) or any(self.nested.values())

    def without(self, tags: frozenset[int]) -> Directory:
        """The directory without some of its own entries."""
        kept = {tag: entry for tag, entry in self.entries.items() if tag not in tags}
        return replace(self, entries=kept)

    def number(self, tag: int) -> int | None:
        """The value of a tag that has one whole number."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _WHOLE_NUMBERS or entry.count != 1:
            return None
        return int.from_bytes(entry.value, self.order)


def parse(block: bytes, *, strict: bool = True) -> Directory:
    """The first directory (IFD0) of an EXIF block, with or without its prefix.

    The second one, a thumbnail, is left out; so are damaged entries of nested directories, entries of
    unknown type, whose length nobody knows, and offsets to directories of other kinds, which would
    point nowhere.

    Args:
        block: of either byte order.
        strict: refuse a damaged IFD0; otherwise its damaged entries are left out.

    Raises:
        ValueError: for what is no TIFF structure; if strict, for a directory or values beyond the end
            of the block, and values that share their bytes so that they are far longer than it.
    """
    start = 0
    while block.startswith(PREFIX, start):
        start += len(PREFIX)
    block = block[start:]
    room = _SHARED * len(block)
    source = _Source(io.BytesIO(block), room=room, longest=room)
    found, whole = source.directory(source.first)
    if strict and not whole:
        raise ValueError("damaged EXIF")
    return found


def serialize(directory: Directory) -> bytes:
    """An EXIF block with its prefix: offsets laid anew, everything else as it is."""
    form = Form(directory.order)
    head = b"II*\0" if form.order == "little" else b"MM\0*"
    position = len(head) + form.pointer_bytes
    start = position.to_bytes(form.pointer_bytes, form.order)
    return PREFIX + head + start + _laid_whole(directory, position, form)


def exif_of_tiff(stream: BinaryIO) -> bytes | None:
    """The tags of a TIFF file's first directory as an EXIF block, but for those of its pixels.

    Damaged entries are left out, with values over 16 megabytes or, all together, 64. None where
    nothing is left. Raises ValueError for a file that is no TIFF.
    """
    room = min(_MOST_BYTES, _SHARED * stream.seek(0, io.SEEK_END))
    source = _Source(stream, room=room, longest=_LONGEST_VALUE)
    found, _ = source.directory(source.first, skipped=PIXEL_LAYOUT_TAGS)
    return serialize(found) if found else None


def form_of(head: bytes) -> Form:
    """How a file is stored that starts with these 4 bytes or more. Raises ValueError if it is no TIFF."""
    order = "little" if head.startswith(b"II") else "big"
    version = int.from_bytes(head[2:4], order)
    if head[:2] not in (b"II", b"MM") or version not in (42, 43):
        raise ValueError("no TIFF header")
    return Form(order, big=version == 43)


def read_lines(stream: BinaryIO, offset: int, form: Form) -> tuple[dict[int, bytes], bool]:
    """The entries of a directory by tag, each a line of `form.line_bytes`, and whether all are there."""
    stream.seek(offset)
    head = stream.read(form.count_bytes)
    count = int.from_bytes(head, form.order)
    rows = stream.read(min(count, _MOST_ENTRIES) * form.line_bytes)
    lines: dict[int, bytes] = {}
    for start in range(0, len(rows) - form.line_bytes + 1, form.line_bytes):
        line = rows[start : start + form.line_bytes]
        lines.setdefault(int.from_bytes(line[:2], form.order), line)
    return lines, len(head) == form.count_bytes and len(rows) == count * form.line_bytes


def lay(directory: Directory, position: int, form: Form) -> tuple[dict[int, bytes], bytes]:
    """The lines of a directory by tag, and what they point to, which is to lie at an even position."""
    lines: dict[int, bytes] = {}
    pointed = bytearray()

    def write(tag: int, kind: int, count: int, field: bytes) -> None:
        start = tag.to_bytes(2, form.order) + kind.to_bytes(2, form.order)
        lines[tag] = start + count.to_bytes(form.pointer_bytes, form.order) + field

    def here() -> bytes:
        return (position + len(pointed)).to_bytes(form.pointer_bytes, form.order)

    for tag, entry in sorted(directory.entries.items()):
        value = entry.value
        if directory.order != form.order:
            value = np.frombuffer(value, f"u{_UNITS[entry.kind]}").byteswap().tobytes()
        if len(value) <= form.pointer_bytes:
            write(tag, entry.kind, entry.count, value.ljust(form.pointer_bytes, b"\0"))
        else:
            write(tag, entry.kind, entry.count, here())
            pointed += value + b"\0" * (len(value) % 2)
    for tag, nested in sorted(directory.nested.items()):
        if nested:  # an empty directory is none (TIFF 6.0, section 2)
            write(tag, _LONG8 if form.big else _LONG, 1, here())
            pointed += _laid_whole(nested, position + len(pointed), form)
    return lines, bytes(pointed)


def table(lines: Mapping[int, bytes], form: Form) -> bytes:
    """A directory of lines, with none after it."""
    count = len(lines).to_bytes(form.count_bytes, form.order)
    return count + b"".join(line for _, line in sorted(lines.items())) + bytes(form.pointer_bytes)


class _Source:
    """A stream that values are read from until there is no room for more."""

    def __init__(self, stream: BinaryIO, *, room: int, longest: int) -> None:
        self._stream = stream
        self._room = room
        self._longest = longest
        self._end = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(16)
        self._form = form_of(head)
        self.first = int.from_bytes(head[self._form.first], self._form.order)
        self._seen: set[int] = set()

    def directory(
        self, offset: int, name: int | None = None, skipped: frozenset[int] = frozenset()
    ) -> tuple[Directory, bool]:
        """What is whole of a directory but for the tags skipped, and whether all of it is."""
        order = self._form.order
        lines: dict[int, bytes] = {}
        whole = offset < self._end and offset not in self._seen
        if whole:
            self._seen.add(offset)
            lines, whole = read_lines(self._stream, offset, self._form)
        found: dict[int, Entry] = {}
        for tag, line in lines.items():
            if tag in skipped or int.from_bytes(line[2:4], order) not in SIZES:
                continue
            try:
                found[tag] = self._entry(line)
            except ValueError:
                whole = False
        stored = Directory(order=order, entries=found, nested={})
        nested: dict[int, Directory] = {}
        for tag in _NESTED[name]:
            pointer = stored.number(tag)
            if pointer is not None:
                inner, inner_whole = self.directory(pointer, tag)
                if inner or inner_whole:
                    nested[tag] = inner
        classic = {
            tag: entry
            for tag, wide in found.items()
            if tag not in _NESTED and (entry := _narrowed(wide, order))
        }
        return Directory(order=order, entries=classic, nested=nested), whole

    def _entry(self, line: bytes) -> Entry:
        kind, length, field = self._form.parts(line)
        if length <= len(field):
            return Entry(kind, field[:length])
        offset = int.from_bytes(field, self._form.order)
        if length > min(self._longest, self._room) or offset + length > self._end:
            raise ValueError("values that are too long, or beyond the end")
        self._room -= length
        self._stream.seek(offset)
        return Entry(kind, self._stream.read(length))


def _laid_whole(directory: Directory, position: int, form: Form) -> bytes:
    """A directory and, behind it, what it points to."""
    count = len(directory.entries) + sum(map(bool, directory.nested.values()))
    behind = position + form.count_bytes + count * form.line_bytes + form.pointer_bytes
    lines, pointed = lay(directory, behind, form)
    return table(lines, form) + pointed


def _narrowed(entry: Entry, order: Order) -> Entry | None:
    """An entry in a type of classic TIFF; None where there is none, and for offsets."""
    if entry.kind in (_IFD, _IFD8):
        return None
    if entry.kind not in _NARROWED:
        return entry
    kind, sign = _NARROWED[entry.kind]
    start = "<" if order == "little" else ">"
    wide = np.frombuffer(entry.value, f"{start}{sign}8")
    narrow = wide.astype(f"{start}{sign}4")
    return Entry(kind, narrow.tobytes()) if np.array_equal(narrow, wide) else None
