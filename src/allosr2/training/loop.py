"""The training loop, the same for every stage. To resume, run the same command again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path

import torch
from torch import Tensor

from allosr2.data.pairs import Batch, batches, loading_guard
from allosr2.data.photos import HRImages
from allosr2.errors import AlloSR2Error, ConfigError, one_line
from allosr2.manifest import locked
from allosr2.training.checkpoint import load_latest
from allosr2.training.config import AlloSR2Training, TrainingConfig
from allosr2.training.distributed import Processes, join, leave, parts_of_batch
from allosr2.training.guards import NonFiniteSteps, memory_guard
from allosr2.training.inspection import validation_images
from allosr2.training.interrupts import Interrupts, TimeIsUp
from allosr2.training.log import Status
from allosr2.training.noise import sample_generators
from allosr2.training.optimizer import require_optimizer
from allosr2.training.quarantine import Quarantine
from allosr2.training.stage import Stage, build_stage
from allosr2.training.state import TrainingState
from allosr2.training.tracking import require_tracker
from allosr2.training.watch import Watch


def train(
    config: TrainingConfig,
    report: Callable[[Status], None] = lambda _: None,
    *,
    started: float | None = None,
) -> Path:
    """Train to the config's last step and export the model; returns the exported folder.

    Under torchrun every process calls this with the same config; they share each batch out, and the first
    one alone reports and writes.

    A run that was stopped goes on from its last checkpoint, and ends with the same weights as one that was
    not. Being killed loses the steps since that checkpoint. SIGINT and SIGTERM stop the run after the step
    that it is in, with a checkpoint and a KeyboardInterrupt; `run.minutes` do the same with a TimeIsUp, but for
    the last step. An error writes a checkpoint too where it can.

    Args:
        config: what to train, on what, and where to write it.
        report: called after every optimizer step.
        started: what `run.minutes` count from, by `time.monotonic`; None is now.

    Raises:
        AlloSR2Error: for what a user can put right, such as missing photographs or too many damaged ones, a
            base that cannot be loaded, an output folder of another config, losses that stay non-finite, or too
            little memory.
    """
    minutes = config.run.minutes
    begun = time.monotonic() if started is None else started
    deadline = inf if minutes is None else begun + 60 * minutes
    processes, device = join(config.run.device)
    interrupts = Interrupts(speaks=processes.leads, deadline=deadline)
    try:
        with memory_guard(config, device), loading_guard():
            return _train(config, report, interrupts, processes, device)
    finally:
        leave()


def _train(
    config: TrainingConfig,
    report: Callable[[Status], None],
    interrupts: Interrupts,
    processes: Processes,
    device: torch.device,
) -> Path:
    run = config.run
    # what takes no time first: a large base takes minutes to load
    _check_output(run.output)
    require_optimizer(config.optimization)
    require_tracker(config)
    # what is shared out is gathered by all processes at once
    even = isinstance(config, AlloSR2Training) and config.shard_base
    parts = parts_of_batch(run.batch_size, run.accumulation, processes.count, even=even)
    torch.manual_seed(run.seed)  # fresh weights are drawn by the modules' own constructors
    with processes.first_one_first():  # which sets damaged checkpoints aside
        restored = load_latest(run.output / "checkpoints", config, set_aside=processes.leads)
    images = HRImages(
        photos=config.images.photos,
        procedural=config.images.procedural,
        crop=config.images.crop,
        minimum_scale=config.images.minimum_scale,
        maximum_scale=config.images.maximum_scale,
        cache_gigabytes=config.images.cache_gigabytes,
        seed=run.seed,
    )
    validation = validation_images(config, images)
    stage = build_stage(config, images, device, restored.constants if restored else {})
    with _alone_in(run.output, processes):
        state = TrainingState(config, stage, images, processes, restored)
        del restored  # copied by now, and three times the size of what is trained
        if state.step != processes.from_first(state.step, device):
            raise AlloSR2Error(
                f"{run.output}: process {processes.rank} goes on from step {state.step}, the first one does "
                "not; give all one folder that each can read"
            )
        watch = Watch(config, stage, validation, device, step=state.step, writes=processes.leads)
        with closing(watch):
            return _steps(
                config, stage, images, state, watch, report, interrupts, processes, device, parts
            )


def _steps(
    config: TrainingConfig,
    stage: Stage,
    images: HRImages,
    state: TrainingState,
    watch: Watch,
    report: Callable[[Status], None],
    interrupts: Interrupts,
    processes: Processes,
    device: torch.device,
    parts: int,
) -> Path:
    """From the state's step to the last one, and the export."""
    run = config.run
    quarantine = Quarantine(
        run.output / "quarantine.jsonl",
        images,
        config.images.bad_fraction,
        leads=processes.leads,
    )
    non_finite = NonFiniteSteps(
        run.output / "non_finite.jsonl",
        step=state.step,
        batch_size=run.batch_size,
        patience=run.patience,
        writes=processes.leads,
    )
    loader = batches(
        images,
        stage.degradation,
        processes.share(range(state.step, run.steps), run.batch_size, parts),
        scale=stage.scale,
        workers=config.images.workers,
        device=device,
    )
    with closing(loader), interrupts.held_back():
        try:
            if processes.from_first(watch.is_missing(state.step), device):
                with state.averaged_weights():
                    watch.inspect(state.step)
            while state.step < run.steps:
                started = time.perf_counter()
                terms, asked, late = _accumulate(
                    config, stage, loader, quarantine, interrupts, processes, parts
                )
                status = state.update(terms, started)
                non_finite.note(status)
                watch.note(status)
                if processes.leads:
                    report(status)
                if asked:
                    raise KeyboardInterrupt
                if late and state.step < run.steps:  # after the last one it is as good as done
                    raise TimeIsUp
                if state.step % run.checkpoint_every == 0 or state.step == run.steps:
                    state.save()
                if watch.is_due(state.step):
                    with state.averaged_weights():
                        watch.inspect(state.step)
        except (Exception, KeyboardInterrupt):
            state.rescue()
            raise
        folder = run.output / "model"
        if processes.leads:
            with state.averaged_weights():
                folder = stage.export(folder)
        processes.wait()
    return folder


