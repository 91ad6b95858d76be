"""Image files and arrays, in and out: RGB as a viewer shows it, and the metadata beside it."""

import errno
import io
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from allosr2.errors import ImageError
from allosr2.imaging.decoding import (
    FORMATS,
    check_size,
    decoding,
    rgb_profile,
    split_alpha,
    turn_upright,
    upright_exif,
)

FORMAT_OF_SUFFIX = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""The file formats that are read and written. Writing goes by suffix, reading by content."""

# Photographs lose nothing that the enlargement put in: full chroma for JPEG, lossless elsewhere.
# TIFF stays uncompressed, as Pillow's compressed writer fails on the nested blocks of EXIF.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "TIFF": {},
    "BMP": {},
}
_HOLDS_ALPHA = frozenset({"PNG", "WEBP", "TIFF"})
_HOLDS_METADATA = frozenset({"PNG", "JPEG", "WEBP", "TIFF"})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageMetadata:
    """What an image file holds beside its colors."""

    alpha: UInt8[np.ndarray, "h w"] | None = None
    """Opacity, 255 is opaque; None where the file has no transparency."""

    icc_profile: bytes | None = None
    """ICC profile of the RGB values; None for sRGB, and for profiles of another color space."""

    exif: bytes | None = None
    """EXIF block; its orientation, where there is one, says upright."""


def read_image(path: Path) -> tuple[UInt8[np.ndarray, "h w 3"], ImageMetadata]:
    """Read a picture the way a viewer shows it: upright, RGB, 8 bits.

    Gray, palette, CMYK and 16-bit gray become RGB; 16 bits are scaled to 8, never clipped. A
    profile of gray or CMYK values is dropped, as it would be wrong for RGB. A JPEG that carries
    more pictures (MPO: previews, stereo) is its first one, which is the photograph.

    Raises:
        ImageError: for a path that is missing or no file, a file that is empty, truncated, damaged
            or of another format, more than `decoding.MAX_PIXELS`, several frames or pages, and
            32-bit samples, whose range is unknown.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path} is a folder, not an image; name one file in it")
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise ImageError(f"{path} is no regular file; name an image file")
    with decoding(str(path)):
        if path.stat().st_size == 0:
            raise ImageError(f"{path} is empty; fetch or export the image again")
        with Image.open(path, formats=FORMATS) as image:
            check_size(image, str(path))
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if frames > 1:
                raise ImageError(
                    f"{path} holds {frames} frames or pages; save the one to enlarge on its own"
                )
            image.load()
            upright = turn_upright(image)
            color, alpha = split_alpha(upright, str(path))
            icc_profile = rgb_profile(image.info.get("icc_profile"))
            return color, ImageMetadata(
                alpha=alpha, icc_profile=icc_profile, exif=upright_exif(image)
            )


def read_size(path: Path) -> tuple[int, int]:
    """Height and width in pixels as stored, from the header alone. Raises ImageError as `read_image`."""
    with decoding(str(path)), Image.open(path, formats=FORMATS) as image:
        check_size(image, str(path))
        return image.height, image.width


def check_target(path: Path, metadata: ImageMetadata) -> None:
    """Refuse, before any work is done, a target that `write_image` would refuse.

    Raises:
        ImageError: for an unknown suffix, transparency that the format cannot hold, a path that is
            a folder, and a folder that is absent or cannot be written.
    """
    path = Path(path)
    file_format = FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if file_format is None:
        raise ImageError(
            f"cannot write {path}: unknown suffix; use one of {', '.join(FORMAT_OF_SUFFIX)}"
        )
    transparent = metadata.alpha is not None and (metadata.alpha < 255).any()
    if transparent and file_format not in _HOLDS_ALPHA:
        raise ImageError(f"cannot write {path}: {file_format} holds no transparency; use .png")
    if path.is_dir():
        raise _refused(path, errno.EISDIR)
    if not path.parent.is_dir():
        raise _refused(path, errno.ENOTDIR if path.parent.exists() else errno.ENOENT)
    if not os.access(path.parent, os.W_OK):
        raise _refused(path, errno.EACCES)


def write_image(path: Path, image: UInt8[np.ndarray, "h w 3"], metadata: ImageMetadata) -> None:
    """Write a picture in the format that the suffix of `path` names, whole or not at all.

    The file is built beside its target under a hidden name and renamed when it is safely on disk:
    a reader never sees half a picture, and a failure leaves the former file as it was. JPEG is
    written at quality 95 with full chroma, WEBP without loss, TIFF without compression. BMP holds
    neither profile nor EXIF.

    Args:
        path: target; its folder must exist.
        image: colors.
        metadata: as from `read_image`, with `alpha` of the size of `image`.

    Raises:
        ImageError: for an unknown suffix, transparency that the format cannot hold, a size that it
            cannot hold, and a folder or disk that cannot be written.
    """
    path = Path(path)
    encoded = _encode(path, image, metadata)
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        try:
            with partial.open("xb") as stream:
                stream.write(encoded)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error.errno or errno.EIO) from error


