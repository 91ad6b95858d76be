"""What reading an image may cost: pixels, bytes and seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from allosr2.errors import ConfigError, ImageError

Result = TypeVar("Result")

_CHUNK = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The most that reading one image may cost; whatever costs more is refused. Each may be infinite.

    Raises ConfigError for what is not above 0.
    """

    pixels: float = 150_000_000
    """Pixels of the picture, counted while only the header is read."""

    bytes: float = 2_000_000_000
    """Bytes of the file: 150 megapixels of 16-bit RGBA without compression take 1.2 GB."""

    seconds: float = 60.0
    """Seconds that decoding may take."""

    def __post_init__(self) -> None:
        for name in ("pixels", "bytes", "seconds"):
            value = getattr(self, name)
            if not value > 0:  # NaN is not
                raise ConfigError(f"the limit of {name} is {value:g}: use a number above 0, or inf")


def check_pixels(height: int, width: int, limits: Limits, where: str) -> None:
    """Refuse a picture without pixels, and one with more than `limits.pixels`.

    Raises:
        ImageError: naming the size, the limit and the flag that raises it.
    """
    if not height or not width:
        raise ImageError(f"{where} has no pixels; give an image of at least 1 x 1")
    if height * width > limits.pixels:
        raise ImageError(
            f"{where} has {height * width / 1e6:.0f} megapixels, the limit is "
            f"{limits.pixels / 1e6:g} megapixels; raise it with --max-megapixels"
        )


def check_file(path: Path, limits: Limits) -> None:
    """Refuse a path that is missing or no regular file, and one with more than `limits.bytes`.

    Raises ImageError, and OSError for what cannot be looked at.
    """
    if path.is_dir():
        raise ImageError(f"{path} is a folder, not an image; name one file in it")
    if not path.exists():
        raise ImageError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise ImageError(f"{path} is no regular file; name an image file")
    if path.stat().st_size > limits.bytes:
        raise _too_long(str(path), limits)


def content_of(source: Path | BinaryIO, limits: Limits) -> bytes:
    """The bytes of a regular file, or of a stream to its end.

    Raises:
        ImageError: for a path that is missing or no regular file, one that may not be read, an empty
            file, and more than `limits.bytes`.
    """
    where = name_of(source)
    try:
        if isinstance(source, Path):
            check_file(source, limits)
            with source.open("rb") as stream:
                content = _read(stream, limits, where)
        else:
            content = _read(source, limits, where)
    except OSError as error:
        raise unreadable(where, error) from error
    if not content:
        raise ImageError(f"{where} is empty; fetch or export the image again")
    return content


def unreadable(where: str, error: OSError) -> ImageError:
    """What to raise when the system cannot read a file, stream or folder."""
    if isinstance(error, PermissionError):
        return ImageError(f"{where} may not be read; change its permissions")
    return ImageError(f"{where} cannot be read: {error.strerror or error}; check path and disk")


def name_of(source: Path | BinaryIO) -> str:
    """What messages call a path or a stream."""
    return str(source) if isinstance(source, Path) else str(getattr(source, "name", "the stream"))


def in_time(work: Callable[[], Result], limits: Limits, where: str) -> Result:
    """What `work` returns or raises, in a thread of its own.

    A decoder that runs on cannot be stopped; its thread is left behind, and ends with the process.

    Raises:
        ImageError: after `limits.seconds`, naming the flag that raises the limit.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # for the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name="decoding", daemon=True).start()
    try:
        return future.result(min(limits.seconds, threading.TIMEOUT_MAX))
    except TimeoutError as error:
        if future.done():  # the decoder's own
            raise
        raise ImageError(
            f"{where} takes more than {limits.seconds:g} s to decode; "
            "raise the limit with --max-seconds"
        ) from error


def _read(stream: BinaryIO, limits: Limits, where: str) -> bytes:
    content = bytearray()
    while chunk := stream.read(int(min(_CHUNK, limits.bytes + 1 - len(content)))):
        content += chunk
        if len(content) > limits.bytes:
            raise _too_long(where, limits)
    return bytes(content)


def _too_long(where: str, limits: Limits) -> ImageError:
    return ImageError(
        f"{where} has more than {limits.bytes / 1e6:g} megabytes, the limit; "
        "raise it with --max-megabytes"
    )
