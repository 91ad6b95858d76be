"""The bytes of an image file become a picture: upright, at the file's own depth, errors typed."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from allosr2.errors import ImageError, one_line
from allosr2.imaging import metadata, pillow, png, tiff, vips
from allosr2.imaging.formats import FORMATS, sniff
from allosr2.imaging.limits import Limits, check_pixels
from allosr2.imaging.picture import Metadata, Picture
from allosr2.imaging.pillow import Levels
from allosr2.imaging.profiles import inks_to_srgb

HEAD_BYTES = 32
"""As many bytes of a file tell its format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """An image as its file has it, before it is turned upright."""

    levels: Levels
    exif: Image.Exif | bytes | None
    xmp: bytes | None
    icc_profile: bytes | None
    orientation: int
    frames: int = 1


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
            # libvips repeats each message, and says first which of its functions failed.
            lines = error.detail.strip().splitlines() if isinstance(error, vips.Error) else []
            reason = lines[-1] if lines else one_line(error) or type(error).__name__
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
            layout = tiff.read_layout(stream)
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
    samples = vips.Opened(content, "PNG").levels()
    return _Stored(
        levels=_split(samples),
        exif=said.exif,
        xmp=said.xmp,
        icc_profile=said.icc_profile,
        orientation=_orientation(said.exif, said.xmp),
        frames=layout.frames,
    )


def _decode_tiff(content: bytes, limits: Limits, where: str) -> _Stored:
    layout = tiff.read_layout(io.BytesIO(content))
    check_pixels(layout.height, layout.width, limits, where)
    if layout.bits > 16 or not layout.integer:
        raise pillow.unknown_range(where)
    if layout.pillow:
        with pillow.open_image(content, "TIFF") as image:
            image.load()
            levels = pillow.levels_of(image, where)
            frames = getattr(image, "n_frames", 1)
        if layout.bits == 12:  # Pillow leaves the upper four bits empty
            levels = Levels(levels.color << 4 | levels.color >> 8)
    elif layout.apart:
        opened = [vips.Opened(plane, "TIFF") for plane in tiff.planes(content)]
        levels = _tiff_levels(
            np.dstack([plane.levels() for plane in opened]), layout, inks=layout.inks
        )
        frames = 1
    else:
        opened = vips.Opened(content, "TIFF")
        check_pixels(*opened.size, limits, where)
        levels = _tiff_levels(opened.levels(), layout, inks=opened.is_cmyk)
        frames = opened.pages
    return _Stored(
        levels=levels,
        exif=layout.exif,
        xmp=layout.xmp,
        icc_profile=None if layout.lab else layout.icc_profile,
        orientation=_orientation(layout.exif, layout.xmp),
        frames=frames,
    )


def _decode_jpeg(content: bytes, limits: Limits, where: str) -> _Stored:
    with pillow.open_image(content, "JPEG") as image:
        check_pixels(image.height, image.width, limits, where)
        samples = vips.decode_jpeg(content)
        if samples is None:  # bytes between the segments; Pillow passes them over
            image.load()
            levels = pillow.levels_of(image, where)
        else:
            levels = Levels(samples)
        return _stored_of(image, levels)


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
        opened = vips.Opened(content, "AVIF")
        if opened.depth <= 8:
            return _decode_shallow("AVIF", content, limits, where)
        check_pixels(*opened.size, limits, where)
        samples = opened.levels()
        if image.mode == "L":  # libvips repeats it
            samples = samples[..., :1]
        # libvips has turned it upright.
        return replace(_stored_of(image, _split(samples)), orientation=1)


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


def _tiff_levels(samples: np.ndarray, layout: tiff.Layout, *, inks: bool) -> Levels:
    """`h w n` as gray, RGB or CMYK and, where the file says so, opacity."""
    channels = samples.shape[2]
    colors = 4 if inks else 3 if channels >= 3 else 1
    color = np.ascontiguousarray(samples[..., :colors])
    if channels == colors or not layout.extra or layout.extra[0] not in (1, 2):
        return Levels(color)
    # Associated alpha is divided out by libvips, but for planes that are put together here.
    alpha = samples[..., colors].copy()
    if layout.extra[0] == 1 and layout.apart:
        color = pillow.straight(color, alpha)
    return Levels(color, alpha)


def _upright(stored: _Stored, file_format: str) -> Picture:
    """What a viewer shows: sRGB for inks, upright, with metadata that is true of it."""
    notes: list[str] = []
    color, alpha = stored.levels
    icc_profile = stored.icc_profile
    if stored.frames > 1:
        notes.append(f"the first of {stored.frames} frames")
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


def _unknown(where: str) -> ImageError:
    return ImageError(
        f"{where} is no readable image of a known format; convert it to one of {', '.join(FORMATS)}"
    )
