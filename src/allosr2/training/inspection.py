"""Looking at a run on images that it does not learn from, without a trace in what it learns."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.training.config import TrainingConfig
from allosr2.training.diagnostics import Inspection
from allosr2.training.distributed import parts_of_batch, started_processes
from allosr2.training.stage import Stage


def validation_batches(
    config: TrainingConfig, stage: Stage, images: HRImages, device: torch.device
) -> list[Batch]:
    """The run's validation images on the device; the same each time, and as many at once as in training.

    Crops of the validation photographs, or of the run's own `images` if there are none, with drawn images among
    them as in training; degraded as in training, by a seed of their own. Raises DataError as `HRImages` does.
    """
    run, watch = config.run, config.watch
    # the length of the key tells this stream from those of samples
    sequence = np.random.SeedSequence(run.seed, spawn_key=(0,))
    seed = int(sequence.generate_state(1, np.uint64)[0])
    if watch.validation_photos:
        source = HRImages(
            photos=watch.validation_photos,
            procedural=0.0,
            crop=config.images.crop,
            minimum_scale=config.images.minimum_scale,
            cache_gigabytes=config.images.cache_gigabytes,
            seed=seed,
        )
    else:
        source = images.with_seed(seed)
    size = run.batch_size // parts_of_batch(
        run.batch_size, run.accumulation, started_processes().count
    )
    count = watch.validation_images
    parts = [range(first, min(first + size, count)) for first in range(0, count, size)]
    return list(
        batches(source, stage.degradation, parts, scale=stage.scale, workers=0, device=device)
    )


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
