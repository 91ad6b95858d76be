"""The training loop, the same for every stage. To resume, run the same command again."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.errors import ConfigError
from allosr2.training.checkpoint import load_latest
from allosr2.training.config import TrainingConfig
from allosr2.training.distributed import Processes, join, leave, parts_of_batch
from allosr2.training.guards import NonFiniteSteps, memory_guard
from allosr2.training.log import Status
from allosr2.training.noise import sample_generators
from allosr2.training.optimizer import require_optimizer
from allosr2.training.quarantine import Quarantine
from allosr2.training.stage import Stage, build_stage
from allosr2.training.state import TrainingState
from allosr2.training.watch import Watch

logger = logging.getLogger(__name__)


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
        AlloSR2Error: for what a user can put right, such as missing photographs or too many damaged ones, a
            base that cannot be loaded, an output folder of another config, losses that stay non-finite, or too
            little memory.
    """
    processes, device = join(config.run.device)
    try:
        with memory_guard(config, device):
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
    require_optimizer(config.optimization)
    parts = parts_of_batch(run.batch_size, run.accumulation, processes.count)
    torch.manual_seed(run.seed)  # fresh weights are drawn by the modules' own constructors
    with processes.first_one_first():  # which sets damaged checkpoints aside
        restored = load_latest(run.output / "checkpoints", config, set_aside=processes.leads)
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
    state = TrainingState(config, stage, processes, restored)
    del restored  # copied by now, and three times the size of what is trained
    quarantine = Quarantine(run.output / "quarantine.jsonl", images, config.images.bad_fraction)
    non_finite = NonFiniteSteps(
        run.output / "non_finite.jsonl",
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
    watch = Watch(config, stage, images, device, step=state.step, writes=processes.leads)
    with closing(loader), closing(watch):
        try:
            while state.step < run.steps:
                terms = _accumulate(config, stage, loader, quarantine, processes, parts)
                status = state.update(terms)
                non_finite.note(status)
                watch.note(status)
                if processes.leads:
                    report(status)
                if state.step % run.checkpoint_every == 0 and state.step < run.steps:
                    state.save()
                if watch.is_due(state.step):
                    with state.averaged_weights():
                        watch.inspect(state.step)
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
    former = {name: signal.signal(name, signal.SIG_IGN) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in former.items():
            signal.signal(name, handler)


def _accumulate(
    config: TrainingConfig,
    stage: Stage,
    loader: Iterator[Batch],
    quarantine: Quarantine,
    processes: Processes,
    parts: int,
) -> dict[str, float]:
    """Gradients of one optimizer step, left in the parameters of every process; returns each term's mean."""
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
    return processes.sum_terms(total)
