"""What a config puts on a base before it is trained, or its training is planned."""

from __future__ import annotations

from torch import nn

from allosr2.backbones.codec import Codec
from allosr2.backbones.lora import add_adapter
from allosr2.backbones.recompute import (
    Recompute,
    recompute,
    recompute_transformer,
    recompute_vae,
)
from allosr2.backbones.velocity import VelocityField
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
    *,
    vae: nn.Module,
    transformer: nn.Module,
    by: Recompute = recompute,
) -> None:
    """Turn gradient checkpointing on where the config asks for it; `by` checkpoints one block."""
    if config.gradient_checkpointing:
        recompute_vae(vae, by)
        recompute_transformer(transformer, config.checkpointing_interval, by)
