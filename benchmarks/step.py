"""One training step of `mini` against Algorithm 1 written out plainly: seconds and memory.

    python benchmarks/step.py --perceptual FILE [--repeats 7] [--device cpu]

All take the same optimizer step on the same batch: the paper's losses, the embedded model's adapters. `plain`
is `tests/training/algorithm_1_plain.py` in float32, line by line as it is printed. Each lives in its own
process and they take turns, so that what else the machine does falls on all alike; seconds are medians. Memory
is the most that a process (on CUDA, PyTorch's allocator) ever held, less what it held before its first step.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import torch
import tyro
from torch import nn

from allosr2.backbones.codec import Codec
from allosr2.backbones.lora import unfreeze_adapters
from allosr2.backbones.recompute import recompute_transformer, recompute_vae
from allosr2.data.pairs import Batch
from allosr2.losses.perceptual import LPIPS
from allosr2.model import AlloSR2, load_frozen_codec
from allosr2.training.config import LossConfig, OptimizationConfig
from allosr2.training.noise import normal, sample_generators, uniform
from allosr2.training.optimizer import build_optimizer
from allosr2.training.step import algorithm_1

PLAIN = Path(__file__).parents[1] / "tests" / "training" / "algorithm_1_plain.py"
SCALE, WEIGHT = 4, 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to take the step."""

    name: str
    plain: bool = False
    bfloat16: bool = False
    crop: int | None = None
    checkpointing: bool = False
    compile: bool = False


VARIANTS = (
    Variant(name="plain, float32", plain=True),
    Variant(name="float32"),
    Variant(name="bfloat16, decoded 256 px", bfloat16=True, crop=256),
    Variant(name="bfloat16, checkpointing", bfloat16=True, checkpointing=True),
    Variant(name="bfloat16, decoded 256 px, compiled", bfloat16=True, crop=256, compile=True),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    perceptual: Path
    """Safetensors file of LPIPS weights."""
    crop: int = 512
    """Side of the HR images in pixels."""
    batch: int = 2
    """Images a step."""
    repeats: int = 7
    """Steps that are timed, after two that are not."""
    device: str = "cpu"
    """Where."""
    only: tuple[str, ...] = ()
    """Names of variants to measure; none is all."""


def main(options: Options) -> None:
    """Print a Markdown table."""
    context = multiprocessing.get_context("spawn")
    variants = [v for v in VARIANTS if not options.only or v.name in options.only]
    pipes: list[Connection] = []
    for variant in variants:
        ours, theirs = context.Pipe()
        context.Process(target=serve, args=(variant, options, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    seconds: list[list[float]] = [[] for _ in variants]
    memory = [0] * len(variants)
    for repeat in range(options.repeats + 2):
        for number, pipe in enumerate(pipes):
            pipe.send(True)
            taken, memory[number] = pipe.recv()
            if repeat >= 2:
                seconds[number].append(taken)
    for pipe in pipes:
        pipe.send(False)
    print(
        "| step | s | fastest | times faster | GB | of plain's memory |\n|---|---|---|---|---|---|"
    )
    first = statistics.median(seconds[0])
    for variant, taken, held in zip(variants, seconds, memory, strict=True):
        median = statistics.median(taken)
        print(
            f"| {variant.name} | {median:.2f} | {min(taken):.2f} | {first / median:.2f} | {held / 1e9:.2f} "
            f"| {held / memory[0]:.2f} |"
        )
    print(
        f"\n{options.batch} x {options.crop} px, {options.repeats} steps each; {_machine(options.device)}; "
        f"torch {torch.__version__}"
    )


def serve(variant: Variant, options: Options, pipe: Connection) -> None:
    """Take a step whenever asked to; answer with its seconds and the memory that steps took so far."""
    device = torch.device(options.device)
    step = build(variant, options, device)
    before = _held(device)
    while pipe.recv():
        started = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - started, _most(device) - before))


def build(variant: Variant, options: Options, device: torch.device) -> Callable[[], None]:
    """A function that takes one optimizer step."""
    model = AlloSR2.from_pretrained("mini").to(device)
    for part in (model.codec.vae, model.velocity.transformer):
        unfreeze_adapters(part)
    frozen = load_frozen_codec("mini").to(device)
    lpips = LPIPS.from_file(options.perceptual).to(device)
    if not variant.plain:
        _as_configured(variant, model, frozen, lpips)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(options.batch, 3, 32, 32, generator=generator)
    hr = nn.functional.interpolate(coarse, options.crop, mode="bicubic").clamp(0, 1)
    batch = Batch(hr=hr.to(device), lr=nn.functional.avg_pool2d(hr, SCALE).to(device))
    generators = sample_generators(0, range(options.batch), device)
    if variant.plain:
        return _plain(model, frozen, batch, lpips, parameters, generators)
    optimizer = build_optimizer(parameters.values(), OptimizationConfig())

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=variant.bfloat16):
            terms = algorithm_1(
                model,
                frozen,
                batch,
                generators,
                loss=LossConfig(perceptual_crop=variant.crop),
                lpips=lpips,
                perceptual_weight=WEIGHT,
            )
        terms["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _as_configured(variant: Variant, model: AlloSR2, frozen: Codec, lpips: LPIPS) -> None:
    """What a training's config does to the networks (`allosr2.training.allosr2`)."""
    for codec in (model.codec, frozen):
        codec.to(memory_format=torch.channels_last)
    if variant.checkpointing:
        recompute_vae(model.codec.vae)
        recompute_transformer(model.velocity.transformer)
    if variant.compile:
        for codec in (model.codec, frozen):
            codec.vae.encoder.compile()
            codec.vae.decoder.compile()
        model.velocity.compile_blocks()
        lpips.compile()


def _plain(
    model: AlloSR2,
    frozen: Codec,
    batch: Batch,
    lpips: LPIPS,
    parameters: dict[str, nn.Parameter],
    generators: list[torch.Generator],
) -> Callable[[], None]:
    """A step as it is printed: PyTorch's own AdamW, and nothing that a config can turn on."""
    specification = importlib.util.spec_from_file_location("algorithm_1_plain", PLAIN)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    t_star, side = model.config.t_star, batch.hr.shape[-1] // frozen.factor
    optimizer = torch.optim.AdamW(parameters.values(), lr=OptimizationConfig().learning_rate)

    def step() -> None:
        _, gradients = module.algorithm_1_plain(
            encode=model.codec.encode,
            encode_frozen=frozen.encode,
            v=model.velocity,
            v_frozen=model.velocity,
            v_guided=model.velocity,
            decode=frozen.decode,
            lpips=lpips,
            parameters=parameters,
            x_l=batch.lr,
            x_h=batch.hr,
            t_star=t_star,
            t=t_star * uniform(generators),
            eps=normal(generators, (frozen.channels, side, side)),
            perceptual_weight=WEIGHT,
        )
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return psutil.Process().memory_info().rss


def _most(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    name = next((line.partition(": ")[2] for line in names if "model name" in line), "")
    return f"{name or platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main(tyro.cli(Options))
