"""What a config puts on a base before it is trained, or its training is planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import nn

from allosr2.backbones.codec import Codec
from allosr2.backbones.lora import add_adapter
from allosr2.backbones.velocity import VelocityField
from allosr2.errors import ConfigError
from allosr2.training.config import AlloSR2Training


def add_fresh_adapters(config: AlloSR2Training, codec: Codec, velocity: VelocityField) -> None:
    """Put adapters on the VAE and the transformer. Raises ConfigError if no layer has a target's name."""
    adapter = config.adapter
    for part, targets in (
        (codec.vae, adapter.vae_targets or codec.lora_targets),
        (velocity.transformer, adapter.transformer_targets or velocity.lora_targets),
    ):
        add_adapter(part, targets, rank=adapter.rank, alpha=adapter.alpha, init=adapter.init)


def use_gradient_checkpointing(
    config: AlloSR2Training,
    *parts: nn.Module,
    checkpoint: Callable[..., object] | None = None,
) -> None:
    """Turn gradient checkpointing on where the config asks for it, by diffusers' function or another.

    Raises ConfigError for a part that has none.
    """
    if not config.gradient_checkpointing:
        return
    for part in cast(tuple[Any, ...], parts):
        if not part._supports_gradient_checkpointing:
            raise ConfigError(
                f"gradient_checkpointing is set: {type(part).__name__} of {config.base} has none; "
                "leave it out, or undo a recipe's with --no-gradient-checkpointing"
            )
        part.enable_gradient_checkpointing(checkpoint)