@contextmanager
def _alone_in(folder: Path, processes: Processes) -> Generator[None]:
    """Make the folder of a run and hold it, in the process that leads.

    Raises ConfigError if another run holds it, or if it cannot be made.
    """
    if not processes.leads:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output is {folder}: it cannot be made ({one_line(error)}); choose another"
        ) from error
    with locked(folder):
        yield


def _check_output(folder: Path) -> None:
    """Raise ConfigError if a folder cannot be made, or be written in. Makes none."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ConfigError(
            f"output is {folder}: {nearest} is no folder that can be written in; choose another"
        )


def _accumulate(
    config: TrainingConfig,
    stage: Stage,
    loader: Iterator[Batch],
    quarantine: Quarantine,
    interrupts: Interrupts,
    processes: Processes,
    parts: int,
) -> tuple[dict[str, float], bool, bool]:
    """Gradients of one optimizer step, left in the parameters of every process.

    Returns each term's mean, whether any process was asked to stop, and whether the time of any is up.
    """
    run = config.run
    total: dict[str, Tensor] = {}
    for _ in range(processes.rank, parts, processes.count):
        batch = next(loader)
        quarantine.note(batch)
        device = batch.hr.device
        generators = sample_generators(run.seed, batch.samples, device)
        enabled = run.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            terms = stage.losses(batch, generators)
        (terms["total"] / parts).backward()
        for name, term in terms.items():
            total[name] = total.get(name, 0.0) + term.detach() / parts
    processes.sum_(p.grad for p in stage.module.parameters() if p.grad is not None)
    stops = {"asked": interrupts.asked, "late": interrupts.late}
    flags = {name: total["total"].new_tensor(float(flag)) for name, flag in stops.items()}
    terms = processes.sum_terms(total | flags)
    return terms, bool(terms.pop("asked")), bool(terms.pop("late"))
