"""Several processes, one device each, as torchrun starts them; without torchrun there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from allosr2.devices import is_out_of_memory, resolve_device
from allosr2.errors import AlloSR2Error, ConfigError, one_line

_BUCKET = 2**25
"""About as many elements are sent at once: tensors one by one take long, all together twice the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among those that train one model together."""

    rank: int = 0
    """Number of this process, from 0."""
    count: int = 1
    """Processes in all."""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes, logs and reports."""
        return self.rank == 0

    def share(self, steps: range, batch_size: int, parts: int) -> list[range]:
        """Samples of each part that is this process's; a batch's parts are dealt out in turn."""
        size = batch_size // parts
        return [
            range(first, first + size)
            for step in steps
            for first in range(step * batch_size, (step + 1) * batch_size, size)[
                self.rank :: self.count
            ]
        ]

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors, of one dtype, by their sums over all processes."""
        if self.count == 1:
            return
        with self._others_present():
            for bucket in _buckets(tensors):
                together = torch.cat([tensor.flatten() for tensor in bucket])
                dist.all_reduce(together)
                parts = together.split([tensor.numel() for tensor in bucket])
                for tensor, part in zip(bucket, parts, strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def sum_terms(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """The sums of scalars over all processes, by name."""
        values = torch.stack([term.float() for term in terms.values()])
        self.sum_([values])
        return dict(zip(terms, values.tolist(), strict=True))

    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by the first process's."""
        if self.count > 1:
            with self._others_present():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def from_first(self, value: int, device: torch.device) -> int:
        """The first process's whole number."""
        shared = torch.tensor(value, device=device)
        self.copy_from_first_([shared])
        return int(shared)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            with self._others_present():
                dist.barrier()

    @contextmanager
    def first_one_first(self) -> Generator[None]:
        """Do something in the process that leads, and only then in the others."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    @contextmanager
    def _others_present(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:  # what every engine raises when a process is gone
            if is_out_of_memory(error):
                raise
            raise AlloSR2Error(
                f"process {self.rank}: another process stopped; what it said tells why"
            ) from error


def started_processes() -> Processes:
    """What torchrun says of this process."""
    return Processes(
        rank=int(os.environ.get("RANK", "0")), count=int(os.environ.get("WORLD_SIZE", "1"))
    )


def parts_of_batch(batch_size: int, least: int, processes: int, *, even: bool = False) -> int:
    """Into how many parts a batch is cut, so that the busiest process has the fewest images: `least` or more.

    Raises ConfigError if there are more processes than images; and, where all must have as many parts (`even`),
    if the processes do not divide the batch.
    """
    if even and batch_size % processes:
        raise ConfigError(
            f"batch_size is {batch_size}: {processes} processes that share a base out (shard_base) need equal "
            f"parts; use a multiple of {processes}"
        )
    if processes > batch_size:
        raise ConfigError(
            f"batch_size is {batch_size}: {processes} processes cannot share so few images; "
            f"use at least {processes}, or fewer processes"
        )
    possible = [
        n
        for n in range(max(least, processes), batch_size + 1)
        if batch_size % n == 0 and not (even and n % processes)
    ]
    return min(possible, key=lambda n: (-(-n // processes) * (batch_size // n), n))


def join(device: str) -> tuple[Processes, torch.device]:
    """Meet the other processes; returns who is there and the device of this one.

    Raises ConfigError for a device that is absent.
    """
    processes = started_processes()
    if processes.count > 1 and (device == "auto" or device.startswith("cuda")):
        if device not in ("auto", "cuda"):
            raise ConfigError(
                f"device is {device}: each of {processes.count} processes has its own; use cuda"
            )
        if device == "cuda" or torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    own = resolve_device(device)
    if processes.count == 1:
        return processes, own
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
        except ValueError as error:  # RANK and WORLD_SIZE alone do not say where the others are
            raise ConfigError(
                f"WORLD_SIZE is {processes.count}: the processes cannot meet ({one_line(error)}); start them "
                "with torchrun"
            ) from error
    return processes, own


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def measured_once(measure: Callable[[], float], device: torch.device) -> float:
    """A number that the first process measures; every process has the same to the last bit."""
    processes = started_processes()
    value = torch.tensor(measure() if processes.leads else 0.0, dtype=torch.float64, device=device)
    processes.copy_from_first_([value])
    return value.item()


def shard(transformer: nn.Module, device: torch.device) -> None:
    """Share a transformer's frozen weights out among the processes (FSDP2); a block is gathered to compute it.

    What is trained stays whole in every process: adapters are small, and their gradients are summed as without.
    The weights go to the device as shards, so that no device ever holds them all. A single process keeps all.
    """
    count = started_processes().count
    if count == 1:
        return
    mesh = init_device_mesh(device.type, (count,))
    trained = {p for p in transformer.parameters() if p.requires_grad}
    kinds = cast(Any, transformer)._repeated_blocks
    blocks = [module for module in transformer.modules() if type(module).__name__ in kinds]
    for module in (*blocks, transformer):
        fully_shard(module, mesh=mesh, ignored_params=trained)


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    size = 0

    def bucket(tensor: Tensor) -> int:
        nonlocal size
        size += tensor.numel()
        return size // _BUCKET

    return (list(group) for _, group in groupby(tensors, key=bucket))
