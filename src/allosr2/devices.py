"""Where a model runs."""

from __future__ import annotations

import torch

from allosr2.errors import ConfigError


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
