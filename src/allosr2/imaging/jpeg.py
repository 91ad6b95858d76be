"""JPEG as a list of segments: bytes between them, which decoders pass over, are taken out."""

from __future__ import annotations

EOI = 0xD9
"""The code of the end marker."""
_SOI, _SOS = 0xD8, 0xDA


def without_junk(content: bytes) -> bytes:
    """A file without bytes between the segments before its first scan (ITU-T T.81, B.1.1).

    What cannot be followed, such as a segment that is cut off, stays as it is.
    """
    segments, scan = _before_scan(content)
    return content[:2] + b"".join(segments) + content[scan:] if scan else content


def without_tail(content: bytes, length: int) -> bytes:
    """A file of one picture without so many bytes before its end marker, or its end if it has none."""
    _, scan = _before_scan(content)
    end = content.find(bytes((0xFF, EOI)), scan)
    end = len(content) if end < 0 else end
    return content[: end - length] + bytes((0xFF, EOI))


def _before_scan(content: bytes) -> tuple[list[bytes], int]:
    """The segments before the first scan, and where that begins; 0 where it cannot be followed."""
    segments: list[bytes] = []
    position = 2
    while True:
        marker = content.find(b"\xff", position)
        if marker < 0:
            return segments, 0
        while content[marker + 1 : marker + 2] == b"\xff":  # fill bytes
            marker += 1
        if marker + 4 > len(content):
            return segments, 0
        kind = content[marker + 1]
        if kind in (0, _SOI, EOI):
            position = marker + 2
            continue
        if kind == _SOS:
            return segments, marker
        position = marker + 2 + int.from_bytes(content[marker + 2 : marker + 4], "big")
        segments.append(content[marker:position])
