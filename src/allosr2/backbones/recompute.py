"""Gradient checkpointing: the activations of blocks are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from diffusers import AutoencoderDC
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Recompute = Callable[..., Any]
"""`by(block, *inputs)`: a block's output, whose activations are computed again."""


def recompute(block: Callable[..., Any], *inputs: object) -> Any:  # noqa: ANN401 - whatever the block gives
    """One block, checkpointed. Nothing in these networks is random: no state of it is kept."""
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def recompute_vae(vae: nn.Module, by: Recompute = recompute) -> None:
    """Checkpoint every block of a VAE's encoder and decoder."""
    if not isinstance(vae, AutoencoderDC):
        cast(Any, vae).enable_gradient_checkpointing(by)
        return
    stages = cast(Any, (*vae.encoder.down_blocks, *vae.decoder.up_blocks))
    for block in chain(*stages):  # diffusers has nothing for this one
        block.forward = partial(_forward, block.forward, by)


def recompute_transformer(
    transformer: nn.Module, interval: int = 1, by: Recompute = recompute
) -> None:
    """Checkpoint every `interval`-th of a transformer's blocks, the first among them."""
    stacks = (child for child in transformer.children() if isinstance(child, nn.ModuleList))
    again = set(list(chain(*stacks))[::interval])

    def some(block: nn.Module, *inputs: object) -> object:
        return by(block, *inputs) if block in again else block(*inputs)

    cast(Any, transformer).enable_gradient_checkpointing(some)


def _forward(forward: Callable[[Tensor], Tensor], by: Recompute, x: Tensor) -> Tensor:
    return by(forward, x) if torch.is_grad_enabled() else forward(x)
