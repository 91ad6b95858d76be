"""Several processes, one device each, as torchrun starts them; without torchrun there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from allosr2.devices import resolve_device
from allosr2.errors import AlloSR2Error, ConfigError


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

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their sums over all processes."""
        if self.count > 1:
            with self._others_present():
                pending = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
                for work in pending:
                    work.wait()  # pyright: ignore[reportOptionalMemberAccess] - asynchronous calls return work

    def sum_terms(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of scalars over all processes, by name."""
        values = torch.stack([term.float() for term in terms.values()])
        self.sum_([values])
        return dict(zip(terms, values, strict=True))

    def copy_from_first_(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by the first process's."""
        if self.count > 1:
            with self._others_present():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            with self._others_present():
                dist.barrier()

    @contextmanager
    def _others_present(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:  # what every engine raises when a process is gone
            raise AlloSR2Error(
                f"process {self.rank}: another process stopped; what it said tells why"
            ) from error


def started_processes() -> Processes:
    """What torchrun says of this process."""
    return Processes(
        rank=int(os.environ.get("RANK", "0")), count=int(os.environ.get("WORLD_SIZE", "1"))
    )


def join(device: str, accumulation: int) -> tuple[Processes, torch.device]:
    """Meet the other processes; returns who is there and the device of this one.

    Raises ConfigError for a device that is absent, and for parts of a batch that cannot be shared out evenly.
    """
    processes = started_processes()
    if accumulation % processes.count:
        raise ConfigError(
            f"accumulation is {accumulation}: {processes.count} processes cannot share the parts of a batch; "
            f"use a multiple of {processes.count}"
        )
    if processes.count == 1:
        return processes, resolve_device(device)
    own = resolve_device(device)
    if own.type == "cuda":
        own = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
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
