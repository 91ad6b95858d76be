"""AdamW as a training config asks for it, and its exact state as named tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from allosr2.backbones.quantize import require_bitsandbytes
from allosr2.errors import ConfigError
from allosr2.training.config import OptimizationConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizationConfig) -> Optimizer:
    """AdamW over parameters: PyTorch's fused one, or bitsandbytes' with moments of 8 bits.

    The latter lays the parameters out contiguously, as its kernels walk through memory; those of fewer than
    4,096 elements keep moments of 32 bits. Raises ConfigError if bitsandbytes is not installed.
    """
    parameters = list(parameters)
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    require_optimizer(config)
    from bitsandbytes.optim import AdamW8bit

    for parameter in parameters:
        # it would do so itself, but after it has made the first moments in the former layout
        parameter.data = parameter.data.contiguous()
    return cast(Any, AdamW8bit)(parameters, **settings)


def require_optimizer(config: OptimizationConfig) -> None:
    """Raise ConfigError if bitsandbytes is wanted and not installed."""
    if config.optimizer == "adamw-8bit":
        require_bitsandbytes("optimizer is adamw-8bit")


def optimizer_tensors(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The state of an optimizer of named parameters as "PARAMETER/FIELD", on the CPU.

    Nothing is lost, and no two tensors share memory. Those that are on the CPU already are the optimizer's
    own: write them before its next step.
    """
    return {
        f"{name}/{field}": _alone(field, value)
        for name, parameter in parameters.items()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave, bit by bit, into an optimizer that has not taken a step yet.

    Raises ConfigError if the tensors are those of the other optimizer.
    """
    eight_bit = not isinstance(optimizer, torch.optim.AdamW)
    for key, tensor in tensors.items():
        name, _, field = key.rpartition("/")
        if field != "step" and field.startswith("exp_avg") == eight_bit:
            former = "adamw" if eight_bit else "adamw-8bit"
            raise ConfigError(
                f"optimizer is changed: the checkpoint's moments are {former}'s; use --optimizer {former}"
            )
        optimizer.state[parameters[name]][field] = _placed(parameters[name], field, tensor)


def _alone(field: str, value: Tensor | int) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(value)
    # what the 8 bits stand for: a table that all parameters share
    return value.detach().to("cpu", copy=field.startswith("qmap"))


def _placed(parameter: nn.Parameter, field: str, tensor: Tensor) -> Tensor | int:
    """A field of a parameter's state, of the kind and the place in memory in which its kernel expects it."""
    if field == "step" and tensor.dtype == torch.int64:
        return int(tensor)
    tensor = tensor.to(parameter.device)
    if tensor.shape != parameter.shape:
        return tensor.clone()
    # kernels walk through memory: moments must lie as the parameter does, which may be channels_last
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
