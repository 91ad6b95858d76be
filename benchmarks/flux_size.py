"""FLUX.1-dev at its full size with random weights on a GPU: one step's latency by stage, and a training step.

    python benchmarks/flux_size.py [--device cuda] [--seconds 90]

128 -> 512 px in bfloat16 as `allosr2` runs it today, with FLUX.1-dev's 512 text tokens and without any, and a
step of Algorithm 1 as the recipe `flux-dev-lean` has it (rank 64, gradient checkpointing), LPIPS left out.
Times are medians, synchronized. The floor of a stage is the larger of its FLOPs at this machine's own rate for
a product of 8192 x 8192 matrices and its weights' bytes at its own rate of copying. `--size tiny` tries the
program on a CPU.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from allosr2.backbones.base import codec_of, family_of
from allosr2.backbones.known import outline
from allosr2.backbones.velocity import Conditioning
from allosr2.data.pairs import Batch
from allosr2.devices import describe_device
from allosr2.model import AlloSR2, ModelConfig, named_base
from allosr2.training.adapters import add_fresh_adapters, use_gradient_checkpointing
from allosr2.training.config import AlloSR2Training
from allosr2.training.noise import sample_generators
from allosr2.training.optimizer import build_optimizer
from allosr2.training.recipes import flux_dev_lean, mini
from allosr2.training.step import algorithm_1

CONFIG = ModelConfig(
    base="base", t_star=0.25, scale=4, preset="real-esrgan", prompt_length=0, guidance=None
)
REPEATS, STEPS, WARM_UP = 10, 3, 2
TEXT = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    device: str = "cuda"
    """Where."""
    size: Literal["flux-dev", "tiny"] = "flux-dev"
    """FLUX.1-dev, or `mini`'s base to try the program."""
    crop: int = 512
    """Side of the HR images in pixels."""
    batch: int = 2
    """Images of the training step."""
    seconds: float = 90.0
    """What has not begun by then is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a machine reaches."""

    flops: float
    """FLOP/s of a product of matrices in bfloat16."""
    bytes: float
    """Bytes/s read and written by a copy."""


def main(options: Options) -> None:
    """Print Markdown tables."""
    begun = time.monotonic()
    device = torch.device(options.device)
    rates = _rates(device, 8192 if options.size == "flux-dev" else 1024)
    print(
        f"{describe_device(device)}, torch {torch.__version__}: {rates.flops / 1e12:.0f} TFLOP/s, "
        f"{rates.bytes / 1e12:.2f} TB/s\n"
    )
    parts: tuple[Callable[[Options, torch.device, Rates], Iterator[str]], ...] = (
        inference,
        training,
    )
    for part in parts:
        if time.monotonic() - begun > options.seconds:
            print(f"{part.__name__}: left out, {options.seconds:g} s are over")
            continue
        try:
            for line in part(options, device, rates):
                print(line, flush=True)
        except RuntimeError as error:
            print(f"{part.__name__}: {str(error).splitlines()[0]}")
        print()


@torch.inference_mode()
def inference(options: Options, device: torch.device, rates: Rates) -> Iterator[str]:
    """One step, stage by stage."""
    yield "| images | text tokens | stage | ms | floor, ms | TFLOP | weights, GB | peak, GB |"
    yield "|---|---|---|---|---|---|---|---|"
    transformer, vae = outline(named_base(_recipe(options).base))
    transformer, vae = (_drawn(part, device, torch.bfloat16) for part in (transformer, vae))
    codec, family = codec_of(vae).to(memory_format=torch.channels_last), family_of(transformer)
    width, pooled = family.widths(transformer)
    guidance = 1.0 if family.distilled(transformer) else None
    for images, text in ((1, TEXT), (1, 0), (4, 0)) if width else ((1, 0), (4, 0)):
        conditioning = Conditioning(
            prompt=torch.randn(text, width, device=device).bfloat16(),
            pooled=torch.zeros(pooled, device=device).bfloat16(),
        )
        model = AlloSR2(codec, family(transformer, conditioning, guidance), CONFIG)
        image = torch.rand(images, 3, options.crop, options.crop, device=device)
        z_lr = codec.encode(image)
        stages: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
            "encode": (vae.get_submodule("encoder"), lambda m=model, x=image: m.codec.encode(x)),
            "flow": (transformer, lambda m=model, z=z_lr: m.one_step(z)),
            "decode": (vae.get_submodule("decoder"), lambda m=model, z=z_lr: m.codec.decode(z)),
            "whole": (nn.ModuleList([vae, transformer]), lambda m=model, x=image: m(x)),
        }
        for name, (network, function) in stages.items():
            _reset_peak(device)
            seconds = _median(function, device, REPEATS)
            peak = _peak(device)
            with FlopCounterMode(display=False) as counter:
                function()
            flops, size = counter.get_total_flops(), _bytes(network)
            floor = max(flops / rates.flops, size / rates.bytes)
            yield (
                f"| {images} | {text} | {name} | {1e3 * seconds:.1f} | {1e3 * floor:.1f} "
                f"| {flops / 1e12:.2f} | {size / 1e9:.2f} | {peak / 1e9:.2f} |"
            )


