"""Where a model runs, and how much memory there is."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil
import torch

from allosr2.errors import ConfigError

_CPU = Path("/proc/cpuinfo")

# Files of a container's memory, in bytes, in control groups of version 2, then of version 1: its limit and its
# use; and, in its statistics, the name of cached files that make room when memory is asked for.
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def resolve_device(name: str) -> torch.device:
    """A device by name; "auto" is CUDA where there is a GPU, else the CPU.

    Raises ConfigError for a name that torch does not know and for a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # a known name says nothing of this machine
    except (RuntimeError, AssertionError) as error:  # the latter from a torch built without CUDA
        raise ConfigError(
            f"device is {name}: this machine has no such device; use auto, cpu, cuda or cuda:N"
        ) from error
    return device


def describe_device(device: torch.device) -> str:
    """What a device is, for tables of times: a GPU's name, or the processor's and how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = _CPU.read_text().splitlines() if _CPU.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or "CPU"
    return f"{name}, {torch.get_num_threads()} threads"


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16: GPUs, and processors with AVX512-BF16 or AMX."""
    if device.type != "cpu":
        return True
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; on the CPU within the limit of a container too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved  # torch's own cache is free to torch
    free = psutil.virtual_memory().available
    for folder, limit, used, cached in _GROUPS:
        try:
            bound = (folder / limit).read_text().strip()
            held = int((folder / used).read_text()) - _statistic(folder / "memory.stat", cached)
        except OSError:  # no such group, or not ours to read
            continue
        if bound.isdigit():  # "max" where there is none
            free = min(free, max(int(bound) - held, 0))
    return free


def memory_in_use(device: torch.device) -> int:
    """Bytes in use: on CUDA the most that tensors took so far, on the CPU the process's now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


def _statistic(path: Path, name: str) -> int:
    values = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
    return int(values.get(name, 0))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: " in str(error)
    )
