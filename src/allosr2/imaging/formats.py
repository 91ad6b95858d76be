"""The image file formats that are read and written, and what each of them holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from allosr2.imaging.picture import FULL, Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFormat:
    """What a file of one format can hold of a picture, as this package writes it."""

    name: str
    """Pillow's name."""

    suffixes: tuple[str, ...]
    """Of file names, in lower case; the first is the usual one."""

    depth: int
    """Bits of a level that are left of a picture of 16 bits."""

    gray: int
    """Bits up to which gray without alpha stays one channel; 0 where it is repeated as RGB."""

    gray_alpha: bool = False
    """Gray with alpha stays two channels."""

    alpha: bool = True
    """Transparency."""

    icc: bool = True
    """An ICC profile."""

    exif: int | None = None
    """Longest EXIF block in bytes; None for any."""

    xmp: int | None = None
    """Longest XMP packet in bytes; None for any."""

    lossless: str = "always"
    """Whether the levels come back as they were: "always", "by default" or "never"."""

    longest_side: int = 1_000_000
    """Of a picture, in pixels."""

    largest_area: int | None = None
    """Of a picture, in pixels; None for any."""


FORMATS = {
    file_format.name: file_format
    for file_format in (
        # libpng refuses longer sides, in any program.
        FileFormat(name="PNG", suffixes=(".png",), depth=16, gray=16, gray_alpha=True),
        # One JPEG segment holds 65,533 bytes; XMP is preceded by the 29 bytes of its name.
        FileFormat(
            name="JPEG",
            suffixes=(".jpg", ".jpeg", ".jfif"),
            depth=8,
            gray=8,
            alpha=False,
            exif=65_533,
            xmp=65_504,
            lossless="never",
            longest_side=65_500,
        ),
        FileFormat(
            name="WEBP",
            suffixes=(".webp",),
            depth=8,
            gray=0,
            lossless="by default",
            longest_side=16_383,
        ),
        FileFormat(name="TIFF", suffixes=(".tif", ".tiff"), depth=16, gray=16, gray_alpha=True),
        FileFormat(
            name="BMP",
            suffixes=(".bmp",),
            depth=8,
            gray=8,
            alpha=False,
            icc=False,
            exif=0,
            xmp=0,
            largest_area=2**32 // 3 - 1_000_000,  # its size field has 32 bits
        ),
        # Decoders refuse larger areas: libavif, and with it browsers, stops at 16384 x 16384.
        FileFormat(
            name="AVIF",
            suffixes=(".avif",),
            depth=12,
            gray=8,  # libheif's encoder knows deeper ones as RGB alone
            lossless="never",
            longest_side=65_536,
            largest_area=2**28,
        ),
    )
}
"""Every format by its name. No other decoder is let near a file."""

FORMAT_OF_SUFFIX = {
    suffix: file_format.name for file_format in FORMATS.values() for suffix in file_format.suffixes
}
"""The format that a suffix asks for. Writing goes by suffix, reading by content."""


def sniff(content: bytes) -> str | None:
    """The name of the format that a file's first 32 bytes announce; None for any other."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    # The last two are of BigTIFF.
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if content.startswith(b"BM"):
        return "BMP"
    brands = content[8:12], content[16:32]
    if content[4:8] == b"ftyp" and (brands[0] in (b"avif", b"avis") or b"avif" in brands[1]):
        return "AVIF"
    return None


def avif_is_srgb(content: bytes) -> bool:
    """Whether the primaries and transfer that an AVIF file names, if any, are BT.709's with an SDR curve.

    Codes are of ITU-T H.273; 2 is "unspecified".
    """
    found = content.find(b"colrnclx")
    primaries, transfer = content[found + 8 : found + 10], content[found + 10 : found + 12]
    return found < 0 or (
        primaries[-1:] in b"\x01\x02" and transfer[-1:] in b"\x01\x02\x06\x0d\x0e\x0f"
    )


def is_gray(picture: Picture, file_format: str) -> bool:
    """Whether a picture is written with one channel of color."""
    holds = FORMATS[file_format]
    if picture.color.shape[2] != 1:
        return False
    if picture.alpha is not None and holds.alpha:
        return holds.gray_alpha
    return written_bits(picture, file_format) <= holds.gray


def written_bits(picture: Picture, file_format: str) -> int:
    """Bits of a level in the file."""
    return 8 if picture.color.dtype == np.uint8 else FORMATS[file_format].depth


def is_transparent(picture: Picture) -> bool:
    """Whether any pixel is less than opaque."""
    alpha = picture.alpha
    return alpha is not None and bool((alpha < FULL[alpha.dtype.name]).any())


def notes_of_writing(picture: Picture, file_format: str) -> tuple[str, ...]:
    """What a file of this format leaves out of a picture, each in a few words.

    Args:
        picture: what is to be written.
        file_format: name of the format, such as "PNG".
    """
    holds, metadata = FORMATS[file_format], picture.metadata
    notes: list[str] = []
    if picture.color.dtype != np.uint8 and holds.depth < 16:
        notes.append(f"16 bits rounded to {holds.depth}: {file_format} holds no more")
    if metadata.icc_profile and not keeps_profile(picture, file_format):
        reason = "no such gray" if holds.icc else "none"
        notes.append(f"ICC profile left out: {file_format} holds {reason}")
    for block, what, longest in (
        (metadata.exif, "EXIF", holds.exif),
        (metadata.xmp, "XMP", holds.xmp),
    ):
        if block and longest is not None and len(block) > longest:
            reason = f"{longest} bytes at most" if longest else "none"
            notes.append(f"{what} left out: {file_format} holds {reason}")
    return tuple(notes)


def keeps_profile(picture: Picture, file_format: str) -> bool:
    """Whether the picture's ICC profile is true of the channels that the format holds."""
    gray_levels = picture.color.shape[2] == 1
    return FORMATS[file_format].icc and gray_levels == is_gray(picture, file_format)
