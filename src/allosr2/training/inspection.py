"""Looking at a run on images that it does not learn from, without a trace in what it learns."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import BadPhoto, HRImages
from allosr2.training.config import TrainingConfig
from allosr2.training.diagnostics import Inspection
from allosr2.training.distributed import parts_of_batch, started_processes
from allosr2.training.stage import Stage

logger = logging.getLogger(__name__)


def validation_images(config: TrainingConfig, images: HRImages) -> HRImages:
    """Crops of the validation photographs, or of the run's own `images` if there are none.

    By a seed of their own; in place of the run's own images some are drawn, as in training. Warns of validation
    photographs that cannot be read, and raises DataError as `HRImages` does.
    """
    # no sample's stream has this key: its degradation has (index,), its crop 1 and its noise 2 in place of 3
    sequence = np.random.SeedSequence(config.run.seed, spawn_key=(0, 3))
    seed = int(sequence.generate_state(1, np.uint64)[0])
    if not config.watch.validation_photos:
        return images.with_seed(seed)
    source = HRImages(
        photos=config.watch.validation_photos,
        procedural=0.0,
        crop=config.images.crop,
        minimum_scale=config.images.minimum_scale,
        maximum_scale=config.images.maximum_scale,
        cache_gigabytes=config.images.cache_gigabytes,
        seed=seed,
    )
    _warn(source.folder.unreadable if source.folder else ())
    return source


def validation_batches(
    config: TrainingConfig, stage: Stage, source: HRImages, device: torch.device
) -> list[Batch]:
    """The run's validation images on the device; the same each time, and as many at once as in training.

    Args:
        config: of the run.
        stage: degrades them as in training.
        source: what `validation_images` gives.
        device: where the batches are left.

    Raises DataError as `HRImages.sample` does; damaged photographs are replaced, with a warning of each.
    """
    run, count = config.run, config.watch.validation_images
    size = run.batch_size // parts_of_batch(
        run.batch_size, run.accumulation, started_processes().count
    )
    parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
    made = list(
        batches(source, stage.degradation, parts, scale=stage.scale, workers=0, device=device)
    )
    _warn(bad for batch in made for bad in batch.bad)
    return made


def _warn(found: Iterable[BadPhoto]) -> None:
    """Warn once of each photograph, in one of the processes that all look at the same."""
    if started_processes().leads:
        for reason in {bad.photo: bad.reason for bad in found}.values():
            logger.warning("validation: %s; others take its place", reason)


def inspect(config: TrainingConfig, stage: Stage, batches: Sequence[Batch]) -> Inspection:
    """Look at a stage in the precision that it is trained in, with the weights that it has.

    Parameters, gradients, modes of modules and the states of random generators are afterwards what they were.
    Compiled networks run uncompiled: code compiled for other shapes would serve training's steps too. Where
    processes train together all of them call this, with the same images; nothing is exchanged, but by a
    transformer that is sharded.
    """
    device = batches[0].hr.device
    enabled = config.run.precision == "bfloat16"
    with (
        torch.no_grad(),
        _in_evaluation_mode(stage.module),
        torch.compiler.set_stance("force_eager"),
        torch.autocast(device.type, torch.bfloat16, enabled=enabled),
    ):
        return stage.inspect(batches)


@contextmanager
def _in_evaluation_mode(module: nn.Module) -> Generator[None]:
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
