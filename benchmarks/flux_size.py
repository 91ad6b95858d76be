"""FLUX.1-dev at its full size with random weights on a GPU: one step's latency by stage, and a training step.

    python benchmarks/flux_size.py [--device cuda] [--seconds 50] [--perceptual FILE]

128 -> 512 px in bfloat16 as `allosr2` runs it, with FLUX.1-dev's 512 text tokens and without any, and a step of
Algorithm 1 as the recipes `flux-dev-x4` and `flux-dev-lean` have it (rank 64, gradient checkpointing). Without
`--perceptual`, the mean square stands for LPIPS, so that images are decoded all the same. Times are medians,
synchronized. The floor of a stage is the larger of its FLOPs at this machine's own rate for a product of
8192 x 8192 matrices and its weights' bytes at its own rate of copying. `--size tiny` is to try the
program on a CPU.
"""

from __future__ import annotations

import copy
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from allosr2.backbones.base import codec_of, family_of
from allosr2.backbones.known import outline
from allosr2.backbones.velocity import Conditioning, VelocityField
from allosr2.data.pairs import Batch
from allosr2.devices import describe_device
from allosr2.model import AlloSR2, ModelConfig
from allosr2.training.adapters import add_fresh_adapters, use_gradient_checkpointing
from allosr2.training.noise import sample_generators
from allosr2.training.optimizer import build_optimizer
from allosr2.training.recipes import flux_dev_x4
from allosr2.training.step import ImageDistance, algorithm_1

