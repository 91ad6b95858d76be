"""Checkpoints: a folder of safetensors and one JSON file, complete or absent."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from allosr2.errors import ConfigError, ModelError
from allosr2.training.config import TrainingConfig

FREE_FIELDS = frozenset(
    {
        "run.output",
        "run.steps",
        "run.device",
        "run.compile",
        "run.log_every",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "images.workers",
        "images.cache_gigabytes",
    }
)
"""Fields that may differ between a checkpoint and the run that resumes it."""
_PLACES = {
    "run.output",
    "run.device",
    "images.photos",
    "perceptual.perceptual",
    "base",
    "conditioning",
    "initial",
    "model",
}
"""Fields that say where things lay on the machine that trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not been stopped."""

    step: int
    """Optimizer steps done; the next sample index follows from it."""
    constants: dict[str, float]
    """Numbers measured before the first step, such as t*."""
    weights: dict[str, Tensor]
    """Trained parameters by name."""
    average: dict[str, Tensor]
    """Their moving average; empty if there is none."""
    optimizer: dict[str, Tensor]
    """AdamW's state, `PARAMETER/exp_avg` and so on."""


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
    """The fields of a config that travel with what it trained: all but places on this machine."""
    return {k: v for k, v in config_fields(config).items() if k not in _PLACES}


def save_checkpoint(folder: Path, checkpoint: Checkpoint, config: TrainingConfig) -> Path:
    """Write `folder/step_N`: to a temporary folder first, fsynced, then renamed, so it is whole or absent.

    One that is there already stays: the same config at the same step has the same state.
    """
    final = folder / f"step_{checkpoint.step:08d}"
    if final.is_dir():
        return final
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name in ("weights", "average", "optimizer"):
        tensors: dict[str, Tensor] = getattr(checkpoint, name)
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary / f"{name}.safetensors"
        )
    state = {
        "step": checkpoint.step,
        "constants": checkpoint.constants,
        "config": config_fields(config),
        "torch": torch.__version__,
    }
    (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    for path in (*temporary.iterdir(), temporary):
        _sync(path)
    temporary.rename(final)
    _sync(folder)
    return final


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
    """Remove all but the newest `keep` checkpoints, and what an interrupted write left."""
    for path in (*checkpoints(folder)[:-keep], *folder.glob(".step_*")):
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(path: Path, config: TrainingConfig) -> Checkpoint:
    """Read a checkpoint.

    Raises ModelError if it cannot be read, ConfigError if it was made with another config (naming the
    fields) or is past the config's last step.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        saved, step, constants = state["config"], state["step"], state["constants"]
        tensors = {
            name: load_file(path / f"{name}.safetensors")
            for name in ("weights", "average", "optimizer")
        }
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{path}: the checkpoint cannot be read ({reason}); remove it to go on from the one before"
        ) from error
    _refuse_other_config(path, saved, config_fields(config))
    if step > config.run.steps:
        raise ConfigError(
            f"steps is {config.run.steps}: {path} is past it; use at least {step}, or another --output"
        )
    return Checkpoint(step=step, constants=constants, **tensors)


def _refuse_other_config(path: Path, saved: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changed = [
        f"{name} was {saved.get(name)}, is {asked.get(name)}"
        for name in sorted((saved.keys() | asked.keys()) - FREE_FIELDS)
        if saved.get(name) != asked.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{path}: the run was started with another config ({'; '.join(changed)}); "
            "use the same one to resume, or another --output"
        )
