"""Errors that a user can cause. Each message is one line: what, where, what to do."""

from __future__ import annotations

from typing import ClassVar


def one_line(error: BaseException) -> str:
    """What an error of another library says, in one line and no more than 200 characters."""
    return " ".join(str(error).split())[:200]


class AlloSR2Error(ValueError):
    """Base of every error that a user can cause; the command line prints it without a traceback."""

    exit_code: ClassVar[int] = 2


class ConfigError(AlloSR2Error):
    """A setting has a value that cannot work."""

    exit_code: ClassVar[int] = 2


class ImageError(AlloSR2Error):
    """An image cannot be read, enlarged or written."""

    exit_code: ClassVar[int] = 3


class ModelError(AlloSR2Error):
    """A model folder is missing, incomplete, or does not fit together."""

    exit_code: ClassVar[int] = 4


class DataError(AlloSR2Error):
    """A folder of photographs or of pairs cannot be used."""

    exit_code: ClassVar[int] = 5
