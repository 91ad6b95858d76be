"""One pass of Algorithm 1 on the meta device: what is held and computed, without weights, data or a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from allosr2.backbones.base import codec_of, family_of
from allosr2.backbones.codec import Codec
from allosr2.backbones.known import outline, usual_text_tokens
from allosr2.backbones.velocity import Conditioning, VelocityField
from allosr2.data.pairs import Batch
from allosr2.meter import CudaRules, Meter, Phase
from allosr2.model import (
    CONDITIONING_NAME,
    AlloSR2,
    ModelConfig,
    load_conditioning,
    model_folder,
    named_base,
)
from allosr2.training.adapters import add_fresh_adapters, use_gradient_checkpointing
from allosr2.training.config import AlloSR2Training
from allosr2.training.distributed import parts_of_batch, started_processes
from allosr2.training.noise import Window
from allosr2.training.step import Draw, weighted_terms

LPIPS_BYTES = 840
"""Bytes a pixel that LPIPS takes at most until the backward pass is through it. It needs torchvision to run."""
LPIPS_FLOPS = 33_000
"""FLOPs a pixel of LPIPS on two images, and back to one of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """The networks of `allosr2.training.allosr2.AlloSR2Stage`, on the meta device."""

    codec: Codec
    """VAE with adapters on its encoder."""
    frozen: Codec
    """The same without."""
    velocity: VelocityField
    """Transformer with adapters, its prompt and guidance."""
    text_source: str
    """Where the length of the prompt comes from."""


def build(config: AlloSR2Training) -> Networks:
    """Build what a training trains. Raises AlloSR2Error for what keeps the training from being built too."""
    transformer, vae = outline(named_base(config.base))
    if config.base_precision != "float32":  # nf4 is unpacked to bfloat16 before it is used
        nn.Module.to(transformer, torch.bfloat16)
    frozen, family = codec_of(copy.deepcopy(vae)), family_of(transformer)
    conditioning, source = _conditioning(config, transformer, family)
    velocity = family(transformer, conditioning, config.guidance).to("meta")
    velocity.check_channels(frozen.channels)
    codec = codec_of(vae)
    with torch.device("meta"):
        add_fresh_adapters(config, codec, velocity)
    use_gradient_checkpointing(config, vae=vae, transformer=transformer, by=_recompute)
    return Networks(codec=codec, frozen=frozen, velocity=velocity, text_source=source)


def evaluations(config: AlloSR2Training) -> tuple[int, int]:
    """Evaluations of the velocity field an image: with gradient, and without."""
    loss = config.loss
    with_gradient = 1 + bool(loss.fatc_weight) + bool(loss.generative_weight)
    again = loss.atm_state == "renoised" or not loss.fatc_weight
    return with_gradient, (1 + again if loss.atm_weight else 0)