CONFIG = ModelConfig(
    base="base", t_star=0.25, scale=4, preset="real-esrgan", prompt_length=0, guidance=None
)
REPEATS, WARM_UP = 10, 2
STEPS = 3
TEXT = 512
TINY = (
    {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2},
    {"block_out_channels": (32, 32, 64, 64)},
)
"""What `--size tiny` changes of transformer and VAE."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    device: str = "cuda"
    """Where."""
    size: Literal["flux-dev", "tiny"] = "flux-dev"
    """FLUX.1-dev, or its parts in miniature to try the program."""
    crop: int = 512
    """Side of the HR images in pixels."""
    batch: int = 2
    """Images of the training step."""
    perceptual: Path | None = None
    """Safetensors file of LPIPS weights."""
    seconds: float = 50.0
    """What has not begun by then is left out."""
    only: tuple[str, ...] = ()
    """Of inference, training and training-lean, what is measured; none is all."""


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
    print(f"{rates.flops / 1e12:.2f} TFLOP/s, {rates.bytes / 1e12:.2f} TB/s\n")
    parts: dict[str, Callable[[Options, torch.device, Rates], Iterator[str]]] = {
        "inference": inference,
        # last, as a kernel that fails there takes along what comes after it
        "training": partial(training, text=TEXT),
        "training-lean": partial(training, text=0),
    }
    for name, part in parts.items():
        if options.only and name not in options.only:
            continue
        if time.monotonic() - begun > options.seconds:
            print(f"{name}: left out, {options.seconds:g} s are over\n")
            continue
        try:
            for line in part(options, device, rates):
                print(line, flush=True)
        except Exception as error:  # whatever it is, the other parts are worth having
            print(f"{name}: {_one_line(error)}")
        gc.collect()  # a failed step is a cycle of frames and tensors
        print(flush=True)
    print(f"{describe_device(device)}; torch {torch.__version__}, CUDA {torch.version.cuda}")


@torch.inference_mode()
def inference(options: Options, device: torch.device, rates: Rates) -> Iterator[str]:
    """One step, stage by stage, under autocast as `allosr2.runner` has it, and whole without."""
    yield "| images | text tokens | stage | ms | floor, ms | TFLOP | weights, GB | peak, GB |"
    yield "|---|---|---|---|---|---|---|---|"
    transformer, vae = (_drawn(part, device, torch.bfloat16) for part in _networks(options))
    codec = codec_of(vae).to(memory_format=torch.channels_last)
    guidance = 1.0 if family_of(transformer).distilled(transformer) else None
    for images, text in ((1, TEXT), (1, 0), (4, 0)):
        velocity = _velocity(transformer, text, guidance).to(device, torch.bfloat16)
        model = AlloSR2(codec, velocity, CONFIG)
        image = torch.rand(images, 3, options.crop, options.crop, device=device)
        z_lr = codec.encode(image)
        whole = nn.ModuleList([vae, transformer])
        stages: dict[str, tuple[nn.Module, bool, Callable[[], Tensor]]] = {
            "encode": (vae.get_submodule("encoder"), True, partial(codec.encode, image)),
            "flow": (transformer, True, partial(model.one_step, z_lr)),
            "decode": (vae.get_submodule("decoder"), True, partial(codec.decode, z_lr)),
            "whole": (whole, True, partial(model, image)),
            "whole, no autocast": (whole, False, partial(model, image)),
        }
        for name, (network, autocast, function) in stages.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                _reset_peak(device)
                seconds = _median(function, device)
                peak = _peak(device)
                with FlopCounterMode(display=False) as counter:
                    function()
            flops, size = counter.get_total_flops(), _bytes(network)
            floor = max(flops / rates.flops, size / rates.bytes)
            yield (
                f"| {images} | {text} | {name} | {1e3 * seconds:.1f} | {1e3 * floor:.1f} "
                f"| {flops / 1e12:.2f} | {size / 1e9:.2f} | {peak / 1e9:.2f} |"
            )


def training(options: Options, device: torch.device, rates: Rates, text: int) -> Iterator[str]:
    """A step of Algorithm 1, with its AdamW."""
    yield (
        "| images | text tokens | forward, s | backward, s | AdamW, s | step, s | FLOPs' floor, s "
        "| TFLOP | before, GB | peak, GB |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    config = flux_dev_x4()
    transformer, vae = _networks(options)
    transformer = _drawn(transformer, device, torch.bfloat16)
    vae = _drawn(vae, device, torch.float32)
    frozen, codec = codec_of(copy.deepcopy(vae)), codec_of(vae)
    velocity = _velocity(transformer, text, config.guidance).to(device)
    with device:  # hundreds of millions of numbers are drawn faster there
        add_fresh_adapters(config, codec, velocity)
    use_gradient_checkpointing(config, vae=vae, transformer=transformer)
    model = AlloSR2(codec, velocity, CONFIG)
    for part in (frozen, codec):
        part.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(
        (p for p in model.parameters() if p.requires_grad), config.optimization
    )
    lpips = _distance(options, device)
    hr = torch.rand(options.batch, 3, options.crop, options.crop, device=device)
    batch = Batch(hr=hr, lr=hr[..., ::4, ::4].contiguous())

    def forward() -> Tensor:
        generators = sample_generators(0, range(options.batch), device)
        with torch.autocast(device.type, torch.bfloat16):
            return algorithm_1(
                model,
                frozen,
                batch,
                generators,
                loss=config.loss,
                lpips=lpips,
                perceptual_weight=config.perceptual.perceptual_weight,
            )["total"]

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    _reset_peak(device)
    before = _held(device)
    phases: list[list[float]] = []
    for step in range(1 + STEPS):
        # the first one is not timed: its FLOPs are counted
        counter = FlopCounterMode(display=False)
        with nullcontext() if step else counter:
            clock = [_now(device)]
            total = forward()
            clock.append(_now(device))
            total.backward()
            clock.append(_now(device))
            update()
            clock.append(_now(device))
        if step:
            phases.append([end - start for start, end in pairwise(clock)])
        else:
            flops = counter.get_total_flops()
    medians = [statistics.median(times) for times in zip(*phases, strict=True)]
    whole = statistics.median(map(sum, phases))
    yield (
        f"| {options.batch} x {options.crop} px | {text} | "
        + " | ".join(f"{seconds:.3f}" for seconds in (*medians, whole, flops / rates.flops))
        + f" | {flops / 1e12:.1f} | {before / 1e9:.2f} | {_peak(device) / 1e9:.2f} |"
    )


def _networks(options: Options) -> tuple[nn.Module, nn.Module]:
    """Transformer and VAE on the meta device."""
    networks = outline(flux_dev_x4().base)
    if options.size == "flux-dev":
        return networks
    with torch.device("meta"):
        transformer, vae = (
            type(part).from_config(part.config, **change)
            for part, change in zip(networks, TINY, strict=True)
        )
    return transformer, vae


def _velocity(transformer: nn.Module, text: int, guidance: float | None) -> VelocityField:
    """The field with a random prompt of so many tokens."""
    family = family_of(transformer)
    width, pooled = family.widths(transformer)
    conditioning = Conditioning(prompt=torch.randn(text, width), pooled=torch.zeros(pooled))
    return family(transformer, conditioning, guidance)


def _distance(options: Options, device: torch.device) -> ImageDistance:
    if options.perceptual is None:
        return lambda x, y: (x - y).square().mean((1, 2, 3))
    from allosr2.losses.perceptual import LPIPS  # it needs torchvision

    return LPIPS.from_file(options.perceptual).to(device)


def _drawn(part: nn.Module, device: torch.device, precision: torch.dtype) -> nn.Module:
    """Give a network of the meta device random weights, frozen."""
    nn.Module.to(part, precision).to_empty(device=device)
    for tensor in (*part.parameters(), *part.buffers()):
        tensor.data.normal_(std=0.02)
    return part.requires_grad_(False).eval()


def _rates(device: torch.device, side: int) -> Rates:
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    whole = torch.empty(4 * side * side * 8, dtype=torch.uint8, device=device)
    copied = torch.empty_like(whole)
    return Rates(
        flops=2 * side**3 / _median(lambda: a @ b, device),
        bytes=2 * whole.nbytes / _median(lambda: copied.copy_(whole), device),
    )


def _median(function: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of a call."""
    times: list[float] = []
    for _ in range(WARM_UP + REPEATS):
        start = _now(device)
        function()
        times.append(_now(device) - start)
    return statistics.median(times[WARM_UP:])


def _now(device: torch.device) -> float:
    """Seconds on a clock, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _held(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _bytes(network: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def _one_line(error: Exception) -> str:
    """An error's kind, its first line and the last calls outside of torch that led to it."""
    calls = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename
    ]
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]} ({' > '.join(calls[-4:])})"


if __name__ == "__main__":
    main(tyro.cli(Options))
