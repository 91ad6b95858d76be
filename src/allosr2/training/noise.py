"""Random numbers and places of a training step, a generator a sample: how a batch is cut changes none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Window(NamedTuple):
    """A square part of one sample."""

    top: int
    """Its first row."""
    left: int
    """Its first column."""
    side: int
    """Its rows and columns."""


def sample_generators(
    seed: int, samples: Iterable[int], device: torch.device
) -> list[torch.Generator]:
    """Generators of samples, by their indices; each depends on (seed, index) alone."""
    generators: list[torch.Generator] = []
    for index in samples:
        # the last number tells this stream from those of the sample's crop and degradation
        sequence = np.random.SeedSequence(seed, spawn_key=(index, 2))
        state = int(sequence.generate_state(1, np.uint64)[0]) >> 1  # torch takes 63 bits
        generators.append(torch.Generator(device).manual_seed(state))
    return generators


def normal(
    generators: Sequence[torch.Generator], shape: Sequence[int]
) -> Float[Tensor, "b *shape"]:
    """Standard normal numbers, one tensor of `shape` a sample."""
    return torch.stack([torch.randn(shape, generator=g, device=g.device) for g in generators])


def uniform(generators: Sequence[torch.Generator]) -> Float[Tensor, " b"]:
    """Uniform numbers in [0, 1), one a sample."""
    return torch.cat([torch.rand(1, generator=g, device=g.device) for g in generators])


def windows(
    generators: Sequence[torch.Generator], height: int, width: int, side: int
) -> list[Window]:
    """A square of `side` inside `height` x `width` a sample, every place as likely as every other."""
    places = [
        torch.randint(length - side + 1, (), generator=g, device=g.device)
        for g in generators
        for length in (height, width)
    ]
    # all at once: each transfer from a GPU waits for what it has to do
    numbers = iter(torch.stack(places).tolist())
    return [Window(top, left, side) for top, left in zip(numbers, numbers, strict=True)]


def parts(
    x: Float[Tensor, "b c h w"], places: Sequence[Window], unit: int = 1
) -> Float[Tensor, "b c side side"]:
    """The window of each sample; windows are of one side and count in `unit` rows and columns of `x`."""
    cut = [
        sample[:, unit * top : unit * (top + side), unit * left : unit * (left + side)]
        for sample, (top, left, side) in zip(x, places, strict=True)
    ]
    return torch.stack(cut)