def training(options: Options, device: torch.device, rates: Rates) -> Iterator[str]:
    """A step of Algorithm 1, with its AdamW."""
    yield "| images | step, s | FLOPs' floor, s | TFLOP | peak, GB |"
    yield "|---|---|---|---|---|"
    config = replace(_recipe(options), gradient_checkpointing=True)
    transformer, vae = outline(named_base(config.base))
    transformer = _drawn(transformer, device, torch.bfloat16)
    vae = _drawn(vae, device, torch.float32)
    frozen, family = codec_of(copy.deepcopy(vae)), family_of(transformer)
    velocity = family(transformer, family.without_text(transformer), config.guidance)
    codec = codec_of(vae)
    add_fresh_adapters(config, codec, velocity)
    use_gradient_checkpointing(config, vae=vae, transformer=transformer)
    model = AlloSR2(codec, velocity.to(device), replace(CONFIG, guidance=config.guidance))
    for part in (frozen, codec):
        part.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        (p for p in model.parameters() if p.requires_grad), config.optimization
    )
    hr = torch.rand(options.batch, 3, options.crop, options.crop, device=device)
    batch = Batch(hr=hr, lr=hr[..., ::4, ::4].contiguous())

    def step() -> Tensor:
        generators = sample_generators(0, range(options.batch), device)
        with torch.autocast(device.type, torch.bfloat16):
            terms = algorithm_1(
                model,
                frozen,
                batch,
                generators,
                loss=config.loss,
                lpips=lambda x, y: (x - y).square().mean((1, 2, 3)),
                perceptual_weight=1.0,
            )
        terms["total"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return terms["total"].detach()

    _reset_peak(device)
    seconds = _median(step, device, STEPS)
    peak = _peak(device)
    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops()
    yield (
        f"| {options.batch} x {options.crop} px | {seconds:.3f} | {flops / rates.flops:.3f} "
        f"| {flops / 1e12:.1f} | {peak / 1e9:.1f} |"
    )


def _recipe(options: Options) -> AlloSR2Training:
    return flux_dev_lean() if options.size == "flux-dev" else mini()


def _drawn(part: nn.Module, device: torch.device, precision: torch.dtype) -> nn.Module:
    """Give a network of the meta device random weights, frozen."""
    nn.Module.to(part, precision).to_empty(device=device)
    for tensor in (*part.parameters(), *part.buffers()):
        tensor.data.normal_(std=0.02)
    return part.requires_grad_(False).eval()


def _rates(device: torch.device, side: int) -> Rates:
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    whole = torch.empty(4 * side * side * 8, dtype=torch.uint8, device=device)
    copy = torch.empty_like(whole)
    return Rates(
        flops=2 * side**3 / _median(lambda: a @ b, device, REPEATS),
        bytes=2 * whole.nbytes / _median(lambda: copy.copy_(whole), device, REPEATS),
    )


def _median(function: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """Seconds of a call."""
    times: list[float] = []
    for _ in range(WARM_UP + repeats):
        _synchronize(device)
        start = time.perf_counter()
        function()
        _synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARM_UP:])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


if __name__ == "__main__":
    main(tyro.cli(Options))