def _refused(path: Path, number: int) -> ImageError:
    return ImageError(
        f"cannot write {path}: {os.strerror(number)}; "
        "choose a folder that exists, is writable and has room"
    )


def find_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """List the image files of a folder by suffix, any case, sorted; hidden ones are left out.

    Raises:
        ImageError: if `folder` is no folder, or cannot be read; unreadable ones inside it are passed over.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder; name a folder with images")
    try:
        candidates = list(folder.rglob("*") if recursive else folder.iterdir())
    except OSError as error:
        raise ImageError(
            f"{folder} cannot be read: {error.strerror}; check its permissions"
        ) from error
    return sorted(
        path
        for path in candidates
        if path.suffix.lower() in FORMAT_OF_SUFFIX
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def image_from_any(
    image: Image.Image | np.ndarray | Float[Tensor, "..."],
) -> Float[Tensor, "b 3 h w"]:
    """Turn what Python programs hold as a picture into float32 RGB in [0, 1].

    Accepted: a PIL image of any 8-bit or 16-bit mode (turned upright by its EXIF; the frame it
    stands at; its alpha is left out); an array `h w` or `h w 3` of uint8, uint16 or float in
    [0, 1]; a float tensor `3 h w` or `b 3 h w` in [0, 1]. A tensor stays on its device. Floats may
    leave [0, 1] by 0.001 (rounding, resampling) and are clamped.

    Raises:
        ImageError: for anything else, for values out of range or not finite, and for empty images.
    """
    if isinstance(image, Image.Image):
        with decoding("the given PIL image"):
            color, _ = split_alpha(turn_upright(image), "the given PIL image")
        return _batch(color) / 255
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or not image.size:
            raise ImageError(
                f"the given array has shape {image.shape}; give h w (gray) or h w 3 (RGB)"
            )
        color = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        if image.dtype == np.uint8:
            return _batch(color) / 255
        if image.dtype == np.uint16:
            return _batch(color) / 65535
        if not np.issubdtype(image.dtype, np.floating):
            raise ImageError(
                f"the given array has dtype {image.dtype}; give uint8, uint16 or float in [0, 1]"
            )
        return _checked(_batch(color), "the given array")
    if isinstance(image, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        batch = image[None] if image.ndim == 3 else image
        if batch.ndim != 4 or batch.shape[1] != 3 or not batch.numel():
            raise ImageError(
                f"the given tensor has shape {tuple(image.shape)}; give 3 h w or b 3 h w (RGB)"
            )
        if not batch.is_floating_point():
            raise ImageError(
                f"the given tensor has dtype {image.dtype}; give float in [0, 1] (divide by 255)"
            )
        return _checked(batch.float(), "the given tensor")
    raise ImageError(
        f"{type(image).__name__} is no image; give a PIL image, a NumPy array or a torch tensor"
    )


def to_array(image: Float[Tensor, "1 3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Round a picture in [0, 1] to 8 bits; values outside are clamped.

    Raises:
        ImageError: for values that are not finite, which would be written as black dots.
    """
    if not torch.isfinite(image).all():
        raise ImageError("the image holds values that are not finite; compute it in float32")
    levels = image.detach().float().clamp(0, 1).mul_(255).round_().to(torch.uint8)
    return rearrange(levels.cpu(), "1 c h w -> h w c").contiguous().numpy()


def _batch(color: np.ndarray) -> Float[Tensor, "1 3 h w"]:
    channels_first = rearrange(color.astype(np.float32), "h w c -> 1 c h w")
    return torch.tensor(channels_first)


def _checked(image: Float[Tensor, "b 3 h w"], where: str) -> Float[Tensor, "b 3 h w"]:
    # NaN comes through as NaN
    low, high = (float(bound) for bound in torch.aminmax(image.detach()))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ImageError(f"{where} has values from {low:g} to {high:g}; give floats in [0, 1]")
    return image.clamp(0, 1)


def _encode(path: Path, image: UInt8[np.ndarray, "h w 3"], metadata: ImageMetadata) -> bytes:
    """The bytes of the file to write, so that a failure to encode touches no disk."""
    check_target(path, metadata)
    file_format = FORMAT_OF_SUFFIX[path.suffix.lower()]
    levels = image
    if metadata.alpha is not None and file_format in _HOLDS_ALPHA:
        levels = np.dstack([image, metadata.alpha])
    options = dict(_SAVE_OPTIONS[file_format])
    if file_format in _HOLDS_METADATA and metadata.icc_profile:
        options["icc_profile"] = metadata.icc_profile
    if file_format in _HOLDS_METADATA and metadata.exif:
        options["exif"] = metadata.exif
    stream = io.BytesIO()
    try:
        Image.fromarray(levels).save(stream, file_format, **options)
    except Exception as error:  # each encoder has its own way to refuse a size or an EXIF block
        raise ImageError(f"cannot write {path}: {error}; use .png") from error
    return stream.getvalue()
