"""Training and upscaling on a CUDA device: what the CPU computes, and what a stopped run comes to."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from allosr2.backbones.codec import Codec
from allosr2.backbones.known import _flux_vae
from allosr2.data.degradation import preset
from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.devices import describe_device, free_memory
from allosr2.model import AlloSR2
from allosr2.runner import _SAFETY, Runner
from allosr2.training import decoder, flow, loop, step
from allosr2.training.allosr2 import AlloSR2Stage
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    FlowTraining,
    LossConfig,
    PerceptualConfig,
    TrainingConfig,
    WatchConfig,
)
from allosr2.training.interrupts import TimeIsUp
from allosr2.training.log import Status
from allosr2.training.loop import train
from allosr2.training.noise import sample_generators
from allosr2.training.plan import plan
from allosr2.training.recipes import mini, mini_decoder
from allosr2.upscaler import Upscaler

pytestmark = pytest.mark.gpu


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32, not in TensorFloat-32, and the same from run to run."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


Build = Callable[..., TrainingConfig]


@pytest.fixture
def build(parts, small_base: Path, tiny_base: Path) -> Build:
    """Runs of four steps by kind: `build("mini", output, device="cuda", precision="bfloat16")`.

    `flow` and `allosr2` are on the small base, `flux` on FLUX.1-dev's parts without a text token, `mini` and
    `decoder` the recipes on the embedded model and on drawn images.
    """

    def build(kind: str, output: Path, *, precision: str = "float32", **run) -> TrainingConfig:
        common = parts(output, **run)
        common["run"] = replace(common["run"], precision=precision)
        adapter = AdapterConfig(rank=2, alpha=2)
        match kind:
            case "flow":
                del common["perceptual"]
                return FlowTraining(**common, codec=small_base, initial=small_base)
            case "allosr2":
                base = {"base": str(small_base), "embed_base": True}
                return AlloSR2Training(**common, **base, adapter=adapter, preset="mild", t_star=0.4)
            case "flux":
                return AlloSR2Training(
                    **common,
                    base=str(tiny_base),
                    base_precision=precision,
                    guidance=1.0,
                    gradient_checkpointing=True,
                    adapter=adapter,
                    preset="mild",
                    t_star=0.4,
                )
            case "mini":
                recipe = replace(mini(), t_star=0.4, loss=LossConfig())
                return with_drawn_images(recipe, common, crop=64)
            case _:
                recipe = replace(mini_decoder(), model="mini", result_fraction=1.0)
                return with_drawn_images(recipe, common, crop=128)

    return build


def with_drawn_images(recipe: TrainingConfig, common: dict, crop: int) -> TrainingConfig:
    return replace(
        recipe,
        run=common["run"],
        images=replace(recipe.images, photos=(), procedural=1.0, crop=crop, workers=0),
        perceptual=common["perceptual"],
        watch=common["watch"],
    )


def logged(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "memory")} for line in lines]


def on(device: str, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments: draw(*arguments).to(device)


@pytest.mark.parametrize("kind", ["flow", "allosr2", "flux", "mini", "decoder"])
def test_the_first_steps_are_the_cpu_s(kind, build: Build, tmp_path, monkeypatch) -> None:
    """Every logged number; a GPU's generators draw other numbers, so that both are given the CPU's."""
    drawing: list[tuple[ModuleType, str]] = [
        (flow, "normal"),
        (step, "normal"),
        (step, "uniform"),
        (decoder, "uniform"),
    ]
    for device in ("cpu", "cuda"):
        with monkeypatch.context() as patch:
            patch.setattr(
                loop, "sample_generators", lambda *given: sample_generators(*given[:2], CPU)
            )
            for module, name in drawing:
                patch.setattr(module, name, on(device, getattr(module, name)))
            train(build(kind, tmp_path / device, device=device, steps=2))
    cpu, cuda = logged(tmp_path / "cpu"), logged(tmp_path / "cuda")
    assert cuda[0] == pytest.approx(cpu[0], rel=1e-3)
    assert cuda[1] == pytest.approx(cpu[1], rel=1e-2)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("flow", "float32"),
        ("flow", "bfloat16"),
        ("allosr2", "float32"),
        ("allosr2", "bfloat16"),
        ("flux", "bfloat16"),
        ("mini", "bfloat16"),
        ("decoder", "bfloat16"),
    ],
)
def test_stopped_and_resumed_is_straight(kind, precision, build: Build, tmp_path) -> None:
    def settings(output: Path) -> TrainingConfig:
        return build(kind, output, device="cuda", precision=precision)

    def stop(status: Status) -> None:
        if status.step == 2:
            raise TimeIsUp

    straight = train(settings(tmp_path / "straight"))
    with pytest.raises(TimeIsUp):
        train(settings(tmp_path / "stopped"), stop)
    resumed = train(settings(tmp_path / "stopped"))
    assert all(np.isfinite(list(line.values())).all() for line in logged(tmp_path / "straight"))
    files = sorted(path.relative_to(straight) for path in straight.rglob("*.safetensors"))
    assert files
    for name in files:
        mine, other = load_file(straight / name), load_file(resumed / name)
        for key, tensor in mine.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-2, atol=1e-4, msg=key)


def drawn_images(crop: int) -> HRImages:
    return HRImages(
        photos=(), procedural=1.0, crop=crop, minimum_scale=1.0, cache_gigabytes=0.0, seed=5
    )


def test_pairs_are_the_cpu_s() -> None:
    """Through a loading process and pinned memory."""
    images = drawn_images(crop=64)
    cpu, cuda = (
        next(
            batches(
                images,
                preset("real-esrgan"),
                [range(2)],
                scale=4,
                workers=workers,
                device=torch.device(device),
            )
        )
        for device, workers in (("cpu", 0), ("cuda", 1))
    )
    assert cuda.hr.is_cuda
    assert torch.equal(cuda.hr.cpu(), cpu.hr)
    assert torch.equal(cuda.lr.cpu(), cpu.lr)


def test_gradients_of_flux_s_own_vae_in_bfloat16_are_those_in_float32() -> None:
    """At 512 px, where it attends to 4,096 places with a head of 512 channels."""
    torch.manual_seed(0)
    with CUDA:
        codec = Codec(_flux_vae()).requires_grad_(False)
    image = torch.rand(1, 3, 512, 512).to(CUDA)
    gradients: list[Tensor] = []
    for enabled in (False, True):
        x = image.clone().requires_grad_()
        with torch.autocast(CUDA.type, torch.bfloat16, enabled=enabled):
            error = codec.decode(codec.encode(x)) - image
        error.square().sum().backward()
        gradients.append(x.grad.flatten().cpu())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.98


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_takes_the_memory_that_was_planned(precision, parts, tmp_path) -> None:
    common = parts(tmp_path, device="cuda", batch_size=4)
    config = AlloSR2Training(
        run=replace(common["run"], precision=precision),
        images=replace(common["images"], photos=(), procedural=1.0, crop=512),
        optimization=common["optimization"],
        perceptual=PerceptualConfig(perceptual_weight=0.0),
        watch=WatchConfig(tracker="none", validate_every=0),
        base="mini",
        embed_base=True,
        loss=LossConfig(grid_weight=0.3),  # so that images are decoded
        t_star=0.4,
    )
    stage = AlloSR2Stage(config, drawn_images(crop=512), CUDA, {})
    batch = Batch(hr=torch.rand(4, 3, 512, 512).to(CUDA), lr=torch.rand(4, 3, 128, 128).to(CUDA))

    def forward_and_back() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            terms = stage.losses(batch, sample_generators(0, range(4), CUDA))
        terms["total"].backward()

    forward_and_back()  # what is made once stays out of it
    before = torch.cuda.memory_allocated() - batch.hr.nbytes - batch.lr.nbytes
    torch.cuda.reset_peak_memory_stats()
    forward_and_back()
    taken = torch.cuda.max_memory_allocated() - before
    assert taken == pytest.approx(plan(config).memory["activations"], rel=0.1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tile_takes_no_more_than_is_planned_for_it(precision) -> None:
    runner = Runner(AlloSR2.from_pretrained("mini").merge(), "cuda", precision=precision)
    image = torch.rand(1, 3, 1024, 1024)
    runner.apply(runner.encode, image, "warm")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.apply(runner.decode, runner.apply(runner.encode, image, "a"), "a")
    taken = torch.cuda.max_memory_allocated() - before
    assert 0.4 < taken / runner.bytes_of(1024**2) < 1 / _SAFETY


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """`limited(n)` leaves this process n more bytes of the device's memory than it holds."""

    def limit(more: int) -> None:
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / whole)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_what_does_not_fit_is_halved(
    picture: np.ndarray, limited: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    image = np.tile(picture, (4, 3, 1))[:240, :240]
    model = AlloSR2.from_pretrained("mini").merge()
    upscaler = Upscaler(model, device="cuda", tile=1024, precision="float32")
    whole = upscaler(image)
    limited(upscaler._runner.bytes_of(1024**2) // 2)
    with caplog.at_level(logging.WARNING):
        halved = upscaler(image)
    assert "out of memory; going on with tiles of" in caplog.text
    assert psnr(halved, whole) > 35


@pytest.mark.parametrize(("precision", "least"), [("float32", 60), ("auto", 40)])
def test_the_result_is_the_cpu_s(picture: np.ndarray, precision: str, least: float) -> None:
    """In float32 but for the rounding to 8 bits, and in bfloat16, as a GPU has it by default."""
    cpu, cuda = (
        Upscaler(AlloSR2.from_pretrained("mini").merge(), device=device, precision=chosen)(picture)
        for device, chosen in (("cpu", "float32"), ("cuda", precision))
    )
    assert cuda.shape == cpu.shape == (256, 320, 3)
    assert psnr(cuda, cpu) > least


def test_the_model_s_numbers_are_the_cpu_s() -> None:
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    model = AlloSR2.from_pretrained("mini").merge()
    with torch.inference_mode():
        expected = model(image)
        found = model.to(CUDA)(image.to(CUDA)).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    error = (image.astype(float) - reference.astype(float)) / 255
    return -10 * np.log10(np.square(error).mean().clip(1e-12))


def test_a_gpu_has_a_name_and_memory() -> None:
    device = torch.device("cuda")
    assert "CPU" not in describe_device(device)
    before = free_memory(device)
    held = torch.empty(2**30, dtype=torch.uint8, device=device)
    assert 0.9 * 2**30 < before - free_memory(device) < 1.2 * 2**30
    assert held.is_cuda
