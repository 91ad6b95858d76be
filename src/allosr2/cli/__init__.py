"""One-step x4 super-resolution of real photographs with a flow model (arXiv:2604.19238)."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any, NoReturn

import tyro

from allosr2.cli.ablate import Ablate, ablate
from allosr2.cli.bench import Bench, bench
from allosr2.cli.compare import Compare, compare
from allosr2.cli.console import abandon_stdout, describe, errors_console, set_up_logging
from allosr2.cli.data import Data, data
from allosr2.cli.degrade import Degrade, degrade
from allosr2.cli.diagnose import Diagnose, diagnose
from allosr2.cli.evaluate import Evaluate, evaluate
from allosr2.cli.info import Info, info
from allosr2.cli.prepare import Prepare, prepare
from allosr2.cli.snr import Snr, snr
from allosr2.cli.train import INTERRUPTED, Train, train
from allosr2.cli.upscale import Upscale, upscale
from allosr2.errors import AlloSR2Error
from allosr2.pipeline import still_at_work

_VERBS: dict[type, Callable[[Any], int]] = {
    Upscale: upscale,
    Train: train,
    Data: data,
    Prepare: prepare,
    Snr: snr,
    Degrade: degrade,
    Evaluate: evaluate,
    Compare: compare,
    Bench: bench,
    Ablate: ablate,
    Diagnose: diagnose,
    Info: info,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """The whole command line."""

    verb: (
        Upscale
        | Train
        | Data
        | Prepare
        | Snr
        | Degrade
        | Evaluate
        | Compare
        | Bench
        | Ablate
        | Diagnose
        | Info
    )
    debug: bool = False
    """Show tracebacks and the debug log. Stands before the verb."""


def run() -> NoReturn:
    """Run the process's own command line and end the process."""
    # Read when PyTorch is loaded. Waiting threads that spin take cores from those that decode, encode and load.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    exit_code = main()
    if exit_code == INTERRUPTED or still_at_work():
        # At once: the interpreter's own end takes PyTorch seconds on a busy machine, and would tear a
        # thread that is deep in a tile out of C++ code, which aborts the process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `allosr2 ARGV` (by default the process's own arguments) and return its exit code.

    0 is success, 1 an error that nobody foresaw, 2 a setting, 3 an image, 4 a model, 5 a data folder
    that cannot be used, 130 an interruption.
    """
    debug = False
    try:
        command = _parse(sys.argv[1:] if argv is None else argv)
        debug = command.debug
        set_up_logging(debug)
        return _VERBS[type(command.verb)](command.verb)
    except KeyboardInterrupt:
        errors_console().print("allosr2: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader, such as head, has seen enough
        abandon_stdout()
        return 0
    except Exception as error:
        if debug:
            raise
        errors_console().print(f"allosr2: error: {describe(error)}")
        return error.exit_code if isinstance(error, AlloSR2Error) else 1


def _parse(argv: Sequence[str]) -> Command:
    """Parse a command line; an error of a config's own checks comes out as it was raised."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return tyro.cli(
                Command,
                prog="allosr2",
                description=__doc__,
                args=argv,
                config=(
                    tyro.conf.OmitSubcommandPrefixes,
                    tyro.conf.OmitArgPrefixes,
                    tyro.conf.FlagCreatePairsOff,
                ),
            )
    except SystemExit as exit_:
        # tyro turns any ValueError into a box of its own; the error itself is still in the chain.
        cause: BaseException | None = exit_
        while cause is not None:
            if isinstance(cause, AlloSR2Error):
                raise cause from None
            cause = cause.__context__
        sys.stderr.write(complaint.getvalue())
        raise
