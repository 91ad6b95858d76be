"""What a run of Algorithm 1 will need, before it is started: parameters, memory, tokens and FLOPs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import nn

from allosr2.backbones.quantize import BLOCK, is_quantized
from allosr2.errors import AlloSR2Error
from allosr2.meter import Phase
from allosr2.training.config import AlloSR2Training
from allosr2.training.rehearsal import build, evaluations, rehearse

OVERHEAD = 1_500_000_000
"""Bytes of CUDA's context, its libraries' workspaces and the allocator's rounding: a guess."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run needs. Memory is that of each device, at the fullest moment of a step."""

    parameters: dict[str, int]
    """Parameters of the base by part, without adapters."""
    adapters: dict[str, int]
    """Trainable parameters by kind of layer."""
    images: int
    """Images of one forward and backward pass."""
    image_tokens: int
    """Tokens of one image."""
    text_tokens: int
    """Tokens of the prompt, which every sequence carries."""
    text_source: str
    """Where the number of text tokens comes from."""
    sequences: int
    """Sequences that the transformer is given in a step, those without gradient included."""
    memory: dict[str, int]
    """Bytes by part."""
    phases: tuple[Phase, ...]
    """One step: FLOPs of the whole batch; peaks of one pass, beside weights and what belongs to them."""

    @property
    def tokens(self) -> int:
        """Tokens that the transformer is given in a step."""
        return self.sequences * (self.image_tokens + self.text_tokens)

    @property
    def trainable(self) -> int:
        """Trainable parameters."""
        return sum(self.adapters.values())

    @property
    def flops(self) -> int:
        """FLOPs of a step, over all devices."""
        return sum(phase.flops for phase in self.phases)

    @property
    def total(self) -> int:
        """Bytes of memory in all."""
        return sum(self.memory.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Remedy:
    """A field that makes a run smaller."""

    change: str
    """Options of the command line."""
    total: int
    """Bytes of memory with it alone."""


def plan(config: AlloSR2Training) -> Plan:
    """What a training needs; reads no weights and no photographs.

    Exact: parameters, weights, gradients, optimizer, tokens. Measured on the meta device: activations (within
    3 % of what a small real step holds on a CPU) and FLOPs (equal to it). Estimated: LPIPS (by two constants
    of `rehearsal`), what nf4 layers unpack, and `OVERHEAD`. Left out: the losses against grids, and what
    `compile` saves.

    Raises:
        AlloSR2Error: for what keeps the training itself from being built, such as a base that cannot be
            reached or a guidance that it does not take.
    """
    model = build(config)
    run, images = config.run, config.run.batch_size // config.run.accumulation
    codec, transformer, vae = model.codec, model.velocity.transformer, model.codec.vae
    adapters = _adapters(transformer) | {"VAE encoder": sum(_adapters(vae).values())}
    trained = 4 * sum(adapters.values())  # float32 whatever the base is held in
    weights, unpacked = _held(model.velocity, config.base_precision)
    phases = rehearse(config, model)
    memory = {
        f"transformer, frozen ({config.base_precision})": weights,
        "VAE and its frozen copy (float32)": 2 * _held(codec, "float32")[0],
        "adapters (float32)": trained,
        "gradients": trained,
        "AdamW": 2 * trained,
        "moving average": trained if config.optimization.ema_decay > 0 else 0,
        "activations": max(phase.peak for phase in phases) + unpacked,
        "CUDA (a guess)": OVERHEAD,
    }
    return Plan(
        parameters={
            "transformer": _count(transformer),
            "VAE encoder": _count(vae.encoder),
            "VAE decoder": _count(vae.decoder),
        },
        adapters=adapters,
        images=images,
        image_tokens=(config.images.crop // (codec.factor * model.velocity.patch)) ** 2,
        text_tokens=model.velocity.prompt.shape[0],
        text_source=model.text_source,
        sequences=run.batch_size * sum(evaluations(config)),
        memory=memory,
        phases=tuple(replace(phase, flops=phase.flops * run.accumulation) for phase in phases),
    )


def remedies(config: AlloSR2Training, planned: Plan) -> list[Remedy]:
    """Fields that would make a planned run smaller, one by one, then all at once; those that a base takes."""
    changes: dict[str, dict[str, Any]] = {
        "--gradient-checkpointing": {"gradient_checkpointing": True},
        f"--accumulation {config.run.batch_size}": {
            "run": replace(config.run, accumulation=config.run.batch_size)
        },
        "--base-precision nf4": {"base_precision": "nf4"},
        "--text-tokens 0": {"text_tokens": 0},
    }
    smallest, found = config, list[Remedy]()
    for option, fields in changes.items():
        try:
            changed = replace(config, **fields)
            total = plan(changed).total
        except AlloSR2Error:  # a base that needs text, or whose VAE has no checkpointing
            continue
        if total < planned.total:
            smallest = replace(smallest, **fields)
            found.append(Remedy(change=option, total=total))
    if len(found) > 1:
        every = " ".join(remedy.change for remedy in found)
        found.append(Remedy(change=every, total=plan(smallest).total))
    return found


def _count(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if ".lora_" not in name)


def _adapters(module: nn.Module) -> dict[str, int]:
    """Adapters' parameters by layer, the numbers of blocks and what is inside attention left out."""
    counts: Counter[str] = Counter()
    for name, parameter in module.named_parameters():
        layer, is_adapter, _ = name.partition(".lora_")
        if is_adapter:
            words = [word for word in layer.split(".") if not word.isdigit()]
            counts[".".join(words[:2])] += parameter.numel()
    return dict(counts)


def _held(module: nn.Module, precision: str) -> tuple[int, int]:
    """Bytes of a frozen part, and of the largest layer that is unpacked while it computes.

    In nf4 (`allosr2.backbones.quantize`), linear layers inside blocks take half a byte a weight and a float32
    scale every 64 weights; all else stays as it is.
    """
    packed = {
        f"{name}.weight": cast(nn.Linear, layer).weight.numel()
        for name, layer in module.named_modules()
        if precision == "nf4" and ".lora_" not in name
        if is_quantized(name.removesuffix(".base_layer"), layer)
    }
    frozen = {
        name: tensor.nbytes
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
        if ".lora_" not in name and name not in packed
    }
    scales = 4 * sum(packed.values()) // BLOCK
    unpacked = torch.bfloat16.itemsize * max(packed.values(), default=0)
    return sum(frozen.values()) + sum(packed.values()) // 2 + scales, unpacked
