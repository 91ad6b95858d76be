"""Weights in 4 bits against the NF4 code, written down here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from allosr2.backbones import quantize
from allosr2.backbones.base import load_transformer, velocity_of
from allosr2.backbones.flux import FluxVelocity
from allosr2.backbones.lora import add_adapter, load_adapters, save_adapters
from allosr2.backbones.velocity import Conditioning
from allosr2.errors import ConfigError

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra `quantize` is not installed")

NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)
"""Quantiles of the normal distribution (arXiv:2305.14314, Appendix E)."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.1-dev's layout with rows of 64 weights or a multiple."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    ).save_pretrained(folder / "transformer")
    return folder


def in_nf4(weight: torch.Tensor, block: int = 64) -> torch.Tensor:
    """Each block of 64 numbers scaled by its largest, rounded to the nearest of the code's 16."""
    blocks = weight.float().reshape(-1, block)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / largest)[..., None].sub(NF4).abs().argmin(-1)
    return (NF4[nearest] * largest).reshape(weight.shape)


def velocity(transformer: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    prompt = Conditioning(
        prompt=torch.randn(3, 12, generator=generator), pooled=torch.randn(10, generator=generator)
    )
    z = torch.randn(2, 4, 6, 8, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        return velocity_of(transformer, prompt, 1.0)(z, torch.tensor([0.2, 0.6]))


def test_the_blocks_weights_are_rounded_to_nf4_and_nothing_else_is(base: Path):
    full, quantized = load_transformer(str(base)), load_transformer(str(base), "nf4")
    quantized.to("cpu")  # this is when the weights are quantized
    for name, layer in quantized.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        weight = full.get_submodule(name).weight
        inside = name.startswith(("transformer_blocks.", "single_transformer_blocks."))
        assert isinstance(layer, bitsandbytes.nn.Linear4bit) == inside
        if inside:
            found = bitsandbytes.functional.dequantize_4bit(
                layer.weight.data, layer.weight.quant_state
            )
            expected = in_nf4(weight.bfloat16()).bfloat16()
            torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
        else:
            assert torch.equal(layer.weight, weight.bfloat16())


def test_the_velocity_is_the_base_s_to_the_code_s_precision(base):
    full, quantized = load_transformer(str(base)), load_transformer(str(base), "nf4")
    for name, parameter in full.named_parameters():
        if name.startswith(("transformer_blocks.", "single_")) and parameter.ndim == 2:
            parameter.data = in_nf4(parameter.data.bfloat16())
    with torch.no_grad():
        expected, found = velocity(full), velocity(quantized.to("cpu"))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


def test_adapters_trained_on_4_bits_sit_on_the_whole_base(base, tmp_path):
    quantized = load_transformer(str(base), "nf4").to("cpu")
    add_adapter(quantized, FluxVelocity.lora_targets, rank=2, alpha=2)
    quantized.enable_gradient_checkpointing()
    with torch.no_grad():
        velocity(quantized)  # a pass without gradient, as ATM's, does not stand in the way
    velocity(quantized).square().mean().backward()
    trained = {n: p for n, p in quantized.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert all(bool(p.grad.any()) for name, p in trained.items() if ".lora_B." in name)
    with torch.no_grad():
        for p in trained.values():
            p.add_(-0.5 * p.grad)
    save_adapters(tmp_path, transformer=quantized)
    whole = load_transformer(str(base))
    load_adapters(tmp_path, transformer=whole)
    for name, p in whole.named_parameters():
        if ".lora_" in name:
            assert torch.equal(p, trained[name].bfloat16().float())


def test_a_missing_library_is_named(base, monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'allosr2\[quantize\]'"):
        load_transformer(str(base), "nf4")
