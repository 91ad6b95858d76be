"""PNG as a list of chunks: checked, asked for metadata, and written before the pixels."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from allosr2.imaging.picture import Metadata

HEADER_BYTES = 33
"""Length of the signature and IHDR, after which metadata may follow."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of a sample, by color type (PNG specification, third edition, table 12)."""
_LARGEST_TEXT = 16 * 2**20
"""Bytes that a compressed profile or text may unfold to; whatever claims more is left out."""
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_RAW_PROFILES = ("raw profile type exif", "raw profile type app1", "raw profile type xmp")
"""Keywords of text chunks by which ImageMagick keeps metadata, in lower case."""
_SRGB_CODES = b"\x01\x0d"
"""Primaries and transfer of sRGB (ITU-T H.273, tables 2 and 3)."""
_SRGB_GAMMA = 45_455
"""1 / 2.2 in units of 1 / 100,000, which stands for sRGB."""
_OF_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})


class Chunk(NamedTuple):
    """A chunk of a PNG file."""

    name: bytes
    start: int
    """Offset of its content in the file."""
    length: int
    """Of its content, in bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The chunks of a PNG file and what its first one says."""

    height: int
    width: int
    frames: int
    """1 but for an animation."""
    chunks: tuple[Chunk, ...]


def read_layout(stream: BinaryIO) -> Layout:
    """List the chunks of a file; their content is passed over.

    Raises:
        ValueError: for a file that is no PNG, is cut off, or lacks what every PNG has.
    """
    end = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if stream.read(8) != _SIGNATURE:
        raise ValueError("no PNG signature")
    chunks: list[Chunk] = []
    position = 8
    while not chunks or chunks[-1].name != b"IEND":
        head = stream.read(8)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or position + 12 + length > end:
            raise ValueError("cut off before its end chunk")
        chunks.append(Chunk(head[4:], position + 8, length))
        position = stream.seek(position + 12 + length)
    if chunks[0].name != b"IHDR" or chunks[0].length != 13:
        raise ValueError("no header chunk")
    if not any(chunk.name == b"IDAT" for chunk in chunks):
        raise ValueError("no pixels in it")
    header = _content(stream, chunks[0])
    depth, color_type = header[8], header[9]
    if depth not in _DEPTHS.get(color_type, ()):
        raise ValueError(f"color type {color_type} of {depth} bits")
    return Layout(
        height=int.from_bytes(header[4:8], "big"),
        width=int.from_bytes(header[:4], "big"),
        frames=max(1, sum(chunk.name == b"fcTL" for chunk in chunks)),
        chunks=tuple(chunks),
    )


def check_sums(content: bytes, layout: Layout) -> None:
    """Compare every chunk with its check sum. Raises ValueError, naming the chunk."""
    view = memoryview(content)
    for name, start, length in layout.chunks:
        found = zlib.crc32(view[start - 4 : start + length])
        if found != int.from_bytes(view[start + length : start + length + 4], "big"):
            raise ValueError(f"wrong check sum of {name.decode('latin-1')!r}")


def pixels_alone(content: bytes, layout: Layout) -> bytes:
    """The file without what lies beside its pixels, which decoders would unpack, however large it is."""
    kept = [chunk for chunk in layout.chunks if chunk.name in _OF_PIXELS]
    view = memoryview(content)
    parts = [view[start - 8 : start + length + 4] for _, start, length in kept]
    return _SIGNATURE + b"".join(parts)


def read_metadata(stream: BinaryIO, layout: Layout) -> Metadata:
    """Profile, EXIF and XMP as they are stored, in their own chunks or as ImageMagick's raw profiles.

    Of each the first one, so that no file makes many of them be unpacked.
    """
    found: dict[str, bytes | None] = {}
    for chunk in layout.chunks:
        if chunk.name == b"iCCP" and "icc_profile" not in found:
            _, _, packed = _content(stream, chunk).partition(b"\0")
            found["icc_profile"] = _unpack(packed[1:])
        elif chunk.name == b"eXIf":
            found.setdefault("exif", _content(stream, chunk))
        elif chunk.name == b"iTXt" and "xmp" not in found:
            keyword, _, rest = _content(stream, chunk).partition(b"\0")
            if keyword == _XMP_KEYWORD and len(rest) > 2:
                text = rest[2:].split(b"\0", 2)[-1]  # after the language and the translation
                found["xmp"] = _unpack(text) if rest[0] else text
        elif chunk.name in (b"tEXt", b"zTXt"):
            keyword, _, text = _content(stream, chunk).partition(b"\0")
            name = keyword.decode("latin-1").lower()
            if name in _RAW_PROFILES and name not in found:
                found[name] = _unhex(_unpack(text[1:]) if chunk.name == b"zTXt" else text)
    exif, app1, xmp = (found.pop(name, None) for name in _RAW_PROFILES)
    raw = exif or app1
    if raw and raw.startswith(b"Exif\0\0"):
        found.setdefault("exif", raw)
    found.setdefault("xmp", xmp)
    return Metadata(**found)


def is_srgb(stream: BinaryIO, layout: Layout) -> bool:
    """Whether a file without an ICC profile is of sRGB, as far as it says anything of its colors."""
    first = {chunk.name: chunk for chunk in reversed(layout.chunks)}
    if b"cICP" in first:
        return _content(stream, first[b"cICP"])[:2] == _SRGB_CODES
    if b"gAMA" in first and b"sRGB" not in first:
        return abs(int.from_bytes(_content(stream, first[b"gAMA"])[:4], "big") - _SRGB_GAMMA) < 2000
    return True


def metadata_chunks(metadata: Metadata) -> bytes:
    """The chunks that hold a picture's metadata, to be put between header and pixels."""
    chunks = b""
    if metadata.icc_profile:
        chunks += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc_profile))
    if metadata.exif:
        chunks += _chunk(b"eXIf", metadata.exif.removeprefix(b"Exif\0\0"))
    if metadata.xmp:
        chunks += _chunk(b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + metadata.xmp)
    return chunks


def _chunk(name: bytes, content: bytes) -> bytes:
    check_sum = zlib.crc32(name + content)
    return len(content).to_bytes(4, "big") + name + content + check_sum.to_bytes(4, "big")


def _content(stream: BinaryIO, chunk: Chunk) -> bytes:
    stream.seek(chunk.start)
    return stream.read(chunk.length)


def _unpack(packed: bytes) -> bytes | None:
    """What zlib data unfold to; None for damaged data and bombs."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(packed, _LARGEST_TEXT)
    except zlib.error:
        return None
    return unpacked if unpacker.eof else None


def _unhex(text: bytes | None) -> bytes | None:
    """The bytes of a raw profile: a name, a length, and lines of hexadecimal digits."""
    lines = (text or b"").strip().split(b"\n", 2)
    try:
        return bytes.fromhex(lines[2].decode("ascii")) if len(lines) == 3 else None
    except ValueError:
        return None
