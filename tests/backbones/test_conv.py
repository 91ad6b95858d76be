"""The all-convolution flow, against its formula written out with plain functions."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from allosr2.backbones.base import load_transformer, save_base, velocity_of
from allosr2.backbones.conv import ConvFlowModel, ConvVelocity, embed_time
from allosr2.backbones.known import outline
from allosr2.backbones.lora import add_adapter, target_names
from allosr2.backbones.presets import mini_vae
from allosr2.backbones.recompute import recompute_transformer
from allosr2.errors import ModelError


def field(*, seed: int = 0, **settings: int) -> ConvVelocity:
    """A field whose every parameter is random, those that start at zero too."""
    torch.manual_seed(seed)
    model = ConvFlowModel(
        **{"in_channels": 4, "width": 8, "num_blocks": 2, "time_width": 6} | settings
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    velocity = velocity_of(model, ConvVelocity.without_text(model))
    assert isinstance(velocity, ConvVelocity)
    return velocity


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def test_it_is_its_formula() -> None:
    velocity, z_t, t = field(), normal(2, 4, 5, 7), torch.tensor([0.2, 0.9])
    weights = dict(velocity.transformer.named_parameters())

    def conv(name: str, x: Tensor) -> Tensor:
        return functional.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    time = silu(linear("time_embedder.2", silu(linear("time_embedder.0", embed_time(t)))))
    x = conv("conv_in", z_t)
    for block in ("blocks.0", "blocks.1"):
        scale, shift, gate = linear(f"{block}.modulation", time).view(2, 3, 8, 1, 1).unbind(1)
        inner = silu((1 + scale) * conv(f"{block}.conv1", x) + shift)
        x = x + (1 + gate) * conv(f"{block}.conv2", inner)
    torch.testing.assert_close(velocity(z_t, t), conv("conv_out", x), rtol=1e-4, atol=1e-5)


def test_it_starts_at_a_velocity_of_zero_whose_gradient_is_not() -> None:
    model = ConvFlowModel(in_channels=4, width=8, num_blocks=2)
    v = model(normal(1, 4, 6, 6), torch.tensor([0.5]))
    assert v.abs().max() == 0
    (v - normal(1, 4, 6, 6)).square().sum().backward()
    gradient = model.conv_out.weight.grad
    assert gradient is not None
    assert gradient.abs().min() > 0


def test_times_are_told_apart_and_alike_in_both_precisions() -> None:
    times = torch.linspace(0, 1, 101)
    embedded = embed_time(times)
    assert embedded.shape == (101, 128)
    assert (embedded.square().sum(1) - 64).abs().max() < 1e-3  # sines and cosines of 64 angles
    apart = torch.cdist(embedded, embedded) + 10 * torch.eye(101)
    assert apart.min() > 0.5
    t = torch.tensor([0.466], dtype=torch.bfloat16)
    assert torch.equal(embed_time(t), embed_time(t.float()))


def test_nothing_looks_further_than_its_convolutions_reach() -> None:
    velocity, z_t, t = field(), normal(1, 4, 32, 32), torch.tensor([0.4])
    other = z_t.clone()
    other[..., 0, 0] += 1
    changed = (velocity(other, t) != velocity(z_t, t)).any(1)[0]
    reach = 2 + 2 * 2  # the first and the last convolution, and two a block
    rows, columns = changed.nonzero(as_tuple=True)
    assert (rows.max(), columns.max()) == (reach, reach)


def test_a_base_is_written_and_loaded(tmp_path: Path) -> None:
    velocity = field()
    save_base(tmp_path, transformer=velocity.transformer, vae=mini_vae())
    loaded = load_transformer(str(tmp_path))
    assert isinstance(loaded, ConvFlowModel)
    assert loaded.config["width"] == 8
    for name, weight in velocity.transformer.named_parameters():
        assert torch.equal(loaded.get_parameter(name), weight.bfloat16().float())
    outlined, _ = outline(str(tmp_path))
    assert isinstance(outlined, ConvFlowModel)
    assert next(outlined.parameters()).is_meta


def test_a_kind_that_is_none(tmp_path: Path) -> None:
    save_base(tmp_path, transformer=field().transformer)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(config.read_text().replace("ConvFlowModel", "ConvFlowModl"))
    with pytest.raises(ModelError, match=r"its transformer cannot be loaded \(.*ConvFlowModl"):
        load_transformer(str(tmp_path))


def test_neither_text_nor_guidance() -> None:
    velocity = field()
    with pytest.raises(ModelError, match=r"guidance is 3\.5: this base takes no guidance"):
        velocity.with_guidance(3.5)
    with pytest.raises(
        ModelError, match=r"conditioning has widths \(5, 0\), this base needs \(0, 0\)"
    ):
        ConvVelocity(
            velocity.transformer,
            dataclasses.replace(velocity.conditioning, prompt=torch.zeros(0, 5)),
        )


def test_adapters_lie_on_every_convolution() -> None:
    velocity = field()
    convolutions = {
        name for name, layer in velocity.transformer.named_modules() if isinstance(layer, nn.Conv2d)
    }
    assert set(target_names(velocity.transformer, velocity.lora_targets)) == convolutions
    before = velocity(normal(1, 4, 6, 6), torch.tensor([0.4]))
    add_adapter(velocity.transformer, velocity.lora_targets, rank=2, alpha=2)
    assert torch.equal(velocity(normal(1, 4, 6, 6), torch.tensor([0.4])), before)


def test_checkpointed_gradients_are_the_same() -> None:
    plain, again = field(), field()
    recompute_transformer(again.transformer)
    gradients: list[list[Tensor]] = []
    for velocity in (plain, again):
        velocity(normal(1, 4, 6, 6), torch.tensor([0.4])).square().sum().backward()
        gradients.append([p.grad for p in velocity.transformer.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(plain.transformer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
