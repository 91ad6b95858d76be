"""Where a run's curves and pictures go, beside its own log: TensorBoard, Weights & Biases or trackio."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from jaxtyping import UInt8

from allosr2.errors import ConfigError, one_line
from allosr2.training.checkpoint import config_fields
from allosr2.training.config import TrainingConfig

logger = logging.getLogger(__name__)

PROJECT = "allosr2"
"""The project that runs belong to, unless WANDB_PROJECT says otherwise."""

_EXTRAS = {"tensorboard": "train", "wandb": "trackers", "trackio": "trackers"}
"""The extra that brings the package of a tracker; both have the tracker's name."""


class Tracker(Protocol):
    """What a run tells of itself while it trains."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Points of curves by name; what stands before a slash groups them."""
        ...

    def picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """An RGB picture."""
        ...

    def close(self) -> None:
        """Write what is left; nothing is told afterwards."""
        ...


def require_tracker(config: TrainingConfig) -> None:
    """Raise ConfigError if the package of the tracker that a config names is not installed; imports nothing."""
    name = config.watch.tracker
    if name in _EXTRAS and find_spec(name) is None:
        raise _missing(name)


def open_tracker(config: TrainingConfig, *, step: int) -> Tracker:
    """The tracker that a config names; it begins with the config's fields.

    One that fails later on, as the disk is full or the network away, is given up with a warning: training
    goes on without.

    Args:
        config: of the run. TensorBoard's files lie in `tensorboard` in its output folder.
        step: optimizer steps done. Where there are some, what was told of them is continued, and what was
            told of later ones, which come again, is dropped as far as the tracker can drop it.

    Raises:
        ConfigError: if the tracker's package is not installed, or it cannot start.
    """
    name = config.watch.tracker
    trackers: dict[str, Callable[[TrainingConfig, int], Tracker]] = {
        "tensorboard": _TensorBoard,
        "wandb": _WandB,
        "trackio": _Trackio,
    }
    if name not in trackers:
        return no_tracker()
    try:
        return _Dispensable(name, trackers[name](config, step))
    except ImportError as error:
        raise _missing(name) from error
    except Exception as error:
        raise ConfigError(
            f"tracker is {name}: it cannot start ({one_line(error)}); put that right, or use --tracker none"
        ) from error


def _missing(name: str) -> ConfigError:
    return ConfigError(
        f"tracker is {name}: it needs pip install 'allosr2[{_EXTRAS[name]}]'; or use --tracker none"
    )


def no_tracker() -> Tracker:
    """A tracker that keeps nothing."""
    return _Dispensable("none", None)


class _Dispensable:
    """A tracker, until it fails for the first time."""

    def __init__(self, name: str, tracker: Tracker | None) -> None:
        self._name = name
        self._tracker = tracker

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._tell(lambda tracker: tracker.numbers(values, step))

    def picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        self._tell(lambda tracker: tracker.picture(name, picture, step))

    def close(self) -> None:
        self._tell(lambda tracker: tracker.close())
        self._tracker = None

    def _tell(self, call: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # whatever disk, network or another's library came to
            self._tracker = None
            logger.warning("%s failed (%s); training goes on without", self._name, one_line(error))


class _TensorBoard:
    """Event files, written as events come.

    TensorBoard's own writer leaves that to a thread, whose traceback shows in the console on a full disk.
    """

    def __init__(self, config: TrainingConfig, step: int) -> None:
        tensorboard = cast(Any, import_module("torch.utils.tensorboard"))
        self._summary = cast(Any, import_module("torch.utils.tensorboard.summary"))
        self._events = cast(Any, import_module("tensorboard.compat.proto.event_pb2"))
        folder = config.run.output / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        # files are read in the order of their names, and runs can follow each other within a second
        seconds, nanoseconds = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{nanoseconds:09d}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._records = tensorboard.RecordWriter(self._file)
        self._write(0, file_version="brain.Event:2")
        # events from its step on are dropped, those of the checkpoint's own step are not to be
        log = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step + 1 if step else 0, session_log=log)
        rows = (f"| {name} | `{value}` |" for name, value in config_fields(config).items())
        table = "\n".join(["| field | value |", "| --- | --- |", *rows])
        self._write(step, summary=self._summary.text("config", table))
        self._file.flush()

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))
        self._file.flush()  # or a kill takes the last curves along

    def picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        self._write(step, summary=self._summary.image(name, picture, dataformats="HWC"))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, **content: object) -> None:
        event = self._events.Event(wall_time=time.time(), step=step, **content)
        self._records.write(event.SerializeToString())


class _WandB:
    def __init__(self, config: TrainingConfig, step: int) -> None:
        self._wandb = cast(Any, import_module("wandb"))
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.run.output.name,
            id=_identity(config.run.output, step),
            resume="allow",
            dir=config.run.output,
            config=config_fields(config),
            settings=self._wandb.Settings(console="off"),  # it would take hold of the progress bar
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._log(dict(values), step)

    def picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        self._log({name: self._wandb.Image(picture)}, step)

    def close(self) -> None:
        self._run.finish()

    def _log(self, values: dict[str, Any], step: int) -> None:
        # steps that come again are there already, and it would warn of each
        if step >= self._run.starting_step:
            self._run.log(values, step=step)


class _Trackio:
    def __init__(self, config: TrainingConfig, step: int) -> None:
        self._trackio = cast(Any, import_module("trackio"))
        with redirect_stdout(sys.stderr):  # stdout is for results
            self._trackio.init(
                project=PROJECT,
                name=f"{config.run.output.name}-{_identity(config.run.output, step)}",
                resume="allow",
                config=config_fields(config),
            )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self._trackio.log(dict(values), step=step)

    def picture(self, name: str, picture: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        self._trackio.log({name: self._trackio.Image(picture)}, step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


def _identity(output: Path, step: int) -> str:
    """What a run is known by elsewhere: kept in its output folder, and drawn anew with its first step."""
    path = output / "tracker_id"
    if not step or not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{secrets.token_hex(4)}\n")
    return path.read_text().strip()
