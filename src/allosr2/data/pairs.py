"""LR/HR training pairs, loaded in parallel; pair i depends on (seed, i) alone, so that one integer resumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from allosr2.data.degradation import DegradationConfig, degrade, sample_degradation
from allosr2.data.photos import HRImages
from allosr2.errors import AlloSR2Error


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Images of one step, RGB in [0, 1]."""

    hr: Float[Tensor, "b 3 h w"]
    """HR images."""
    lr: Float[Tensor, "b 3 h/s w/s"] | None
    """Their degradations, 8-bit values; None where a stage trains on HR images alone."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(hr=self.hr.to(device), lr=None if self.lr is None else self.lr.to(device))


_Pair = tuple[UInt8[Tensor, "3 h w"], UInt8[Tensor, "3 h/s w/s"] | None]


class _Pairs(Dataset[_Pair | AlloSR2Error]):
    def __init__(self, images: HRImages, degradation: DegradationConfig | None, scale: int) -> None:
        self.images = images
        self.degradation = degradation
        self.scale = scale

    def __getitem__(self, index: int) -> _Pair | AlloSR2Error:
        # as a value: raised in a loading process, a traceback would become part of the message
        try:
            return self._pair(index)
        except AlloSR2Error as error:
            return error

    def _pair(self, index: int) -> _Pair:
        hr = rearrange(torch.from_numpy(np.array(self.images[index])), "h w c -> c h w")
        if self.degradation is None:
            return hr, None
        drawn = sample_degradation(self.degradation, self.images.seed, index)
        lr = degrade(hr[None] / 255, [drawn], self.scale)[0]
        return hr, (lr * 255).round().to(torch.uint8)  # a quarter of the bytes between processes


def _collate(loaded: list[_Pair | AlloSR2Error]) -> Batch | AlloSR2Error:
    pairs: list[_Pair] = []
    for item in loaded:
        if isinstance(item, AlloSR2Error):
            return item
        pairs.append(item)
    hr = torch.stack([hr for hr, _ in pairs]) / 255
    lr = [lr for _, lr in pairs if lr is not None]
    return Batch(hr=hr, lr=torch.stack(lr) / 255 if lr else None)


def batches(
    images: HRImages,
    degradation: DegradationConfig | None,
    *,
    scale: int,
    batch_size: int,
    first: int,
    last: int,
    workers: int,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Batch]:
    """Batches of samples `first` to `last - 1` in order, each of `batch_size` consecutive ones.

    Of `processes` that share the batches out in turn, number `process` gets its own; `first` is then a
    multiple of `batch_size * processes`. The last batch is smaller if `batch_size` does not divide the
    samples' number. Without a degradation the batches hold HR images alone. Raises DataError when it comes
    to a damaged photograph.
    """
    loader = DataLoader(
        _Pairs(images, degradation, scale),
        batch_size=batch_size,
        sampler=[i for i in range(first, last) if i // batch_size % processes == process],
        num_workers=workers,
        collate_fn=_collate,
        prefetch_factor=4 if workers else None,
    )
    for loaded in loader:
        if isinstance(loaded, AlloSR2Error):
            raise loaded
        yield loaded
