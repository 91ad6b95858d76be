"""Training and upscaling on a CUDA device: what the CPU computes, and what a stopped run comes to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allosr2.backbones.base import load_transformer
from allosr2.devices import describe_device, free_memory
from allosr2.model import AlloSR2
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    FlowTraining,
    TrainingConfig,
)
from allosr2.training.interrupts import TimeIsUp
from allosr2.training.log import Status
from allosr2.training.loop import train
from allosr2.upscaler import Upscaler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32, not in TensorFloat-32, and the same from run to run."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def config(parts, small_base: Path, output: Path, device: str, **run) -> AlloSR2Training:
    return AlloSR2Training(
        **parts(output, device=device, **run),
        base=str(small_base),
        embed_base=True,
        adapter=AdapterConfig(rank=2, alpha=2),
        preset="mild",
        t_star=0.4,
    )


def first(output: Path) -> dict[str, float]:
    return json.loads((output / "log.jsonl").open().readline())


def test_the_first_step_is_the_cpu_s(parts, small_base, tmp_path) -> None:
    for device in ("cpu", "cuda"):
        train(config(parts, small_base, tmp_path / device, device, steps=1))
    cpu, cuda = first(tmp_path / "cpu"), first(tmp_path / "cuda")
    # the one term that no noise has a part in: generators of the two draw other numbers
    assert cuda["reconstruction"] == pytest.approx(cpu["reconstruction"], rel=1e-4)
    assert cuda["fatc"] == pytest.approx(cpu["fatc"], rel=0.5)


@pytest.mark.parametrize("kind", ["flow", "allosr2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stopped_and_resumed_is_straight(
    kind, precision, parts, small_base, tmp_path, monkeypatch
) -> None:
    def settings(output: Path) -> TrainingConfig:
        built = parts(output, device="cuda")
        del built["perceptual"]
        chosen = (
            config(parts, small_base, output, "cuda")
            if kind == "allosr2"
            else FlowTraining(**built, codec=small_base)
        )
        return replace(chosen, run=replace(chosen.run, precision=precision))

    def stop(status: Status) -> None:
        if status.step == 2:
            raise TimeIsUp

    monkeypatch.setattr(
        "allosr2.training.flow.mini_velocity", lambda: load_transformer(str(small_base))
    )
    straight = train(settings(tmp_path / "straight"))
    with pytest.raises(TimeIsUp):
        train(settings(tmp_path / "stopped"), stop)
    resumed = train(settings(tmp_path / "stopped"))
    files = sorted(path.relative_to(straight) for path in straight.rglob("*.safetensors"))
    assert files
    for name in files:
        mine, other = load_file(straight / name), load_file(resumed / name)
        for key, tensor in mine.items():
            torch.testing.assert_close(other[key], tensor, rtol=1e-2, atol=1e-4, msg=key)


def test_the_result_is_the_cpu_s(gradient: np.ndarray) -> None:
    cpu, cuda = (
        Upscaler(AlloSR2.from_pretrained("mini").merge(), device=device)(gradient)
        for device in ("cpu", "cuda")
    )
    assert cuda.shape == cpu.shape == (256, 320, 3)
    error = (cpu.astype(float) - cuda.astype(float)) / 255
    assert -10 * np.log10(np.square(error).mean()) > 38  # bfloat16 against float32


@pytest.fixture
def gradient() -> np.ndarray:
    """A ramp with a sine and a corner on it, 64 x 80."""
    y, x = np.mgrid[:64, :80]
    planes = [2 * x, 3 * y, 128 + 100 * np.sin(x / 5) * np.cos(y / 7)]
    image = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    image[20:40, 30:50] = (230, 40, 90)
    return image


def test_a_gpu_has_a_name_and_memory() -> None:
    device = torch.device("cuda")
    assert "CPU" not in describe_device(device)
    before = free_memory(device)
    held = torch.empty(2**30, dtype=torch.uint8, device=device)
    assert 0.9 * 2**30 < before - free_memory(device) < 1.2 * 2**30
    assert held.is_cuda
