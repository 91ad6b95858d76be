"""The training loop, the same for every stage. To resume, run the same command again."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.errors import AlloSR2Error, ConfigError, ModelError
from allosr2.training.checkpoint import (
    Checkpoint,
    checkpoints,
    load_checkpoint,
    prune,
    save_checkpoint,
)
from allosr2.training.config import TrainingConfig
from allosr2.training.distributed import Processes, join, leave
from allosr2.training.log import Status, append, rewind
from allosr2.training.noise import sample_generators
from allosr2.training.stage import Stage, build_stage

logger = logging.getLogger(__name__)

PATIENCE = 20
"""Non-finite steps in a row after which a run stops."""


def train(config: TrainingConfig, report: Callable[[Status], None] = lambda _: None) -> Path:
    """Train to the config's last step and export the model; returns the exported folder.

    Under torchrun every process calls this with the same config; they share each batch out, and the first
    one alone reports and writes.

    A run that was stopped goes on from its last checkpoint, and ends with the same weights as one that was
    not. Being killed loses the steps since that checkpoint; KeyboardInterrupt writes one first.

    Args:
        config: what to train, on what, and where to write it.
        report: called after every optimizer step.

    Raises:
        AlloSR2Error: for what a user can put right, such as missing photographs, a base that cannot be
            loaded, an output folder of another config, or gradients that stay non-finite.
    """
    processes, device = join(config.run.device, config.run.accumulation)
    try:
        return _train(config, report, processes, device)
    finally:
        leave()


def _train(
    config: TrainingConfig,
    report: Callable[[Status], None],
    processes: Processes,
    device: torch.device,
) -> Path:
    run = config.run
    _check_output(run.output)  # before minutes of work, not after
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
    run.output.mkdir(parents=True, exist_ok=True)
    state = _TrainingState(config, stage, processes, restored)
    del restored  # copied by now, and three times the size of what is trained
    log = run.output / "log.jsonl"
    if processes.leads:
        rewind(log, state.step)
    loader = batches(
        images,
        stage.degradation,
        scale=stage.scale,
        batch_size=run.batch_size // run.accumulation,
        first=state.step * run.batch_size,
        last=run.steps * run.batch_size,
        workers=config.images.workers,
        process=processes.rank,
        processes=processes.count,
    )
    unsuccessful = 0
    try:
        while state.step < run.steps:
            started = time.perf_counter()
            terms = _accumulate(config, stage, loader, processes, device, state.step)
            status = state.update(terms)
            unsuccessful = 0 if math.isfinite(status.gradient_norm) else unsuccessful + 1
            if unsuccessful == PATIENCE:
                raise AlloSR2Error(
                    f"{run.output}: {PATIENCE} steps in a row had non-finite gradients, the last at step "
                    f"{state.step}; lower the learning rate, or use --precision float32"
                )
            if processes.leads:
                if state.step % run.log_every == 0 or state.step == run.steps:
                    append(log, status, time.perf_counter() - started)
                report(status)
            if state.step % run.checkpoint_every == 0 and state.step < run.steps:
                state.save()
    except KeyboardInterrupt:
        if state.settled:
            with _undisturbed():
                state.save()
        raise
    state.save()
    folder = run.output / "model"
    if processes.leads:
        with state.averaged_weights():
            folder = stage.export(folder)
    processes.wait()
    return folder


def _check_output(folder: Path) -> None:
    """Raise ConfigError if a folder cannot be made, or be written in. Makes none."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ConfigError(
            f"output is {folder}: {nearest} is no folder that can be written in; choose another"
        )


@contextmanager
def _undisturbed() -> Generator[None]:
    """Let nothing but a kill stop what is done: torchrun passes on the Ctrl-C that the terminal sent before."""
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def _accumulate(
    config: TrainingConfig,
    stage: Stage,
    loader: Iterator[Batch],
    processes: Processes,
    device: torch.device,
    step: int,
) -> dict[str, Tensor]:
    """Gradients of one optimizer step, left in the parameters of every process; returns each term's mean."""
    run = config.run
    size = run.batch_size // run.accumulation
    first = step * run.batch_size
    total: dict[str, Tensor] = {}
    for part in range(processes.rank, run.accumulation, processes.count):
        batch = next(loader).to(device)
        generators = sample_generators(run.seed, first + part * size, size, device)
        enabled = run.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            terms = stage.losses(batch, generators)
        (terms["total"] / run.accumulation).backward()
        for name, term in terms.items():
            total[name] = total.get(name, 0.0) + term.detach() / run.accumulation
    processes.sum_(p.grad for p in stage.module.parameters() if p.grad is not None)
    return processes.sum_terms(total)


class _TrainingState:
    """Parameters, their optimizer and their average, moved from step to step."""

    def __init__(
        self,
        config: TrainingConfig,
        stage: Stage,
        processes: Processes,
        restored: Checkpoint | None,
    ) -> None:
        self.config = config
        self.processes = processes
        self.stage = stage
        self.step = 0
        self.settled = True
        """Whether parameters, optimizer and average belong to the same step."""
        self.parameters = {n: p for n, p in stage.module.named_parameters() if p.requires_grad}
        processes.copy_from_first_(p.detach() for p in self.parameters.values())
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
        saved = {name: tensor.shape for name, tensor in checkpoint.weights.items()}
        if saved != {name: parameter.shape for name, parameter in self.parameters.items()}:
            raise ModelError(
                f"{self.config.run.output}: the checkpoints hold other parameters than the model that the "
                "config describes; put the former base back, or use another --output"
            )
        self.step = checkpoint.step
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.weights[name])
        for name, tensor in self.average.items():
            tensor.copy_(checkpoint.average[name])
        for key, tensor in checkpoint.optimizer.items():
            name, _, field = key.rpartition("/")
            parameter = self.parameters[name]
            # AdamW's fused kernel walks through memory: its moments must lie as the parameter does, which
            # may be channels_last, and its step counter, a float32 scalar, on the same device
            like = parameter if field != "step" else parameter.new_empty(())
            self.optimizer.state[parameter][field] = torch.empty_like(like).copy_(tensor)

    def update(self, terms: dict[str, Tensor]) -> Status:
        """One optimizer step; a non-finite gradient leaves the parameters as they are."""
        optimization = self.config.optimization
        learning_rate = optimization.learning_rate_at(self.step, self.config.run.steps)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), optimization.gradient_clip)
        self.settled = False
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
            if self.processes.leads:
                logger.warning("step %d: the gradient is not finite; skipped", self.step + 1)
        self.optimizer.zero_grad()
        self.step += 1
        self.settled = True
        return Status(
            step=self.step,
            steps=self.config.run.steps,
            learning_rate=learning_rate,
            gradient_norm=float(norm),
            terms={name: float(term) for name, term in terms.items()},
        )

    def save(self) -> None:
        """Write a checkpoint and remove old ones, in the process that leads."""
        if not self.processes.leads:
            return
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
