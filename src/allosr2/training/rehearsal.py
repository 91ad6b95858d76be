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
from allosr2.flow import clean_prediction
from allosr2.imaging.resize import enlarge
from allosr2.meter import CudaRules, Meter, Phase
from allosr2.model import CONDITIONING_NAME, load_conditioning, model_folder
from allosr2.training.adapters import add_fresh_adapters, use_gradient_checkpointing
from allosr2.training.config import AlloSR2Training

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
    transformer, vae = outline(config.base)
    if config.base_precision != "float32":  # nf4 is unpacked to bfloat16 before it is used
        nn.Module.to(transformer, torch.bfloat16)
    frozen, family = codec_of(copy.deepcopy(vae)), family_of(transformer)
    conditioning, source = _conditioning(config, transformer, family)
    velocity = family(transformer, conditioning, config.guidance).to("meta")
    velocity.check_channels(frozen.channels)
    codec = codec_of(vae)
    with torch.device("meta"):
        add_fresh_adapters(config, codec, velocity)
    use_gradient_checkpointing(config, vae, transformer, checkpoint=_checkpointed(config))
    return Networks(codec=codec, frozen=frozen, velocity=velocity, text_source=source)


def evaluations(config: AlloSR2Training) -> tuple[int, int]:
    """Evaluations of the velocity field an image: with gradient, and without."""
    loss = config.loss
    with_gradient = 1 + bool(loss.fatc_weight) + bool(loss.generative_weight)
    again = loss.atm_state == "renoised" or not loss.fatc_weight
    return with_gradient, (1 + again if loss.atm_weight else 0)


def rehearse(config: AlloSR2Training, model: Networks) -> tuple[Phase, ...]:
    """FLOPs and bytes of one pass of `allosr2.training.step`, beside weights, gradients and optimizer.

    The same networks run on the same shapes in the same order. Squares stand for the losses, whose own work
    is that of a few latents, and a tensor of its size for LPIPS.
    """
    codec, frozen, velocity = model.codec, model.frozen, model.velocity
    loss, size = config.loss, config.run.batch_size // config.run.accumulation
    with Meter(_resident(codec, frozen, velocity)) as meter:
        hr = torch.empty(size, 3, config.images.crop, config.images.crop, device="meta")
        lr = hr[..., :: config.scale, :: config.scale].contiguous()
        t = torch.empty(size, device="meta")
        with _rules(config):
            z_lr = codec.encode(enlarge(lr, config.scale))
            meter.mark("VAE encoder on LR")
            with torch.no_grad():
                z_hr = frozen.encode(hr)
            meter.mark("VAE encoder on HR, no gradient")
            if loss.fatc_weight:
                v = velocity(torch.cat([z_lr, (z_lr + z_hr) / 2]), torch.cat([t, t]))
                v_lr, v_sr = v.chunk(2)
                total = _square(v_sr - z_hr)
            else:
                v_lr, total = velocity(z_lr, t), z_lr.new_zeros(())
            z_sr = clean_prediction(z_lr, v_lr, t)
            total = total + _square(z_sr - z_hr)
            meter.mark("transformer")
        if config.perceptual.perceptual_weight or loss.grid_weight:
            # the losses against grids are given float32 pictures
            with nullcontext() if loss.grid_weight else _rules(config):
                x_sr = codec.decode(z_sr)
            total = total + _square(x_sr - hr)
            meter.mark("VAE decoder")
            if config.perceptual.perceptual_weight:
                pixels = size * config.images.crop**2
                lpips = [torch.empty(LPIPS_BYTES * pixels, dtype=torch.uint8, device="meta")]
                _when_reached(x_sr, lpips.clear)
                meter.mark("LPIPS, its backward pass too", flops=LPIPS_FLOPS * pixels)
        with _rules(config):
            if config.perceptual.perceptual_weight and loss.perceptual_target == "decoded":
                with torch.no_grad():
                    frozen.decode(z_hr)
                meter.mark("VAE decoder on HR, no gradient")
            with torch.no_grad():
                for _ in range(evaluations(config)[1]):
                    velocity(z_hr, t)
            meter.mark("transformer, no gradient")
            if loss.generative_weight:
                total = total + _square(velocity(z_hr, t) - z_hr)
                meter.mark("transformer on the generative path")
        _when_reached(z_sr, partial(meter.mark, "backward: VAE decoder"))
        _when_reached(z_lr, partial(meter.mark, "backward: transformer"))
        torch.autograd.backward(total)
        meter.mark("backward: VAE encoder")
    return tuple(phase for phase in meter.phases if phase.flops)


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


def _checkpointed(config: AlloSR2Training) -> Callable[..., object]:
    """Gradient checkpointing by which what is computed again obeys CUDA's rules too."""

    def run(block: nn.Module, *args: object) -> object:
        return checkpoint(
            block,
            *args,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _rules(config)),
        )

    return run


def _rules(config: AlloSR2Training) -> CudaRules:
    return CudaRules(autocast=config.run.precision == "bfloat16")


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

    tensor.register_hook(hook)


def _square(x: Tensor) -> Tensor:
    return x.square().mean()
