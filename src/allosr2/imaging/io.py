"""Image files, in and out: a picture as a viewer shows it, and the metadata beside it."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from allosr2.errors import ImageError, one_line
from allosr2.imaging.decoding import decode, decode_size
from allosr2.imaging.encoding import encode
from allosr2.imaging.formats import (
    FORMAT_OF_SUFFIX,
    FORMATS,
    is_transparent,
    notes_of_writing,
)
from allosr2.imaging.kinds import image_from_any, to_array
from allosr2.imaging.limits import Limits, check_file, content_of, in_time, name_of
from allosr2.imaging.picture import Picture

__all__ = [
    "FORMAT_OF_SUFFIX",
    "PART",
    "Limits",
    "check_target",
    "find_images",
    "image_from_any",
    "notes_of_writing",
    "read_image",
    "read_rgb",
    "read_size",
    "to_array",
    "write_image",
]

PART = ".allosr2-*.part"
"""Names of files that are being written; one that stays was left by a process that was killed."""


def read_image(source: Path | BinaryIO, limits: Limits = Limits()) -> Picture:  # noqa: B008 - frozen
    """Read a picture the way a viewer shows it, at the depth that its file has.

    It is turned upright by its EXIF. Gray stays gray; a palette becomes RGB; CMYK becomes sRGB by its
    profile; 10 and 12 bits are scaled to 16. Of several frames or pages the first is taken, and the
    picture's notes say so. A JPEG that carries more pictures (MPO: previews, stereo) is its first
    one, which is the photograph.

    Args:
        source: a file, or a stream that is read to its end.
        limits: what reading may cost.

    Raises:
        ImageError: for a path that is missing or no file, a file that is empty, truncated, damaged
            or of another format, what costs more than `limits`, and samples of 32 bits or with a
            sign, whose range is unknown.
    """
    source = Path(source) if isinstance(source, str) else source
    where = name_of(source)
    content = content_of(source, limits)
    return in_time(lambda: decode(content, limits, where), limits, where)


def read_rgb(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read the colors alone, as 8 bits: 16 are rounded, gray is repeated. Errors as `read_image`."""
    color = read_image(path).color
    if color.dtype == np.uint16:
        color = ((color.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(color, (*color.shape[:2], 3)))


def read_size(path: Path, limits: Limits = Limits()) -> tuple[int, int]:  # noqa: B008 - frozen
    """Height and width of the upright picture in pixels, from the header alone. Errors as `read_image`."""
    path = Path(path)
    check_file(path)
    try:
        with path.open("rb") as stream:
            return in_time(lambda: decode_size(stream, limits, str(path)), limits, str(path))
    except OSError as error:
        raise ImageError(
            f"{path} cannot be read: {error.strerror}; check its permissions"
        ) from error


def check_target(
    path: Path,
    picture: Picture,
    file_format: str | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> None:
    """Refuse, before any work is done, a target that `write_image` would refuse.

    Args:
        path: file to write.
        picture: what is to be written, or what that will be made of.
        file_format: as in `write_image`.
        size: height and width that will be written; None for the picture's own.

    Raises:
        ImageError: for an unknown suffix or format, transparency or a size that the format cannot
            hold, a path that is a folder, and a folder that is absent or cannot be written.
    """
    path = Path(path)
    _check_format(path, picture, _format_of(path, file_format), size)
    if path.is_dir():
        raise _refused(path, errno.EISDIR)
    if not path.parent.is_dir():
        raise _refused(path, errno.ENOTDIR if path.parent.exists() else errno.ENOENT)
    if not os.access(path.parent, os.W_OK):
        raise _refused(path, errno.EACCES)


def write_image(
    target: Path | BinaryIO,
    picture: Picture,
    *,
    file_format: str | None = None,
    quality: int | None = None,
    before_rename: Callable[[Path], None] | None = None,
) -> None:
    """Write a picture, whole or not at all.

    The file is built beside its target under a hidden name and renamed when it is safely on disk:
    a reader never sees half a picture, and a failure leaves the former file as it was. A stream gets
    its first byte when the whole picture is encoded. What the format leaves out, `notes_of_writing`
    says.

    Args:
        target: a file, whose folder must exist, or a stream.
        picture: what is written, at its own depth where the format holds it.
        file_format: Pillow's name of the format, such as "PNG"; None is by suffix, or the format
            that the picture was read from for a stream.
        quality: 1 to 100, for JPEG (95), AVIF (90), and WebP, which is lossless without; ignored by
            the formats that are always lossless.
        before_rename: called with the path of the file that is complete and not yet in its place.

    Raises:
        ImageError: for an unknown suffix or format, a quality out of range, transparency or a size
            that the format cannot hold, and a folder or disk that cannot be written.
        BrokenPipeError: for a stream that nobody reads any more.
    """
    target = Path(target) if isinstance(target, str) else target
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality is {quality}; use a whole number from 1 to 100")
    if not isinstance(target, Path):
        _write_stream(target, picture, file_format or picture.format, quality)
        return
    check_target(target, picture, file_format)
    partial = target.with_name(PART.replace("*", secrets.token_hex(8)))
    try:
        try:
            _encode_file(partial, target, picture, _format_of(target, file_format), quality)
            if before_rename is not None:
                before_rename(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise _refused(target, error.errno or errno.EIO) from error


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


def _write_stream(
    stream: BinaryIO, picture: Picture, file_format: str | None, quality: int | None
) -> None:
    where = name_of(stream)
    name = _known(where, file_format)
    _check_format(where, picture, name, None)
    with tempfile.TemporaryDirectory(prefix="allosr2-") as folder:
        encoded = Path(folder) / "encoded"
        try:
            _encode_file(encoded, where, picture, name, quality)
            with encoded.open("rb") as whole:
                shutil.copyfileobj(whole, stream, 2**20)
            stream.flush()
        except BrokenPipeError:
            raise  # for the command line, which ends as other programs in a pipe do
        except OSError as error:
            raise ImageError(f"cannot write {where}: {error.strerror}; check the disk") from error


def _encode_file(
    partial: Path, where: Path | str, picture: Picture, file_format: str, quality: int | None
) -> None:
    """Encode into a new file and wait until it is on disk. Raises OSError and ImageError."""
    partial.touch(exist_ok=False)
    try:
        encode(partial, picture, file_format, quality)
    except OSError as error:
        if error.errno is not None:
            raise
        raise _not_encoded(where, error) from error
    except Exception as error:  # each encoder has its own way to refuse a picture
        raise _not_encoded(where, error) from error
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())


def _not_encoded(where: Path | str, error: Exception) -> ImageError:
    return ImageError(f"cannot write {where}: {one_line(error)}; use .png")


def _sync_folder(folder: Path) -> None:
    """Wait until a rename is on disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _format_of(path: Path, file_format: str | None) -> str:
    if file_format is not None:
        return _known(path, file_format)
    named = FORMAT_OF_SUFFIX.get(path.suffix.lower())
    if named is None:
        raise ImageError(
            f"cannot write {path}: unknown suffix; use one of {', '.join(FORMAT_OF_SUFFIX)}"
        )
    return named


def _known(where: Path | str, file_format: str | None) -> str:
    if file_format not in FORMATS:
        raise ImageError(
            f"cannot write {where}: format {file_format} is unknown; use one of {', '.join(FORMATS)}"
        )
    return file_format


def _check_format(
    where: Path | str, picture: Picture, file_format: str, size: tuple[int, int] | None
) -> None:
    holds = FORMATS[file_format]
    if is_transparent(picture) and not holds.alpha:
        raise ImageError(f"cannot write {where}: {file_format} holds no transparency; use .png")
    height, width = size or (picture.height, picture.width)
    if max(height, width) > holds.longest_side:
        limit = f"{holds.longest_side} pixels a side"
    elif holds.largest_area is not None and height * width > holds.largest_area:
        limit = f"{holds.largest_area / 1e6:.0f} megapixels"
    else:
        return
    raise ImageError(
        f"cannot write {where}: {width} x {height} is too large for {file_format}, which holds "
        f"{limit}; use .png"
    )


def _refused(path: Path, number: int) -> ImageError:
    return ImageError(
        f"cannot write {path}: {os.strerror(number)}; "
        "choose a folder that exists, is writable and has room"
    )
