"""AdamW in 32 and in 8 bits: known steps, and states that go through a file and come back bit by bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from allosr2.errors import ConfigError
from allosr2.training.config import OptimizationConfig
from allosr2.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer

KINDS = ("adamw", "adamw-8bit")


@pytest.fixture(params=KINDS)
def config(request: pytest.FixtureRequest) -> OptimizationConfig:
    if request.param == "adamw-8bit":
        pytest.importorskip("bitsandbytes", reason="the extra `quantize` is not installed")
    return OptimizationConfig(optimizer=request.param, learning_rate=1e-2, weight_decay=0.1)


def network() -> nn.Module:
    """A matrix and a convolution large enough for 8 bits, in channels_last; biases that are not."""
    torch.manual_seed(0)
    module = nn.ModuleDict({"linear": nn.Linear(96, 64), "conv": nn.Conv2d(32, 48, 3)})
    return module.to(memory_format=torch.channels_last)


def set_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = torch.empty_like(parameter).copy_(gradient)


def test_the_first_step_is_the_learning_rate_against_the_gradient_s_sign(config):
    module = network()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = build_optimizer(module.parameters(), config)
    set_gradients(module, 0)
    optimizer.step()
    for name, parameter in module.named_parameters():
        expected = before[name] * (1 - 1e-2 * 0.1) - 1e-2 * parameter.grad.sign()
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=2e-5)


def test_8_bits_stay_near_32(config):
    if config.optimizer == "adamw":
        pytest.skip("the same")
    modules = network(), network()
    optimizers = [
        build_optimizer(module.parameters(), OptimizationConfig(optimizer=kind, learning_rate=1e-2))
        for module, kind in zip(modules, KINDS, strict=True)
    ]
    for step in range(5):
        for module, optimizer in zip(modules, optimizers, strict=True):
            set_gradients(module, step)
            optimizer.step()
    weights, rough = (module["conv"].weight.detach() for module in modules)
    moved = (weights - network()["conv"].weight.detach()).square().mean().sqrt()
    assert 0 < (weights - rough).square().mean().sqrt() < 0.1 * moved
    state = optimizers[1].state
    assert state[modules[1]["conv"].weight]["state1"].dtype == torch.uint8
    assert state[modules[1]["conv"].bias]["state1"].dtype == torch.float32  # under 4,096 elements


def test_a_state_goes_through_a_file_and_comes_back_bit_by_bit(config, tmp_path: Path):
    straight = network()
    optimizer = build_optimizer(straight.parameters(), config)
    for step in range(3):
        set_gradients(straight, step)
        optimizer.step()
    path = tmp_path / "optimizer.safetensors"
    tensors = optimizer_tensors(optimizer, dict(straight.named_parameters()))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)

    resumed = network()
    resumed.load_state_dict(straight.state_dict())
    parameters = dict(resumed.named_parameters())
    again = build_optimizer(resumed.parameters(), config)
    restore_optimizer(again, parameters, load_file(path))
    restored = optimizer_tensors(again, parameters)
    assert restored.keys() == tensors.keys()
    assert all(torch.equal(restored[key], tensors[key]) for key in tensors)

    for step in range(3, 6):
        for module, its in ((straight, optimizer), (resumed, again)):
            set_gradients(module, step)
            its.step()
    for ours, theirs in zip(resumed.parameters(), straight.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_state_shares_no_memory_between_its_tensors(config):
    module = network()
    optimizer = build_optimizer(module.parameters(), config)
    set_gradients(module, 0)
    optimizer.step()
    tensors = optimizer_tensors(optimizer, dict(module.named_parameters()))
    addresses = [tensor.data_ptr() for tensor in tensors.values()]
    assert len(set(addresses)) == len(addresses)
    assert {key.partition("/")[0] for key in tensors} == {n for n, _ in module.named_parameters()}
    assert int(tensors["conv.weight/step"]) == 1


def test_a_parameter_without_a_step_has_no_state(config):
    module = network()
    optimizer = build_optimizer(module.parameters(), config)
    assert optimizer_tensors(optimizer, dict(module.named_parameters())) == {}
    set_gradients(module, 0)
    module["conv"].weight.grad = None
    optimizer.step()
    tensors = optimizer_tensors(optimizer, dict(module.named_parameters()))
    assert {key.partition("/")[0] for key in tensors} == {
        "linear.weight",
        "linear.bias",
        "conv.bias",
    }


def test_the_other_optimizer_s_state_is_refused(config):
    (other,) = set(KINDS) - {config.optimizer}
    if other == "adamw-8bit":
        pytest.importorskip("bitsandbytes")
    module = network()
    optimizer = build_optimizer(module.parameters(), OptimizationConfig(optimizer=other))
    set_gradients(module, 0)
    optimizer.step()
    tensors = optimizer_tensors(optimizer, dict(module.named_parameters()))
    with pytest.raises(ConfigError, match=f"use --optimizer {other}$"):
        restore_optimizer(
            build_optimizer(module.parameters(), config), dict(module.named_parameters()), tensors
        )


def test_8_bits_need_a_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("allosr2.backbones.quantize.find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        build_optimizer(network().parameters(), OptimizationConfig(optimizer="adamw-8bit"))
    assert str(caught.value) == (
        "optimizer is adamw-8bit: it needs pip install 'allosr2[quantize]'"
    )


def test_a_script_s_console_stays_clean():
    """bitsandbytes, which PEFT imports, has something to say on CPUs with bfloat16 instructions."""
    code = "import logging; logging.basicConfig(); import allosr2.backbones.lora"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "")
