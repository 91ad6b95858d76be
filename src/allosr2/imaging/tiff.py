"""TIFF as a list of tags: what is read of one beside its pixels, and EXIF added to one."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from allosr2.imaging.metadata import exif_of_tags

PLANAR, TILE_WIDTH = 284, 322
_LONG = 4
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _STRIP_COUNTS = 273, 279
_SAMPLES, _PREDICTOR, _TILE_OFFSETS, _TILE_COUNTS = 277, 317, 324, 325
_EXTRA, _FORMAT, _XMP, _ICC = 338, 339, 700, 34675
_SEPARATED, _CIELAB = 5, 8
_LZMA = 34925
_MADE_UP_TAGS = frozenset({274, 282, 283, 296})
_PLANE_TAGS = frozenset({_WIDTH, _HEIGHT, _COMPRESSION, _PREDICTOR, 278, TILE_WIDTH, 323})
_NESTED = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What the first directory of a TIFF file says."""

    height: int
    width: int
    bits: int
    """Of a sample; the largest number where they differ."""
    integer: bool
    """Samples are unsigned whole numbers."""
    inks: bool
    """Colors are CMYK."""
    lab: bool
    """Colors are CIE L*a*b*."""
    extra: tuple[int, ...]
    """What samples beyond the colors are: 1 is associated alpha, 2 is alpha, 0 is anything."""
    pillow: bool
    """libvips cannot decode it and Pillow can."""
    apart: bool
    """Each channel lies on its own, in a way that libvips does not read."""
    icc_profile: bytes | None
    xmp: bytes | None
    exif: Image.Exif


def read_layout(stream: BinaryIO) -> Layout:
    """Read the first directory. Raises ValueError for a file that is cut off, and whatever Pillow raises."""
    tags, head = _directory(stream)
    nested: dict[int, dict[int, Any]] = {}
    for tag in _NESTED:
        pointer = tags.get(tag)
        if isinstance(pointer, int) and pointer:
            block = ImageFileDirectory_v2(head, group=tag)
            stream.seek(pointer)
            try:
                block.load(stream)
                nested[tag] = dict(block)
            except Exception:
                del tags[tag]
    _check_extent(tags, stream.seek(0, io.SEEK_END))
    bits = max(_numbers(tags, _BITS, (1,)))
    lab = tags.get(_PHOTOMETRIC) == _CIELAB
    return Layout(
        height=int(tags[_HEIGHT]),
        width=int(tags[_WIDTH]),
        bits=bits,
        integer=set(_numbers(tags, _FORMAT, (1,))) <= {1, 4},  # 4 is undefined: taken for whole
        inks=tags.get(_PHOTOMETRIC) == _SEPARATED,
        lab=lab,
        extra=_numbers(tags, _EXTRA, ()),
        pillow=bits == 12 or (lab and bits == 8) or tags.get(_COMPRESSION) == _LZMA,
        apart=tags.get(PLANAR) == 2 and (TILE_WIDTH in tags or tags.get(_SAMPLES) == 2),
        icc_profile=_block(tags, _ICC),
        xmp=_block(tags, _XMP),
        exif=exif_of_tags(tags, nested),
    )


def planes(content: bytes) -> list[bytes]:
    """A file whose channels lie apart as one gray file a channel.

    libvips reads no such tiles, and gray strips with alpha wrongly. The pixels stay where they are;
    each copy has a directory of its own.
    """
    tags, head = _directory(io.BytesIO(content))
    tiled = TILE_WIDTH in tags
    offsets_tag, counts_tag = (
        (_TILE_OFFSETS, _TILE_COUNTS) if tiled else (_STRIP_OFFSETS, _STRIP_COUNTS)
    )
    offsets, counts = (_numbers(tags, tag, ()) for tag in (offsets_tag, counts_tag))
    channels = int(tags[_SAMPLES])
    parts = len(offsets) // channels
    even = content + b"\0" * (len(content) % 2)
    files: list[bytes] = []
    for channel in range(channels):
        own = slice(channel * parts, (channel + 1) * parts)
        plane = ImageFileDirectory_v2(head)
        for tag in _PLANE_TAGS.intersection(tags):
            plane[tag] = tags[tag]
        plane[_BITS] = _numbers(tags, _BITS, (1,))[0]
        plane[_PHOTOMETRIC] = plane[_SAMPLES] = plane[PLANAR] = 1
        plane[counts_tag] = counts[own]
        plane.tagtype[offsets_tag] = _LONG
        plane[offsets_tag] = (0,) * parts
        block = bytearray(plane.tobytes(len(even)))
        _patch(block, len(even), head, offsets_tag, offsets[own])
        files.append(_repointed(even, len(even)) + block)
    return files


