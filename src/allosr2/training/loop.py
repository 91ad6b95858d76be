"""The training loop, the same for every stage. To resume, run the same command again."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.devices import resolve_device
from allosr2.errors import AlloSR2Error
from allosr2.training.checkpoint import (
    Checkpoint,
    checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from allosr2.training.config import TrainingConfig
from allosr2.training.stage import Stage, build_stage

logger = logging.getLogger(__name__)

PATIENCE = 20
"""Non-finite steps in a row after which a run stops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What one optimizer step did."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the whole run."""
    learning_rate: float
    """Learning rate of the step."""
    gradient_norm: float
    """Global gradient norm before clipping."""
    terms: dict[str, float]
    """Loss terms by name, averaged over the batch."""


def train(config: TrainingConfig, report: Callable[[Status], None] = lambda _: None) -> Path:
    """Train to the config's last step and export the model; returns the exported folder.

    Raises AlloSR2Error for what a user can put right. Interrupting loses at most the steps since the last
    checkpoint; KeyboardInterrupt writes one first.
    """
    run = config.run
    device = resolve_device(run.device)
    torch.manual_seed(run.seed)  # fresh weights are drawn by the modules' own constructors
    latest = checkpoints(run.output / "checkpoints")[-1:]
    restored = load_checkpoint(latest[0], config) if latest else None
    images = HRImages(
        photos=config.images.photos,
        procedural=config.images.procedural,
        crop=config.images.crop,
        minimum_scale=config.images.minimum_scale,
        cache_gigabytes=config.images.cache_gigabytes,
        seed=run.seed,
    )
    stage = build_stage(config, images, device, restored.constants if restored else {})
    state = _TrainingState(config, stage, restored)
    loader = batches(
        images,
        stage.degradation,
        scale=stage.scale,
        batch_size=run.batch_size // run.accumulation,
        first=state.step * run.batch_size,
        last=run.steps * run.batch_size,
        workers=config.images.workers,
    )
    unsuccessful = 0
    try:
        while state.step < run.steps:
            started = time.perf_counter()
            terms = _accumulate(config, stage, loader, device, state.step)
            status = state.update(terms)
            unsuccessful = 0 if np.isfinite(status.gradient_norm) else unsuccessful + 1
            if unsuccessful == PATIENCE:
                raise AlloSR2Error(
                    f"{run.output}: {PATIENCE} steps in a row had non-finite gradients, the last at step "
                    f"{state.step}; lower the learning rate, or use --precision float32"
                )
            if state.step % run.log_every == 0 or state.step == run.steps:
                _log(run.output, status, time.perf_counter() - started)
            report(status)
            if state.step % run.checkpoint_every == 0 and state.step < run.steps:
                state.save()
    except KeyboardInterrupt:
        state.save()
        raise
    state.save()
    with state.averaged_weights():
        return stage.export(run.output / "model")


def _accumulate(
    config: TrainingConfig, stage: Stage, loader: Iterator[Batch], device: torch.device, step: int
) -> dict[str, Tensor]:
    """Gradients of one optimizer step, left in the parameters; returns the mean of each term."""
    run = config.run
    total: dict[str, Tensor] = {}
    for part in range(run.accumulation):
        batch = next(loader).to(device)
        seed = np.random.SeedSequence((run.seed, step, part)).generate_state(1, np.uint64)[0]
        generator = torch.Generator(device).manual_seed(int(seed) >> 1)
        enabled = run.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            terms = stage.losses(batch, generator)
        (terms["total"] / run.accumulation).backward()
        for name, term in terms.items():
            total[name] = total.get(name, 0.0) + term.detach() / run.accumulation
    return total


class _TrainingState:
    """Parameters, their optimizer and their average, moved from step to step."""

    def __init__(self, config: TrainingConfig, stage: Stage, restored: Checkpoint | None) -> None:
        self.config = config
        self.stage = stage
        self.step = 0
        self.parameters = {n: p for n, p in stage.module.named_parameters() if p.requires_grad}
        optimization = config.optimization
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optimization.learning_rate,
            betas=optimization.betas,
            weight_decay=optimization.weight_decay,
            fused=True,
        )
        self.average = (
            {n: p.detach().clone() for n, p in self.parameters.items()}
            if optimization.ema_decay > 0
            else {}
        )
        if restored:
            self._restore(restored)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.step
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.weights[name])
        for name, tensor in self.average.items():
            tensor.copy_(checkpoint.average[name])
        for key, tensor in checkpoint.optimizer.items():
            name, _, field = key.rpartition("/")
            parameter = self.parameters[name]
            # AdamW's fused kernel wants its step counter in float32 on the parameter's device
            self.optimizer.state[parameter][field] = tensor.to(parameter.device)

    def update(self, terms: dict[str, Tensor]) -> Status:
        """One optimizer step; a non-finite gradient leaves the parameters as they are."""
        optimization = self.config.optimization
        learning_rate = optimization.learning_rate_at(self.step, self.config.run.steps)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), optimization.gradient_clip)
        if bool(norm.isfinite()):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self.optimizer.step()
            # a young average follows fast: the first weights are the worst
            decay = min(optimization.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, tensor in self.average.items():
                    tensor.lerp_(self.parameters[name], 1 - decay)
        else:
            logger.warning("step %d: the gradient is not finite; skipped", self.step)
        self.optimizer.zero_grad()
        self.step += 1
        return Status(
            step=self.step,
            steps=self.config.run.steps,
            learning_rate=learning_rate,
            gradient_norm=float(norm),
            terms={name: float(term) for name, term in terms.items()},
        )

    def save(self) -> None:
        """Write a checkpoint and remove old ones."""
        folder = self.config.run.output / "checkpoints"
        checkpoint = Checkpoint(
            step=self.step,
            constants=self.stage.constants,
            weights={n: p.detach().cpu() for n, p in self.parameters.items()},
            average={n: t.cpu() for n, t in self.average.items()},
            optimizer={
                f"{name}/{field}": tensor.cpu()
                for name, parameter in self.parameters.items()
                for field, tensor in self.optimizer.state[parameter].items()
            },
        )
        save_checkpoint(folder, checkpoint, self.config)
        prune(folder, self.config.run.keep_checkpoints)

    @contextmanager
    def averaged_weights(self) -> Generator[None]:
        """Put the average in the place of the parameters for a while."""
        held = {n: p.detach().clone() for n, p in self.parameters.items()}
        with torch.no_grad():
            for name, tensor in self.average.items():
                self.parameters[name].copy_(tensor)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in held.items():
                    self.parameters[name].copy_(tensor)


def _log(output: Path, status: Status, seconds: float) -> None:
    """Append one line to the run's log."""
    output.mkdir(parents=True, exist_ok=True)
    line = {
        "step": status.step,
        "seconds": round(seconds, 3),
        "learning_rate": status.learning_rate,
        "gradient_norm": status.gradient_norm,
        **status.terms,
    }
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
