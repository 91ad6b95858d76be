"""Checkpoints: a folder of safetensors and one JSON file, complete or absent."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from allosr2.errors import AlloSR2Error, ConfigError, ModelError, one_line
from allosr2.training.config import TrainingConfig

logger = logging.getLogger(__name__)

FREE_FIELDS = frozenset(
    {
        "run.output",
        "run.steps",
        "run.device",
        "run.compile",
        "run.log_every",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.allow_changes",
        "run.minutes",
        "run.patience",
        "run.profile",
        "images.workers",
        "images.cache_gigabytes",
        "images.bad_fraction",
        "watch.tracker",
        "watch.validate_every",
        "watch.validation_images",
        "watch.validation_photos",
        "gradient_checkpointing",
        "checkpointing_interval",
        "shard_base",
    }
)
"""Fields that may differ between a checkpoint and the run that resumes it: each step is the same, but that the
learning rate decays toward another last step."""
_TENSORS = ("weights", "average", "optimizer")
"""Fields of a checkpoint that are files of their own."""
_PASSING = {
    "run.output",
    "run.device",
    "run.minutes",
    "images.photos",
    "watch.validation_photos",
    "perceptual.perceptual",
    "base",
    "conditioning",
    "initial",
    "model",
}
"""Fields that say where things lay on the machine that trained, and when it was to pause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not been stopped."""

    step: int
    """Optimizer steps done; the next sample index follows from it."""
    constants: dict[str, float]
    """Numbers measured before the first step, such as t*."""
    fingerprints: dict[str, str]
    """Of what is trained with and on: frozen weights, photographs."""
    weights: dict[str, Tensor]
    """Trained parameters by name."""
    average: dict[str, Tensor]
    """Their moving average; empty if there is none."""
    optimizer: dict[str, Tensor]
    """The optimizer's state, `PARAMETER/exp_avg` and so on."""


def config_fields(config: TrainingConfig) -> dict[str, Any]:
    """Every field of a config as JSON values, nested names joined by dots."""

    def flatten(prefix: str, value: object) -> dict[str, Any]:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields: dict[str, Any] = {}
            for f in dataclasses.fields(value):
                fields |= flatten(f"{prefix}.{f.name}".lstrip("."), getattr(value, f.name))
            return fields
        if isinstance(value, Path):
            return {prefix: str(value)}
        return {prefix: list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value}

    return flatten("", config)


def provenance_fields(config: TrainingConfig) -> dict[str, Any]:
    """The fields of a config that travel with what it trained: all but places on this machine, and pauses."""
    return {k: v for k, v in config_fields(config).items() if k not in _PASSING}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, config: TrainingConfig) -> Path:
    """Write `folder/step_N`, whole or not at all: to a temporary folder first, hashed, fsynced, then renamed.

    One that is there already stays: the same config at the same step has the same state. Random numbers need
    no place in it: all depend on the run's seed and the index of a sample.

    Raises AlloSR2Error for a state that is not finite, from which nothing could go on, so that the newest
    checkpoint is always worth keeping; and if the disk refuses, which leaves those that are there as they are.
    """
    final = folder / f"step_{checkpoint.step:08d}"
    if final.is_dir():
        return final
    _check_finite(folder, checkpoint)
    temporary = folder / f".{final.name}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        digests: dict[str, str] = {}
        for name in _TENSORS:
            tensors: dict[str, Tensor] = getattr(checkpoint, name)
            path = temporary / f"{name}.safetensors"
            save_file({k: v.contiguous() for k, v in tensors.items()}, path)
            digests[path.name] = _digest(path)
        state = {
            "step": checkpoint.step,
            "next_sample": checkpoint.step * config.run.batch_size,
            "constants": checkpoint.constants,
            "fingerprints": checkpoint.fingerprints,
            "sha256": digests,
            "versions": {name: version(name) for name in ("allosr2", "torch", "diffusers", "peft")}
            | {"python": platform.python_version()},
            "config": config_fields(config),
        }
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        temporary.rename(final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise AlloSR2Error(
            f"{final}: the checkpoint cannot be written ({one_line(error)}); make room and run the same "
            "command again to resume from the one before"
        ) from error
    return final


def _check_finite(folder: Path, checkpoint: Checkpoint) -> None:
    for part in _TENSORS:
        tensors: dict[str, Tensor] = getattr(checkpoint, part)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                kept = checkpoints(folder)
                before = f"the last good checkpoint is {kept[-1].name}" if kept else "there is none"
                raise AlloSR2Error(
                    f"{folder}: {name} ({part}) is not finite at step {checkpoint.step}, which is not "
                    f"written ({before}); lower the learning rate"
                )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*"))


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what an interrupted write or removal left."""
    for path in checkpoints(folder)[:-keep]:
        # hidden first: what bears the name of a checkpoint is whole
        path.rename(path.with_name(f".{path.name}.old"))
    for path in folder.glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)


def load_latest(folder: Path, config: TrainingConfig, *, set_aside: bool) -> Checkpoint | None:
    """The newest checkpoint of a run that can be read; None if it has none yet.

    A damaged one is warned of and passed over; with `set_aside` it is renamed too, to `damaged_step_N`, so that
    the run can write it anew. Raises ModelError if all are damaged, ConfigError as `load_checkpoint`.
    """
    damaged: dict[Path, ModelError] = {}
    for path in reversed(checkpoints(folder)):
        try:
            checkpoint = load_checkpoint(path, config)
        except ModelError as error:
            damaged[path] = error
            continue
        if set_aside:
            for other, error in damaged.items():
                shutil.rmtree(folder / f"damaged_{other.name}", ignore_errors=True)
                other.rename(folder / f"damaged_{other.name}")
                logger.warning("%s; %s, the one before, is used", error, path.name)
        return checkpoint
    if damaged:
        newest = next(iter(damaged.values()))
        raise ModelError(
            f"{newest}, and none before it can; remove {folder} to start anew, or use another --output"
        )
    return None


def load_checkpoint(path: Path, config: TrainingConfig) -> Checkpoint:
    """Read a checkpoint.

    Raises ModelError if it cannot be read or its files are not as they were written; ConfigError if it was made
    with another config (naming the fields; with `allow_changes` they are logged) or is past the config's last
    step.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        saved, step, constants = state["config"], state["step"], state["constants"]
        fingerprints, digests = state["fingerprints"], state["sha256"]
        for name in _TENSORS:
            file = path / f"{name}.safetensors"
            if _digest(file) != digests[file.name]:
                raise ValueError(f"{file.name} is not as it was written")
        tensors = {name: load_file(path / f"{name}.safetensors") for name in _TENSORS}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: the checkpoint cannot be read ({one_line(error)})") from error
    _check_config(path, saved, config)
    if step > config.run.steps:
        raise ConfigError(
            f"steps is {config.run.steps}: {path} is past it; use at least {step}, or another --output"
        )
    return Checkpoint(step=step, constants=constants, fingerprints=fingerprints, **tensors)


def _check_config(path: Path, saved: Mapping[str, Any], config: TrainingConfig) -> None:
    asked = config_fields(config)
    changed = [
        f"{name} was {saved.get(name)}, is {asked.get(name)}"
        for name in sorted((saved.keys() | asked.keys()) - FREE_FIELDS)
        if saved.get(name) != asked.get(name)
    ]
    if changed and config.run.allow_changes:
        logger.warning("%s: goes on with another config (%s)", path, "; ".join(changed))
    elif changed:
        raise ConfigError(
            f"{path}: the run was started with another config ({'; '.join(changed)}); use the same one to "
            "resume, --allow-changes to go on with this one, or another --output"
        )
