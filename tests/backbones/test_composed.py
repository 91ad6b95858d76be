"""`backbones.composed`: the same function, and the same gradients, as PEFT's own adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as LoraConv2d
from torch import nn

from allosr2.backbones.composed import ComposedConv2d
from allosr2.backbones.lora import ADAPTER, adapters_off, add_adapter, merge_adapters

RANK, ALPHA = 3, 5


def pair(kernel: int, stride: int) -> tuple[nn.Sequential, nn.Sequential]:
    """A convolution with our adapter and with PEFT's, of the same weights in float64."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Conv2d(4, 6, kernel, stride, kernel // 2)).double()
    theirs = nn.Sequential(nn.Conv2d(4, 6, kernel, stride, kernel // 2)).double()
    theirs.load_state_dict(ours.state_dict())
    add_adapter(ours, "0", rank=RANK, alpha=ALPHA)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="0"), theirs)
    for name, value in ours.named_parameters():
        value.data = torch.randn_like(value, dtype=torch.float64)
        theirs.get_parameter(name).data = value.data.clone()
    return ours, theirs


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (1, 1), (3, 2)])
def test_it_is_what_peft_computes(kernel: int, stride: int) -> None:
    ours, theirs = pair(kernel, stride)
    assert isinstance(ours[0], ComposedConv2d)
    assert type(theirs[0]) is LoraConv2d
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    results = [module(x) for module in (ours, theirs)]
    torch.testing.assert_close(*results)
    trained = [
        [x, *(p for name, p in module.named_parameters() if ".lora_" in name)]
        for module in (ours, theirs)
    ]
    weights = torch.randn_like(results[0])
    for mine, peft_s in zip(
        *(
            torch.autograd.grad((result * weights).sum(), of)
            for result, of in zip(results, trained, strict=True)
        ),
        strict=True,
    ):
        torch.testing.assert_close(mine, peft_s)


def test_without_the_adapter_it_is_the_base_and_merged_it_stays_the_same() -> None:
    ours, _ = pair(3, 1)
    layer = ours[0]
    assert isinstance(layer, ComposedConv2d)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    base = layer.get_base_layer()(x)
    adapted = ours(x)
    with adapters_off(ours):
        torch.testing.assert_close(ours(x), base)
    merge_adapters(ours)
    torch.testing.assert_close(ours(x), adapted)
    torch.testing.assert_close(layer.get_base_layer()(x), adapted)
    assert layer.active_adapters == [ADAPTER]
