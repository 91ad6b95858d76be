"""Where a model runs."""

from __future__ import annotations

import torch

from allosr2.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """A device by name; "auto" is CUDA where there is a GPU, else the CPU. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {name}: no such device; use auto, cpu, cuda or cuda:N"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {name}: this machine has no CUDA GPU; use auto or cpu")
    return device
