"""The bytes of an image file become a picture: upright, at the file's own depth, errors typed."""

from __future__ import annotations

import io
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from allosr2.errors import ImageError, one_line
from allosr2.imaging import metadata, pillow, png, tiff, vips
from allosr2.imaging.formats import FORMATS, avif_is_srgb, sniff
from allosr2.imaging.limits import Limits, check_pixels
from allosr2.imaging.picture import FULL, Metadata, Picture
from allosr2.imaging.pillow import Levels
from allosr2.imaging.profiles import inks_to_srgb

HEAD_BYTES = 32
"""As many bytes of a file tell its format."""
_SAYS_NOTHING = re.compile(r"^\s*$|unable to (call|open)|load error|bad seek")
_NO_DAMAGE = re.compile(r"unsupported|cannot handle", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """An image as its file has it, before it is turned upright."""

    levels: Levels
    exif: bytes | None
    xmp: bytes | None
    icc_profile: bytes | None
    orientation: int
    frames: int = 1
    doubtful: bool = False
    """Its decoder warns of something, after which it does not say whether all is there."""
    srgb: bool = True
    """What has no profile is sRGB, as far as the file says."""


@contextmanager
def decoding(where: str) -> Generator[None]:
    """Decoders kept quiet, and whatever they raise turned into one `ImageError`."""
    with pillow.quiet():
        try:
            yield
        except ImageError:
            raise
        except UnidentifiedImageError as error:
            raise _unknown(where) from error
        except MemoryError as error:
            raise ImageError(
                f"{where} does not fit into memory; close other programs or cut it into parts"
            ) from error
        except Exception as error:  # damaged bytes make decoders raise nearly anything
            reason = _reason(error)
            if _NO_DAMAGE.search(reason):
                raise _not_read(where, f"a variant of its format ({reason})") from error
            raise ImageError(
                f"{where} cannot be decoded ({reason}); it is damaged or truncated, fetch it again"
            ) from error


def decode(content: bytes, limits: Limits, where: str) -> Picture:
    """The picture in the bytes of a file.

    Args:
        content: the whole file.
        limits: its pixels are counted before they are decoded.
        where: what messages call the file.

    Raises:
        ImageError: for bytes that are damaged, truncated or of another format, more pixels than
            allowed, and samples of 32 bits or with a sign.
    """
    with decoding(where):
        file_format = sniff(content[:HEAD_BYTES])
        if file_format is None:
            raise _unknown(where)
        stored = _DECODERS[file_format](content, limits, where)
        return _upright(stored, file_format)


def decode_size(stream: BinaryIO, limits: Limits, where: str) -> tuple[int, int]:
    """Height and width of the upright picture, from the header alone; errors as in `decode`."""
    with decoding(where):
        head = stream.read(HEAD_BYTES)
        file_format = sniff(head)
        stream.seek(0)
        if file_format is None:
            raise _unknown(where)
        if file_format == "PNG":
            layout = png.read_layout(stream)
            height, width = layout.height, layout.width
            said = png.read_metadata(stream, layout)
            orientation = _orientation(said.exif, said.xmp)
        elif file_format == "TIFF":
            layout = _tiff_layout(stream, limits, where)
            height, width = layout.height, layout.width
            orientation = _orientation(layout.exif, layout.xmp)
        else:
            if file_format == "WEBP":
                check_pixels(*pillow.webp_size(head), limits, where)
            with pillow.open_image(stream, file_format) as image:
                height, width = image.height, image.width
                orientation = _orientation(image.info.get("exif"), image.info.get("xmp"))
        check_pixels(height, width, limits, where)
        return (width, height) if orientation >= 5 else (height, width)


_orientation = metadata.orientation_of


def _decode_png(content: bytes, limits: Limits, where: str) -> _Stored:
    stream = io.BytesIO(content)
    layout = png.read_layout(stream)
    check_pixels(layout.height, layout.width, limits, where)
    png.check_sums(content, layout)
    said = png.read_metadata(stream, layout)
    samples = vips.Opened(png.pixels_alone(content, layout), "PNG").levels()
    return _Stored(
        levels=_split(samples),
        exif=said.exif,
        xmp=said.xmp,
        icc_profile=said.icc_profile,
        orientation=_orientation(said.exif, said.xmp),
        frames=layout.frames,
        srgb=png.is_srgb(stream, layout),
    )


def _decode_tiff(content: bytes, limits: Limits, where: str) -> _Stored:
    stream = io.BytesIO(content)
    layout = _tiff_layout(stream, limits, where)
    pages = tiff.count_pages(stream)
    orientation = _orientation(layout.exif, layout.xmp)
    if layout.pillow:
        orientation = 1  # Pillow turns a TIFF upright as it loads it
        with pillow.open_image(content, "TIFF") as image:
            check_pixels(image.height, image.width, limits, where)
            image.load()
            levels = pillow.levels_of(image, where)
        if layout.bits == 12:  # Pillow leaves the upper four bits empty
            levels = Levels(levels.color << 4 | levels.color >> 8)
    elif layout.apart or layout.lab:
        files = tiff.raw_files(content)
        levels = _raw_levels(
            np.dstack([vips.Opened(raw, "TIFF").levels() for raw in files]), layout
        )
    else:
        opened = vips.Opened(content, "TIFF")
        check_pixels(*opened.size, limits, where)
        levels = _tiff_levels(opened.levels(), layout)
    return _Stored(
        levels=levels,
        exif=layout.exif,
        xmp=layout.xmp,
        icc_profile=None if layout.lab else layout.icc_profile,
        orientation=orientation,
        frames=pages,
    )


def _tiff_layout(stream: BinaryIO, limits: Limits, where: str) -> tiff.Layout:
    """What the first directory says, but for what is not read. Raises ImageError for that."""
    layout = tiff.read_layout(stream)
    check_pixels(layout.height, layout.width, limits, where)
    if layout.bits > 16 or not layout.integer:
        raise pillow.unknown_range(where)
    if layout.unread:
        raise _not_read(where, layout.unread)
    return layout


def _decode_jpeg(content: bytes, limits: Limits, where: str) -> _Stored:
    with pillow.open_image(content, "JPEG") as image:
        check_pixels(image.height, image.width, limits, where)
        samples = vips.decode_jpeg(content)
        if samples is not None:
            return _stored_of(image, Levels(samples))
        image.load()
        return replace(_stored_of(image, pillow.levels_of(image, where)), doubtful=True)


def _decode_webp(content: bytes, limits: Limits, where: str) -> _Stored:
    # Pillow makes room for all pixels as it opens the file.
    if int.from_bytes(content[4:8], "little") + 8 > len(content):
        raise ValueError("cut off before its end")
    check_pixels(*pillow.webp_size(content), limits, where)
    return _decode_shallow("WEBP", content, limits, where)


def _decode_bmp(content: bytes, limits: Limits, where: str) -> _Stored:
    return _decode_shallow("BMP", content, limits, where)


def _decode_avif(content: bytes, limits: Limits, where: str) -> _Stored:
    with pillow.open_image(content, "AVIF") as image:
        check_pixels(image.height, image.width, limits, where)
        srgb = avif_is_srgb(content)
        opened = vips.Opened(content, "AVIF")
        if opened.depth <= 8:
            return replace(_decode_shallow("AVIF", content, limits, where), srgb=srgb)
        check_pixels(*opened.size, limits, where)
        samples = opened.levels()
        if image.mode == "L":  # libvips repeats it
            samples = samples[..., :1]
        # libvips has turned it upright.
        return replace(_stored_of(image, _split(samples)), orientation=1, srgb=srgb)


def _decode_shallow(file_format: str, content: bytes, limits: Limits, where: str) -> _Stored:
    with pillow.open_image(content, file_format) as image:
        check_pixels(image.height, image.width, limits, where)
        image.load()
        return _stored_of(image, pillow.levels_of(image, where))


def _stored_of(image: Image.Image, levels: Levels) -> _Stored:
    exif = image.info.get("exif")
    xmp: object = image.info.get("xmp")
    packet = xmp if isinstance(xmp, bytes) else None
    return _Stored(
        levels=levels,
        exif=exif,
        xmp=packet,
        icc_profile=image.info.get("icc_profile"),
        orientation=_orientation(exif, packet),
        frames=getattr(image, "n_frames", 1),
    )


_DECODERS = {
    "PNG": _decode_png,
    "JPEG": _decode_jpeg,
    "WEBP": _decode_webp,
    "TIFF": _decode_tiff,
    "BMP": _decode_bmp,
    "AVIF": _decode_avif,
}
assert _DECODERS.keys() == FORMATS.keys()


def _split(samples: np.ndarray) -> Levels:
    """`h w n` with n of 1 to 4 as gray or RGB and, for even n, opacity."""
    if samples.shape[2] % 2:
        return Levels(samples)
    return Levels(np.ascontiguousarray(samples[..., :-1]), samples[..., -1].copy())


def _tiff_levels(samples: np.ndarray, layout: tiff.Layout) -> Levels:
    """`h w n` as gray, RGB or CMYK and, where the file says so, opacity; other channels are left out."""
    # libvips leaves a palette of gray as gray, and adds opacity of its own to some YCbCr.
    colors = min(samples.shape[2] - layout.others, layout.colors)
    alpha = None if layout.alpha is None else samples[..., colors + layout.alpha].copy()
    return Levels(np.ascontiguousarray(samples[..., :colors]), alpha)


def _raw_levels(samples: np.ndarray, layout: tiff.Layout) -> Levels:
    """The same of samples as they are stored, which libvips otherwise does justice to."""
    color, alpha = _tiff_levels(samples, layout)
    if layout.lab:
        color = vips.lab_to_srgb(color)
    if layout.inverted:
        color = FULL[color.dtype.name] - color
    if layout.associated:
        assert alpha is not None
        color = pillow.straight(color, alpha)
    return Levels(color, alpha)


def _upright(stored: _Stored, file_format: str) -> Picture:
    """What a viewer shows: sRGB for inks, upright, with metadata that is true of it."""
    notes: list[str] = []
    color, alpha = stored.levels
    icc_profile = stored.icc_profile
    if stored.frames > 1:
        notes.append(f"the first of {stored.frames} frames")
    if stored.doubtful:
        notes.append("its decoder warns of an odd structure: look whether the picture is whole")
    if icc_profile is None and not stored.srgb:
        notes.append("taken for sRGB: it says without a profile that it is something else")
    if color.shape[2] == 4:
        color, note = inks_to_srgb(color, icc_profile)
        icc_profile = None
        notes.append(note)
    if icc_profile and not metadata.fits(icc_profile, color.shape[2]):
        icc_profile = None
        notes.append(
            f"ICC profile left out: it is none of {'gray' if color.shape[2] == 1 else 'RGB'}"
        )
    try:
        exif = metadata.upright_exif(stored.exif)
    except ValueError:
        exif = None
        notes.append("EXIF left out: it is damaged")
    return Picture(
        color=metadata.turn_upright(color, stored.orientation),
        alpha=None if alpha is None else metadata.turn_upright(alpha, stored.orientation),
        metadata=Metadata(
            icc_profile=icc_profile,
            exif=exif,
            xmp=metadata.upright_xmp(stored.xmp),
        ),
        format=file_format,
        notes=tuple(notes),
    )


def _reason(error: Exception) -> str:
    """What is wrong with a file, by what its decoder says."""
    if not isinstance(error, vips.Error):
        return one_line(error) or type(error).__name__
    # libvips says first what failed, and repeats in the end that it did.
    lines = [line.strip() for line in error.detail.splitlines() if not _SAYS_NOTHING.search(line)]
    return lines[-1] if lines else "its data are damaged"


def _not_read(where: str, what: str) -> ImageError:
    """The refusal of a file that is valid."""
    return ImageError(
        f"{where} uses {what}, which is not read; save it as an 8- or 16-bit TIFF or PNG"
    )


def _unknown(where: str) -> ImageError:
    return ImageError(
        f"{where} is no readable image of a known format; convert it to one of {', '.join(FORMATS)}"
    )