def rehearse(config: AlloSR2Training, model: Networks) -> tuple[Phase, ...]:
    """FLOPs and bytes of one pass of `allosr2.training.step`, beside weights, gradients and optimizer.

    It is that step itself, but for LPIPS, in whose place a tensor of its size stands.
    """
    loss, size = config.loss, images_of_a_pass(config)
    codec, frozen, crop = model.codec, model.frozen, config.images.crop
    settings = ModelConfig(
        base=config.base,
        t_star=config.t_star or 0.5,
        scale=config.scale,
        preset=config.preset,
        prompt_length=model.velocity.prompt.shape[0],
        guidance=config.guidance,
    )
    latents = (size, codec.channels, crop // codec.factor, crop // codec.factor)
    decoded = min(loss.perceptual_crop or crop, crop)
    part = Window(0, 0, decoded // codec.factor) if decoded < crop else None
    with Meter(_resident(codec, frozen, model.velocity)) as meter:
        _mark_phases(meter, model)
        hr = torch.empty(size, 3, crop, crop, device="meta")
        batch = Batch(hr=hr, lr=hr[..., :: config.scale, :: config.scale].contiguous())
        drawn = Draw(
            t=torch.empty(size, device="meta"),
            eps=torch.empty(latents, device="meta"),
            windows=[part] * size if part else None,
        )
        with _autocast(config), CudaRules():
            terms = weighted_terms(
                AlloSR2(codec, model.velocity, settings),
                frozen,
                batch,
                drawn,
                loss=loss,
                lpips=partial(_lpips, meter) if config.perceptual.used else None,
                perceptual_weight=config.perceptual.perceptual_weight,
            )
        torch.autograd.backward(terms.total)
        meter.mark("backward: VAE encoder")
    return _by_name(meter.phases)


def images_of_a_pass(config: AlloSR2Training) -> int:
    """Images of one forward and backward pass in each of the processes that torchrun started."""
    run = config.run
    parts = parts_of_batch(run.batch_size, run.accumulation, started_processes().count)
    return run.batch_size // parts


def _mark_phases(meter: Meter, model: Networks) -> None:
    """Have a phase end where a network does, on the way forward and on the way back."""

    def ends(network: nn.Module, name: str) -> None:
        def hook(*_: object) -> None:
            meter.mark(name if torch.is_grad_enabled() else f"{name}, no gradient")

        network.register_forward_hook(hook)

    def encoded(_: nn.Module, __: object, z_lr: Tensor) -> None:
        _when_reached(z_lr, partial(meter.mark, "backward: transformer"))

    def decodes(_: nn.Module, inputs: tuple[Tensor]) -> None:
        _when_reached(inputs[0], partial(meter.mark, "backward: VAE decoder"))

    codec, frozen = model.codec.vae, model.frozen.vae
    ends(codec.encoder, "VAE encoder on LR")
    ends(frozen.encoder, "VAE encoder on HR")
    ends(model.velocity.transformer, "transformer")
    ends(codec.decoder, "VAE decoder")
    ends(frozen.decoder, "VAE decoder on HR")
    codec.encoder.register_forward_hook(encoded)
    codec.decoder.register_forward_pre_hook(decodes)


def _lpips(meter: Meter, image: Tensor, reference: Tensor) -> Tensor:
    """A distance that takes as much as LPIPS until the backward pass is through it."""
    pixels = image.numel() // 3
    taken = [torch.empty(LPIPS_BYTES * pixels, dtype=torch.uint8, device="meta")]
    _when_reached(image, taken.clear)
    meter.mark("LPIPS, its backward pass too", flops=LPIPS_FLOPS * pixels)
    return (image - reference).square().mean((1, 2, 3))


def _by_name(phases: list[Phase]) -> tuple[Phase, ...]:
    """One phase of all that have a name, in the order of the first; without those that compute nothing."""
    names = dict.fromkeys(phase.name for phase in phases if phase.flops)
    alike = {name: [phase for phase in phases if phase.name == name] for name in names}
    return tuple(
        Phase(name=name, flops=sum(p.flops for p in group), peak=max(p.peak for p in group))
        for name, group in alike.items()
    )


def _conditioning(
    config: AlloSR2Training, transformer: nn.Module, family: type[VelocityField]
) -> tuple[Conditioning, str]:
    """A prompt as long as the run's, and what its length was taken from."""
    path = config.conditioning
    if path is None and config.initial:
        path = model_folder(config.initial) / CONDITIONING_NAME
    if path is None:
        conditioning, source = family.without_text(transformer), "no conditioning"
    elif path.is_file():
        conditioning, source = load_conditioning(path), str(path)
    else:
        tokens, pooled = family.widths(transformer)
        prompt = torch.zeros(usual_text_tokens(transformer), tokens)
        conditioning = Conditioning(prompt=prompt, pooled=torch.zeros(pooled))
        source = f"assumed, the base's own length: no {path} yet"
    if config.text_tokens is not None:
        conditioning = conditioning.first(config.text_tokens)
        source = f"text_tokens; before that {source}"
    return conditioning, source


def _recompute(block: nn.Module, *inputs: object) -> object:
    """Gradient checkpointing by which what is computed again obeys CUDA's rules too."""
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), CudaRules()),
    )


def _autocast(config: AlloSR2Training) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=config.run.precision == "bfloat16")


def _resident(*modules: nn.Module) -> list[Tensor]:
    """Parameters, buffers and gradients, which are made here: from the second pass on they are there."""
    tensors = list[Tensor]()
    for tensor in chain.from_iterable((*m.parameters(), *m.buffers()) for m in modules):
        tensors.append(tensor)
        if tensor.requires_grad:
            tensor.grad = torch.empty_like(tensor)
            tensors.append(tensor.grad)
    return tensors


def _when_reached(tensor: Tensor, act: Callable[[], None]) -> None:
    """Do something when the backward pass comes to a tensor."""

    def hook(_: Tensor) -> None:
        act()

    if tensor.requires_grad:
        tensor.register_hook(hook)
