"""Pillow's images as levels: the pixels of any mode, and the formats of 8 bits decoded."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from allosr2.errors import ImageError
from allosr2.imaging.picture import FULL

# The plugins themselves: `Image.open` would warn of large pictures and refuse larger ones by a limit
# that belongs to the whole process, and would take a JPEG with previews for several pictures.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}

_GRAY = frozenset({"1", "L", "LA", "La"})


class Levels(NamedTuple):
    """Pixels as they lie in a file."""

    color: np.ndarray
    """`h w c`: gray, RGB, or CMYK where 0 is no ink; uint8 or uint16."""
    alpha: np.ndarray | None = None
    """`h w` of the same dtype; None where there is none."""


def open_image(source: bytes | BinaryIO, file_format: str) -> ImageFile.ImageFile:
    """An image whose header is read and whose pixels are not; its first frame."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    return _PLUGINS[file_format](stream)


def webp_size(content: bytes) -> tuple[int, int]:
    """Height and width of the canvas, by the first chunk (RFC 9649, 2.5 to 2.7).

    Pillow tells it when it has made room for all pixels.
    """
    body = content[20:30]
    if content[12:16] == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
    elif content[12:16] == b"VP8L":
        packed = int.from_bytes(body[1:5], "little")
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(body[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return height, width


def levels_of(image: Image.Image, where: str) -> Levels:
    """The pixels of an image of any mode but those of 32 bits.

    Raises:
        ImageError: for an image without pixels, and for 32-bit samples.
    """
    if not image.width or not image.height:
        raise ImageError(f"{where} has no pixels; give an image of at least 1 x 1")
    if image.mode in ("I", "F"):
        raise unknown_range(where)
    if image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint16)
        key = image.info.get("transparency")
        alpha = None if key is None else np.where(gray == key, 0, 65535).astype(np.uint16)
        return Levels(gray[..., None], alpha)
    if image.mode == "CMYK":
        return Levels(np.array(image))
    if image.mode == "LAB":
        return Levels(np.array(_lab_to_srgb(image)))
    # "La" (premultiplied) has no direct way to RGBA.
    straight = image.convert("LA") if image.mode == "La" else image
    channels = slice(1) if image.mode in _GRAY else slice(3)
    if image.has_transparency_data:
        rgba = np.asarray(straight.convert("RGBA"))
        return Levels(np.ascontiguousarray(rgba[..., channels]), rgba[..., 3].copy())
    if image.mode in _GRAY:
        return Levels(np.array(straight.convert("L"))[..., None])
    return Levels(np.array(straight.convert("RGB")))


def unknown_range(where: str) -> ImageError:
    """The refusal of samples whose black and white are anyone's guess."""
    return ImageError(
        f"{where} has 32-bit or signed samples of unknown range; save it as 8 or 16 bits"
    )


def inks_to_rgb(inks: np.ndarray) -> np.ndarray:
    """CMYK `h w 4`, 0 is no ink, as RGB `h w 3` of the same dtype, without a profile: (1 - c)(1 - k)."""
    full = FULL[inks.dtype.name]
    light = full - inks.astype(np.uint64)
    rgb = (light[..., :3] * light[..., 3:] + full // 2) // full
    return rgb.astype(inks.dtype)


def straight(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Levels `h w c` that were multiplied by their opacity `h w`, divided by it; 0 where it is 0."""
    full = FULL[color.dtype.name]
    divisor = np.maximum(alpha, 1).astype(np.uint64)[..., None]
    divided = (color.astype(np.uint64) * full + divisor // 2) // divisor
    return np.minimum(divided, full).astype(color.dtype)


def transform_to_srgb(icc_profile: bytes, channels: int) -> ImageCms.ImageCmsTransform | None:
    """LittleCMS's way from levels of so many channels (gray 1, RGB 3, CMYK 4) to sRGB; None if it has none.

    Relative colorimetric, every level computed: left to itself, LittleCMS takes 33 of gray's.
    """
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
            {1: "L", 3: "RGB", 4: "CMYK"}[channels],
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.NOOPTIMIZE,
        )
    except (ImageCms.PyCMSError, OSError):
        return None


def _lab_to_srgb(image: Image.Image) -> Image.Image:
    converted = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        # without the second, LittleCMS goes by a grid of colors that is coarse in the dark
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE,
    )
    assert converted is not None  # as it is not done in place
    return converted


# ------------------------------------------------------------------------------------- warnings

# `warnings.catch_warnings` puts the former list of filters back when it ends, which undoes what
# other threads did meanwhile. One entry, put in by the first thread and taken out by the last, does
# not; as "ignore" leaves no trace in a module's registry, the list is as it was.
_quiet_lock = threading.Lock()
_quiet_threads = 0
_OURS = r"(PIL|allosr2\.imaging)\."


@contextmanager
def quiet() -> Generator[None]:
    """Warnings that Pillow raises are dropped; those of others are not. Threads may overlap."""
    global _quiet_threads
    with _quiet_lock:
        _quiet_threads += 1
        if _quiet_threads == 1:
            warnings.filterwarnings("ignore", module=_OURS)
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_threads -= 1
            if _quiet_threads == 0:
                _remove_filter()


def _remove_filter() -> None:
    for entry in list(warnings.filters):
        pattern = entry[3]
        if pattern is not None and getattr(pattern, "pattern", pattern) == _OURS:
            warnings.filters.remove(entry)  # pyright: ignore[reportAttributeAccessIssue]
