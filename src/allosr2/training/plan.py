"""What a run of Algorithm 1 will need, before it is started: parameters, memory, tokens and FLOPs."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import nn

from allosr2.backbones.quantize import BLOCK, is_quantized
from allosr2.errors import AlloSR2Error
from allosr2.meter import Phase
from allosr2.training.config import GRID_CROP, AlloSR2Training, TrainingConfig
from allosr2.training.distributed import started_processes
from allosr2.training.rehearsal import build, evaluations, images_of_a_pass, rehearse

logger = logging.getLogger(__name__)

OVERHEAD = 1_500_000_000
"""Bytes of CUDA's context, its libraries' workspaces and the allocator's rounding: a guess."""
NEGLIGIBLE = 2**20
"""Bytes that are no help."""
SHARDS = 8
"""Processes for which a transformer that is to be sharded is shown where torchrun started none: the paper's."""
_BLOCK = re.compile(r".+?\.\d+\.")


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
    of `rehearsal`), what nf4 layers unpack, what of a sharded transformer is gathered (one block), and
    `OVERHEAD`. Left out: what `compile` saves.

    Memory is that of the processes that torchrun started, of which there is one where it is not used; a
    transformer that is to be sharded is then shown for eight.

    Raises:
        AlloSR2Error: for what keeps the training itself from being built, such as a base that cannot be
            reached or a guidance that it does not take.
    """
    model = build(config)
    run, images = config.run, images_of_a_pass(config)
    codec, transformer, vae = model.codec, model.velocity.transformer, model.codec.vae
    adapters = _adapters(transformer) | {"VAE encoder": sum(_adapters(vae).values())}
    trained = 4 * sum(adapters.values())  # float32 whatever the base is held in
    frozen, unpacked = _frozen(model.velocity, config)
    optimizer, moments = _moments(config, codec, transformer)
    phases = rehearse(config, model)
    memory = frozen | {
        "VAE and its frozen copy (float32)": 2 * sum(_held(codec, "float32")[0].values()),
        "adapters (float32)": trained,
        "gradients": trained,
        optimizer: moments,
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
        phases=tuple(
            replace(phase, flops=phase.flops * (run.batch_size // images)) for phase in phases
        ),
    )


def remedies(config: AlloSR2Training, planned: Plan) -> list[Remedy]:
    """Fields that would make a planned run smaller, one by one, then all at once; those that a base takes."""
    run, loss = config.run, config.loss
    smallest_part = GRID_CROP if loss.grid_weight else 32
    part = max(
        min(loss.perceptual_crop or config.images.crop, config.images.crop) // 2 // 16 * 16,
        smallest_part,
    )
    changes: dict[str, dict[str, Any]] = {
        "--gradient-checkpointing": {"gradient_checkpointing": True},
        "--checkpointing-interval 1": {"checkpointing_interval": 1},
        f"--perceptual-crop {part}": {"loss": replace(loss, perceptual_crop=part)},
        f"--accumulation {run.batch_size}": {"run": replace(run, accumulation=run.batch_size)},
        "--base-precision nf4": {"base_precision": "nf4"},
        "--optimizer adamw-8bit": {
            "optimization": replace(config.optimization, optimizer="adamw-8bit")
        },
        "--text-tokens 0": {"text_tokens": 0},
    }
    smallest, found = config, list[Remedy]()
    for option, fields in changes.items():
        try:
            changed = replace(config, **fields)
            total = plan(changed).total
        except AlloSR2Error:  # a base that needs text, or a run in float32
            continue
        if planned.total - total > NEGLIGIBLE:
            smallest = replace(smallest, **fields)
            found.append(Remedy(change=option, total=total))
    if len(found) > 1:
        every = " ".join(remedy.change for remedy in found)
        found.append(Remedy(change=every, total=plan(smallest).total))
    return found


def savings(config: TrainingConfig) -> list[tuple[str, int]]:
    """Options that would make a run smaller and the bytes that each saves, for a run that ran out of memory.

    Empty for stages that are not planned, and where planning fails too.
    """
    if not isinstance(config, AlloSR2Training):
        return []
    try:
        with torch.enable_grad():
            planned = plan(config)
            return [(r.change, planned.total - r.total) for r in remedies(config, planned)]
    except Exception:
        logger.debug("no savings can be told", exc_info=True)
        return []


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


def _frozen(velocity: nn.Module, config: AlloSR2Training) -> tuple[dict[str, int], int]:
    """Bytes of the frozen transformer on a device, and of its largest layer that is unpacked to compute."""
    sizes, unpacked = _held(velocity, config.base_precision)
    name = f"transformer, frozen ({config.base_precision})"
    if not config.shard_base:
        return {name: sum(sizes.values())}, unpacked
    count = started_processes().count
    count = count if count > 1 else SHARDS
    blocks: Counter[str] = Counter()
    for tensor, size in sizes.items():
        block = _BLOCK.match(tensor)
        blocks[block[0] if block else ""] += size
    return {
        f"{name}, 1/{count}": sum(sizes.values()) // count,
        "a block of it, gathered": max(size for block, size in blocks.items() if block),
    }, unpacked


def _moments(config: AlloSR2Training, *parts: nn.Module) -> tuple[str, int]:
    """The optimizer's name, and the bytes of its two moments."""
    sizes = [p.numel() for part in parts for p in part.parameters() if p.requires_grad]
    if config.optimization.optimizer == "adamw":
        return "AdamW", 2 * 4 * sum(sizes)
    # bitsandbytes: a float32 scale for each 256 of them; 32 bits for what is small
    packed = [2 * (n + 4 * -(-n // 256)) if n >= 4096 else 2 * 4 * n for n in sizes]
    return "AdamW (8 bits)", sum(packed)


def _held(module: nn.Module, precision: str) -> tuple[dict[str, int], int]:
    """Bytes of a frozen part by tensor, and of the largest layer that is unpacked while it computes.

    In nf4 (`allosr2.backbones.quantize`), linear layers inside blocks take half a byte a weight and a float32
    scale every 64 weights; all else stays as it is.
    """
    packed = {
        f"{name}.weight": cast(nn.Linear, layer).weight.numel()
        for name, layer in module.named_modules()
        if precision == "nf4" and ".lora_" not in name
        if is_quantized(name.removesuffix(".base_layer"), layer)
    }
    sizes = {
        name: packed[name] // 2 + 4 * packed[name] // BLOCK if name in packed else tensor.nbytes
        for name, tensor in chain(module.named_parameters(), module.named_buffers())
        if ".lora_" not in name
    }
    return sizes, torch.bfloat16.itemsize * max(packed.values(), default=0)
