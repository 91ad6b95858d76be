"""What Pillow decodes, made plain: upright 8-bit RGB, opacity, profile, EXIF, typed errors."""

import logging
import threading
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from allosr2.errors import ImageError

_logger = logging.getLogger(__name__)

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
"""Pillow's names of the file formats that are decoded; no other decoder is let near a file."""

MAX_PIXELS = 150_000_000
"""Largest picture that is decoded, in pixels; below the size at which Pillow itself refuses."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Where the pixels of the *source* file lie and how they are packed (a TIFF keeps this among its
# EXIF tags), with its color profile, which travels on its own. All wrong for any other file.
_PIXEL_LAYOUT_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 280, 281, 284, 292, 293, 317}
    | {320, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 529, 530, 531, 532}
    | {513, 514, 700, 33723, 34377, 34675, 37724}
)

_PIXEL_SIZE_TAGS = frozenset({40962, 40963})
"""PixelXDimension and PixelYDimension, which cameras write: wrong of the enlarged picture."""

# `warnings.catch_warnings` swaps the process's filters: two threads inside it at once would leave
# the wrong ones behind.
_WARNINGS_LOCK = threading.Lock()


@contextmanager
def decoding(where: str) -> Generator[None]:
    """Pillow kept quiet, and whatever it raises turned into one `ImageError`."""
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImageError:
            raise
        except Image.DecompressionBombError as error:
            raise ImageError(_too_large(where, "more pixels than Pillow accepts")) from error
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{where} is no readable image of a known format; convert it to one of "
                f"{', '.join(FORMATS)}"
            ) from error
        except PermissionError as error:
            raise ImageError(f"{where} may not be read; change its permissions") from error
        except Exception as error:  # damaged bytes make decoders raise nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(
                f"{where} cannot be decoded ({reason}); it is damaged or truncated, fetch it again"
            ) from error


def check_size(image: Image.Image, where: str) -> None:
    """Refuse more than `MAX_PIXELS` while only the header is read.

    Raises:
        ImageError: naming the size and the limit.
    """
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ImageError(_too_large(where, f"{pixels / 1e6:.0f} megapixels"))


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the orientation of the EXIF block; the block itself stays as it is."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block is no reason to refuse the picture
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def upright_exif(image: Image.Image) -> bytes | None:
    """The EXIF block without the source's orientation, pixel layout and size."""
    try:
        exif = image.getexif()
        for tag in _PIXEL_LAYOUT_TAGS.intersection(exif):
            del exif[tag]
        if ExifTags.IFD.Exif in exif:
            details = exif.get_ifd(ExifTags.IFD.Exif)
            for tag in _PIXEL_SIZE_TAGS.intersection(details):
                del details[tag]
        if ExifTags.Base.Orientation in exif:
            exif[ExifTags.Base.Orientation] = 1
        return exif.tobytes() if len(exif) else None
    except Exception as error:  # as in `turn_upright`
        _logger.warning("EXIF left out, it is damaged: %s", error)
        return None


def rgb_profile(icc_profile: bytes | None) -> bytes | None:
    """The ICC profile if it describes RGB values, else None."""
    # Bytes 16 to 19 of an ICC header name the color space of the values (ICC.1:2022, 7.2.6).
    return icc_profile if icc_profile and icc_profile[16:20] == b"RGB " else None


def split_alpha(
    image: Image.Image, where: str
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]:
    """Colors and opacity (None where there is none) of a PIL image; 16 bits are scaled to 8.

    Raises:
        ImageError: for an image without pixels, and for 32-bit samples.
    """
    if not image.width or not image.height:
        raise ImageError(f"{where} has no pixels; give an image of at least 1 x 1")
    if image.mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint32)
        key = image.info.get("transparency")
        alpha = None if key is None else np.where(gray == key, 0, 255).astype(np.uint8)
        return np.repeat(((gray * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, 2), alpha
    if image.mode in ("I", "F"):
        raise ImageError(f"{where} has 32-bit samples of unknown range; save it as 8 or 16 bits")
    if image.has_transparency_data:
        # "La" (premultiplied) has no direct way to RGBA.
        straight = image.convert("LA") if image.mode == "La" else image
        levels = np.asarray(straight.convert("RGBA"))
        return np.ascontiguousarray(levels[..., :3]), np.ascontiguousarray(levels[..., 3])
    return np.array(image.convert("RGB")), None


def _too_large(where: str, size: str) -> str:
    return f"{where} has {size}, the limit is {MAX_PIXELS / 1e6:.0f} megapixels; cut it into parts"