def _patch(block: bytearray, position: int, head: bytes, tag: int, values: tuple[int, ...]) -> None:
    """Set the values of a tag of 32-bit numbers in a directory that lies at a position of its file.

    Pillow takes offsets of strips for relative to the directory's end, and those of tiles not.
    """
    order, entry_bytes, pointer_bytes, count_bytes = _sizes(head)
    for number in range(int.from_bytes(block[:count_bytes], order)):
        entry = count_bytes + number * entry_bytes
        if int.from_bytes(block[entry : entry + 2], order) == tag:
            place = entry + entry_bytes - pointer_bytes
            if 4 * len(values) > pointer_bytes:
                pointer = block[place : place + pointer_bytes]
                place = int.from_bytes(pointer, order) - position
            packed = b"".join(value.to_bytes(4, order) for value in values)
            block[place : place + len(packed)] = packed


def _sizes(head: bytes) -> tuple[Literal["little", "big"], int, int, int]:
    """Byte order, and bytes of an entry, a pointer and a directory's count."""
    order = "little" if head.startswith(b"II") else "big"
    return (order, 20, 8, 8) if b"+" in head[2:4] else (order, 12, 4, 2)


def add_exif(path: Path, exif: bytes | None) -> None:
    """Give a TIFF file the tags of an EXIF block, and take what libvips makes up: resolution, orientation.

    A new directory is written behind the pixels; the former one's entries hold as they are.
    """
    added = Image.Exif()
    with path.open("r+b") as stream:
        head = stream.read(16)
        order, entry_bytes, pointer_bytes, count_bytes = _sizes(head)

        def entries_of(directory: bytes) -> dict[int, bytes]:
            count = int.from_bytes(directory[:count_bytes], order)
            lines = (
                directory[count_bytes + number * entry_bytes :][:entry_bytes]
                for number in range(count)
            )
            return {int.from_bytes(line[:2], order): line for line in lines}

        pointer = slice(pointer_bytes, 2 * pointer_bytes)
        stream.seek(int.from_bytes(head[pointer], order))
        entries = entries_of(stream.read(count_bytes + 64 * entry_bytes))
        entries = {tag: line for tag, line in entries.items() if tag not in _MADE_UP_TAGS}
        position = stream.seek(0, io.SEEK_END)
        position += stream.write(b"\0" * (position % 2))
        if exif:
            added.load(exif)
            directory = ImageFileDirectory_v2(head[: pointer.stop])
            for tag in added:
                directory[tag] = added.get_ifd(tag) if tag in _NESTED else added[tag]
            block = directory.tobytes(position)
            entries = entries_of(block) | entries
            position += stream.write(block)
        stream.write(len(entries).to_bytes(count_bytes, order))
        stream.writelines(line for _, line in sorted(entries.items()))
        stream.write(bytes(pointer_bytes))
        stream.seek(pointer.start)
        stream.write(position.to_bytes(pointer_bytes, order))


def _directory(stream: BinaryIO) -> tuple[dict[int, Any], bytes]:
    """The tags of the first directory, and the header that says how they are stored."""
    stream.seek(0)
    head = stream.read(8)
    if b"+" in head[2:4]:
        head += stream.read(8)
    directory = ImageFileDirectory_v2(head)
    stream.seek(directory.next)
    directory.load(stream)
    # A value is parsed when it is asked for; one that cannot be is as if it were not there.
    tags: dict[int, Any] = {}
    for tag in directory:
        try:
            tags[tag] = directory[tag]
        except Exception:
            continue
    return tags, head


def _check_extent(tags: dict[int, Any], end: int) -> None:
    """Refuse strips or tiles that lie behind the end of the file. Raises ValueError."""
    for offsets, counts in ((_STRIP_OFFSETS, _STRIP_COUNTS), (_TILE_OFFSETS, _TILE_COUNTS)):
        parts = zip(_numbers(tags, offsets, ()), _numbers(tags, counts, ()), strict=False)
        if any(offset + count > end for offset, count in parts):
            raise ValueError("cut off before its last strip or tile")


def _repointed(content: bytes, position: int) -> bytes:
    order, _, length, _ = _sizes(content[:8])
    return content[:length] + position.to_bytes(length, order) + content[2 * length :]


def _numbers(tags: dict[int, Any], tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    found = tags.get(tag, default)
    numbers = found if isinstance(found, tuple) else (found,)
    return tuple(int(number) for number in numbers) or default


def _block(tags: dict[int, Any], tag: int) -> bytes | None:
    found = tags.get(tag)
    return found if isinstance(found, bytes) else None
