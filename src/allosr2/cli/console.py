"""How the command line speaks: results to stdout, progress and errors to stderr, one line an error."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from functools import cache

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from allosr2.errors import AlloSR2Error


class _Results(Console):
    """Goes on in silence when nobody reads stdout any more: the work is wanted all the same."""

    def on_broken_pipe(self) -> None:
        abandon_stdout()


@cache
def console() -> Console:
    """The console of results; names and figures are shown as they are, on one line each."""
    return _Results(soft_wrap=True, highlight=False, markup=False, emoji=False)


@cache
def errors_console() -> Console:
    """The same on stderr, for errors, the log and progress: one console, so that lines go above a bar."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, stderr=True)


def abandon_stdout() -> None:
    """Lead stdout, which nobody reads any more, to nowhere: or Python complains when it closes it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress_bar(*columns: TextColumn, shown: bool = True) -> Progress:
    """A bar with what is being done, `columns` and the time left; on terminals only, gone at the end."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TimeRemainingColumn(),
        console=errors_console(),
        transient=True,
        disable=not (shown and errors_console().is_terminal),
    )


def describe(error: Exception) -> str:
    """An error in one line; one that nobody foresaw is named by its type."""
    line = " ".join(str(error).split())
    if isinstance(error, AlloSR2Error):
        return line
    return (
        f"{type(error).__name__}: {line or 'no message'}; allosr2 --debug VERB shows the traceback"
    )


class _Lines(logging.Handler):
    """A line a message, above a progress bar if there is one, and never cut to the terminal's width."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        errors_console().print(f"allosr2: {level}{self.format(record)}")


def set_up_logging(debug: bool) -> None:
    """Send the log to stderr: this package's from INFO (with `debug` DEBUG), others' errors alone."""
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=logging.ERROR, handlers=[_Lines()], format="%(message)s", force=True)
    logging.getLogger("allosr2").setLevel(level)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files can be what it cannot encode
            stream.reconfigure(errors="backslashreplace")
    if not debug:
        # The libraries read these when they are first imported, and they go on to sub-processes.
        for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB"):
            os.environ.setdefault(f"{library}_VERBOSITY", "error")
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of PyTorch's profiler: nothing
        warnings.simplefilter("ignore")
    if (
        not errors_console().is_terminal
    ):  # other libraries' bars: in files and pipes each step is a line
        os.environ.setdefault("TQDM_DISABLE", "1")
