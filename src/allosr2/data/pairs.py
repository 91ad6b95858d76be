"""LR/HR training pairs; pair i depends on (seed, i) and the photographs alone, so that one integer resumes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from allosr2.data.degradation import DegradationConfig, DegradationMix, degrade, sample_degradation
from allosr2.data.photos import BadPhoto, HRImages, Sample
from allosr2.errors import AlloSR2Error, DataError, one_line

_Levels = UInt8[np.ndarray, "b h w 3"] | UInt8[Tensor, "b h w 3"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Images that are trained on together, RGB in [0, 1], and where they come from."""

    hr: Float[Tensor, "b 3 h w"]
    """HR images."""
    lr: Float[Tensor, "b 3 h/s w/s"] | None
    """Their degradations, 8-bit values; None where a stage trains on HR images alone."""
    samples: Sequence[int] = ()
    """Index of each image in the sequence of samples."""
    photos: tuple[str, ...] = ()
    """Names of the photographs that were opened for them, damaged ones too."""
    bad: tuple[BadPhoto, ...] = ()
    """Those that were damaged, and replaced."""

    def first(self, count: int) -> Batch:
        """The first images alone; the photographs stay those of all."""
        lr = None if self.lr is None else self.lr[:count]
        return replace(self, hr=self.hr[:count], lr=lr, samples=self.samples[:count])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """A sample and its degradation, as a loading process makes them."""

    index: int
    hr: Sample
    lr: UInt8[np.ndarray, "h w 3"] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Loaded:
    """What a loading process hands over of a batch.

    Pixels are no tensor on the way, which would travel through shared memory: containers have little of it,
    and an interrupt while it changes hands makes the loading process print a traceback.
    """

    hr: _Levels
    lr: _Levels | None
    samples: list[int]
    photos: tuple[str, ...]
    bad: tuple[BadPhoto, ...]

    def pin_memory(self) -> _Loaded:
        """The same where a GPU can fetch it; DataLoader calls this in a thread of its own."""
        lr = None if self.lr is None else torch.as_tensor(self.lr).pin_memory()
        return replace(self, hr=torch.as_tensor(self.hr).pin_memory(), lr=lr)


class _Pairs(Dataset[_Pair | AlloSR2Error]):
    def __init__(
        self,
        images: HRImages,
        degradation: DegradationConfig | DegradationMix | None,
        scale: int,
    ) -> None:
        self.images = images
        self.degradation = degradation
        self.scale = scale

    def __getitem__(self, index: int) -> _Pair | AlloSR2Error:
        # as a value: raised in a loading process, a traceback would become part of the message
        try:
            sample = self.images.sample(index)
            return _Pair(index=index, hr=sample, lr=self._degraded(index, sample))
        except AlloSR2Error as error:
            return error

    def _degraded(self, index: int, sample: Sample) -> UInt8[np.ndarray, "h w 3"] | None:
        if self.degradation is None:
            return None
        drawn = sample_degradation(self.degradation, self.images.seed, index)
        # a copy: not every array is writable
        hr = _to_images(torch.tensor(sample.image[None]))
        lr = degrade(hr, [drawn], self.scale)[0] * 255  # on the 8-bit grid
        return rearrange(lr, "c h w -> h w c").round().byte().numpy()


def _collate(loaded: list[_Pair | AlloSR2Error]) -> _Loaded | AlloSR2Error:
    pairs: list[_Pair] = []
    for item in loaded:
        if isinstance(item, AlloSR2Error):
            return item
        pairs.append(item)
    samples = [pair.hr for pair in pairs]
    degraded = [pair.lr for pair in pairs if pair.lr is not None]
    bad = tuple(bad for sample in samples for bad in sample.bad)
    opened = (*(b.photo for b in bad), *(s.photo for s in samples if s.photo is not None))
    return _Loaded(
        hr=np.stack([sample.image for sample in samples]),
        lr=np.stack(degraded) if degraded else None,
        samples=[pair.index for pair in pairs],
        photos=opened,
        bad=bad,
    )


def batches(
    images: HRImages,
    degradation: DegradationConfig | DegradationMix | None,
    parts: Iterable[Sequence[int]],
    *,
    scale: int,
    workers: int,
    device: torch.device,
) -> Generator[Batch]:
    """Batches of samples on a device, each of the samples that one of `parts` names, in order.

    Photographs are decoded, cropped and degraded in loading processes, two batches ahead each: pairs are the
    same whatever the device is. Decoded photographs are kept as long as
    the generator, up to the images' limit in all processes together. Closing the generator ends the processes;
    neither Ctrl-C nor SIGTERM reaches them.

    Args:
        images: HR images by index.
        degradation: how LR images are made; None for batches of HR images alone.
        parts: indices of the samples of each batch.
        scale: how much smaller LR images are.
        workers: loading processes; 0 loads in this one.
        device: where batches are left.

    Raises:
        DataError: when one photograph after another is damaged, one cannot be read for the moment
            (`Photo.pixels`), and when a loading process dies.
    """
    loader = DataLoader(
        _Pairs(images.with_part_of_cache(max(workers, 1)), degradation, scale),
        batch_sampler=map(list, parts),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
        worker_init_fn=_follow_parent,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),  # or it would draw from the process's own
    )
    with _interrupts_held_back():
        others = set(multiprocessing.active_children())
        loading = iter(loader)
        processes = set(multiprocessing.active_children()) - others
    try:
        with loading_guard():
            for loaded in loading:
                if isinstance(loaded, AlloSR2Error):
                    raise loaded
                yield _batch(loaded, device)
    finally:
        # ends the loading processes, but for those that hang: they do not hear its SIGTERM
        del loading
        for process in processes:
            process.kill()


@contextmanager
def loading_guard() -> Generator[None]:
    """Raise DataError where a loading process died: PyTorch raises its error amid whatever this one does."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"a loading process stopped ({one_line(error)}); where memory is short, lower --workers or "
            "--cache-gigabytes, or give a container more shared memory"
        ) from error


def _follow_parent(_: int) -> None:
    """End a loading process with the one that it loads for, though that be killed.

    Else it waits for ever for someone to take the batch that it has half handed over.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def _interrupts_held_back() -> Generator[None]:
    """Let SIGINT and SIGTERM wait; processes that are started meanwhile never hear them.

    A terminal, torchrun or SLURM sends them to all: the process that trains would find those that load for it
    gone in the middle of its last checkpoint.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _batch(loaded: _Loaded, device: torch.device) -> Batch:
    hr = _to_images(torch.as_tensor(loaded.hr).to(device, non_blocking=True))
    lr = None
    if loaded.lr is not None:
        lr = _to_images(torch.as_tensor(loaded.lr).to(device, non_blocking=True))
    return Batch(hr=hr, lr=lr, samples=loaded.samples, photos=loaded.photos, bad=loaded.bad)


def _to_images(levels: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    return (rearrange(levels, "b h w c -> b c h w") / 255).contiguous()
