"""Image files, in and out: a picture as a viewer shows it, and the metadata beside it."""

from __future__ import annotations

import errno
import os
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
from allosr2.imaging.limits import (
    Limits,
    check_file,
    content_of,
    in_time,
    name_of,
    unreadable,
)
from allosr2.imaging.picture import Picture, rounded
from allosr2.storage import partial_of

__all__ = [
    "FORMAT_OF_SUFFIX",
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


def read_rgb(source: Path | BinaryIO) -> UInt8[np.ndarray, "h w 3"]:
    """Read the colors alone, as 8 bits: 16 are rounded, gray is repeated. Errors as `read_image`."""
    color = rounded(read_image(source).color, np.uint8)
    return np.ascontiguousarray(np.broadcast_to(color, (*color.shape[:2], 3)))


def read_size(path: Path, limits: Limits = Limits()) -> tuple[int, int]:  # noqa: B008 - frozen
    """Height and width of the upright picture in pixels, from the header alone. Errors as `read_image`."""
    path = Path(path)
    try:
        check_file(path, limits)
        with path.open("rb") as stream:
            return in_time(lambda: decode_size(stream, limits, str(path)), limits, str(path))
    except OSError as error:
        raise unreadable(str(path), error) from error


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
            hold, a path that is no regular file, and a folder that cannot be written or, where it is
            absent, made.
    """
    path = Path(path)
    _check_format(path, picture, _format_of(path, file_format), size)
    folder = _place(path).parent
    while not os.path.lexists(folder):
        folder = folder.parent
    try:
        if path.is_dir():
            raise _refused(path, errno.EISDIR)
        if path.exists() and not path.is_file():
            raise ImageError(f"cannot write {path}: it is no regular file; use - for a pipe")
        if not folder.is_dir():
            raise _refused(path, errno.ENOTDIR)
    except OSError as error:
        raise _refused(path, error.errno or errno.EIO) from error
    if not os.access(folder, os.W_OK):
        raise _refused(path, errno.EACCES)


def write_image(
    target: Path | BinaryIO,
    picture: Picture,
    *,
    file_format: str | None = None,
    quality: int | None = None,
    replace: bool = True,
    before_rename: Callable[[Path], None] | None = None,
) -> None:
    """Write a picture, whole or not at all.

    The file is built beside its target under a hidden name and renamed when it is safely on disk:
    a reader never sees half a picture, and a failure leaves the former file as it was. Where the target
    is a link, the file that it leads to is written. A stream gets its first byte when the whole picture
    is encoded. What the format leaves out, `notes_of_writing` says.

    Args:
        target: a file, whose folder must exist, or a stream.
        picture: what is written, at its own depth where the format holds it.
        file_format: Pillow's name of the format, such as "PNG"; None is by suffix, or the format
            that the picture was read from for a stream.
        quality: 1 to 100, for JPEG (95), AVIF (90), and WebP, which is lossless without; ignored by
            the formats that are always lossless.
        replace: whether a file that is in the target's place gives way.
        before_rename: called with the path of the file that is complete and not yet in its place.

    Raises:
        ImageError: for an unknown suffix or format, a quality out of range, transparency or a size
            that the format cannot hold, values that are not finite, a folder or disk that cannot be
            written, and a file that is not to be replaced.
        BrokenPipeError: for a stream that nobody reads any more.
    """
    target = Path(target) if isinstance(target, str) else target
    if quality is not None and not 1 <= quality <= 100:
        raise ImageError(f"quality is {quality}; use a whole number from 1 to 100")
    if not all(
        np.isfinite(levels).all() for levels in (picture.color, picture.alpha) if levels is not None
    ):
        where = name_of(target)
        raise ImageError(
            f"cannot write {where}: it holds values that are not finite; compute it again"
        )
    if not isinstance(target, Path):
        _write_stream(target, picture, file_format or picture.format, quality)
        return
    check_target(target, picture, file_format)
    place = _place(target)
    partial = partial_of(place)
    try:
        try:
            _encode_file(partial, target, picture, _format_of(target, file_format), quality)
            if before_rename is not None:
                before_rename(partial)
            if replace:
                partial.replace(place)
            else:
                _add(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        _sync_folder(place.parent)
    except FileExistsError as error:
        raise ImageError(
            f"cannot write {target}: it exists by now; move it away, or allow to replace it"
        ) from error
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
        raise unreadable(str(folder), error) from error
    return sorted(
        path
        for path in candidates
        if path.suffix.lower() in FORMAT_OF_SUFFIX
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and os.path.isfile(path)  # noqa: PTH113 - False, too, in a folder that may not be searched
    )


def _write_stream(
    stream: BinaryIO, picture: Picture, file_format: str | None, quality: int | None
) -> None:
    where = name_of(stream)
    name = _known(where, file_format)
    _check_format(where, picture, name, None)
    try:
        with tempfile.TemporaryDirectory(prefix="allosr2-") as folder:
            encoded = Path(folder) / "encoded"
            _encode_file(encoded, where, picture, name, quality)
            with encoded.open("rb") as whole:
                shutil.copyfileobj(whole, stream, 2**20)
            stream.flush()
    except BrokenPipeError:
        raise  # for the command line, which ends as other programs in a pipe do
    except OSError as error:
        raise ImageError(
            f"cannot write {where}: {error.strerror or error}; check the disk"
        ) from error


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


def _place(target: Path) -> Path:
    """The file that a target leads to: itself, if it is no link."""
    # not target.is_symlink(), which raises for names that no disk holds
    return Path(os.path.realpath(target)) if os.path.islink(target) else target  # noqa: PTH114


def _add(partial: Path, place: Path) -> None:
    """Let a whole file appear where none is. Raises FileExistsError where one is, and OSError."""
    try:
        os.link(partial, place)  # the one call that never replaces
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(place):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        partial.replace(place)


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
