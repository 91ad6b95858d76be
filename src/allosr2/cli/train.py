"""`allosr2 train`: run a recipe."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.progress import TaskID, TextColumn
from tyro.conf import CascadeSubcommandArgs
from tyro.extras import subcommand_type_from_defaults

from allosr2.cli.console import console, errors_console, progress_bar
from allosr2.errors import ConfigError
from allosr2.training.interrupts import TimeIsUp
from allosr2.training.recipes import recipes

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from allosr2.training.config import TrainingConfig
    from allosr2.training.log import Status

    Recipe = TrainingConfig
else:
    Recipe = subcommand_type_from_defaults(
        {name: recipe() for name, recipe in recipes().items()},
        {name: recipe.__doc__.splitlines()[0] for name, recipe in recipes().items()},
        prefix_names=False,
    )

TERMS = (
    "total",
    "reconstruction",
    "perceptual",
    "fatc",
    "atm",
    "generative",
    "grid",
    "hatch",
    "latent",
    "flow_matching",
)
"""Loss terms of all stages, as the bar shows them; the log has diagnostics too."""
QUIET = 60.0
"""Seconds between two lines where there is no terminal for a bar."""
STARTED = time.monotonic()
"""About when the command was started: this module is among the first to be imported, and torch is not."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """Train by a recipe; every field of it is an option. Run the same command again to resume."""

    recipe: Recipe
    """What to train."""
    dry_run: CascadeSubcommandArgs[bool] = False
    """Print what the run will need (parameters, memory, FLOPs), from no weights and no data, and stop."""
    fits: CascadeSubcommandArgs[str | None] = None
    """Memory that --dry-run measures the run against, such as 24GB; the GPU's own, or an A100's 80GB."""


def train(config: Train) -> int:
    """Train with a progress bar, or only plan to; returns the exit code."""
    if config.dry_run:
        from allosr2.cli.plan import print_plan

        return print_plan(config.recipe, config.fits)
    if config.fits is not None:
        raise ConfigError(
            f"fits is {config.fits}: it belongs to --dry-run; add that, or leave it out"
        )
    require_training()
    from allosr2.training.distributed import started_processes

    leads = started_processes().leads
    try:
        with terminated_as_interrupted():
            folder = train_with_bar(config.recipe, leads=leads)
    except TimeIsUp:
        if leads:
            how = _how_to_go_on(config.recipe.run.output)
            minutes = f"{config.recipe.run.minutes:g} minutes are over"
            errors_console().print(f"allosr2: stopped, as {minutes}; {how}")
        return 0
    except KeyboardInterrupt:
        if leads:
            how = _how_to_go_on(config.recipe.run.output)
            errors_console().print(f"allosr2: stopped; {how}")
        return INTERRUPTED
    if leads:
        console().print(str(folder))
    return 0


def train_with_bar(
    config: TrainingConfig, *, leads: bool, note: Callable[[Status], None] = lambda _: None
) -> Path:
    """Train under a progress bar, or with a line now and then where there is no terminal; returns the model.

    The run's minutes count from the start of the command.

    Args:
        config: of the run.
        leads: whether this process speaks, where several train together; errors come from every one.
        note: called after every optimizer step.
    """
    from allosr2.training.loop import train as run

    if not leads:
        logging.getLogger("allosr2").setLevel(logging.ERROR)
    terms = TextColumn("{task.completed}/{task.total}  {task.fields[text]}", markup=False)
    with progress_bar(terms, shown=leads) as bar:
        tasks: list[TaskID] = []
        told = time.monotonic()

        def report(status: Status) -> None:
            nonlocal told
            if bar.disable and time.monotonic() - told > QUIET:
                told = time.monotonic()
                speed = 1 / status.seconds if status.seconds else None
                text = bar_text(status, speed)
                logger.info("step %d of %d: %s", status.step, status.steps, text)
            if not tasks:  # a resumed run starts where it was: its speed counts from there
                name = str(config.run.output)
                task = bar.add_task(name, total=status.steps, completed=status.step - 1, text="")
                tasks.append(task)
            speed = bar.tasks[0].speed
            bar.update(tasks[0], completed=status.step, text=bar_text(status, speed))
            note(status)

        return run(config, report, started=STARTED)


@contextmanager
def terminated_as_interrupted() -> Generator[None]:
    """Take SIGTERM, by which clusters, containers and torchrun end a process, for a Ctrl-C: state is saved."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def bar_text(status: Status, speed: float | None) -> str:
    """Speed, memory and loss terms in one line."""
    rate = "" if speed is None else f"{speed:.2f} it/s  "
    memory = f"{status.memory / 10**9:.1f} GB  "
    terms = "  ".join(f"{name} {status.terms[name]:.4g}" for name in _shown(status))
    return rate + memory + terms


def _shown(status: Status) -> list[str]:
    """The terms of the loss; diagnostics are in the log."""
    return [name for name in TERMS if name in status.terms]


def _how_to_go_on(output: Path) -> str:
    checkpoints = output / "checkpoints"
    if any(checkpoints.glob("step_*")):
        return f"run the same command again to resume from {checkpoints}"
    return "no step was saved yet"


def require_training() -> None:
    """Raise ConfigError if what training needs is not installed."""
    from importlib.util import find_spec

    if find_spec("torchvision") is None:
        raise ConfigError("training needs torchvision: pip install 'allosr2[train]'")
