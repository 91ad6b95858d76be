"""Converted weights give the published LPIPS: its own formula on RGB in [-1, 1], written out here."""

from __future__ import annotations

from pathlib import Path

import torch
from lpips_weights import convert
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import squeezenet1_1

from allosr2.losses.perceptual import LPIPS

SLICES = ((0, 2), (2, 5), (5, 8), (8, 10), (10, 11), (11, 12), (12, 13))
"""Ends of the parts of SqueezeNet whose outputs LPIPS compares."""


def published(
    features: torch.nn.Sequential, heads: dict[str, Tensor], a: Tensor, b: Tensor
) -> Tensor:
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = (((2 * image - 1) - shift) / scale for image in (a, b))
    distance = torch.zeros(len(a))
    for number, (start, end) in enumerate(SLICES):
        x, y = features[start:end](x), features[start:end](y)
        unit_x, unit_y = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (x, y))
        weighted = (unit_x - unit_y).square() * heads[f"lin{number}.model.1.weight"]
        distance += weighted.sum(1).mean((1, 2))
    return distance


def test_converted_weights_give_the_published_distance(tmp_path: Path):
    torch.manual_seed(0)
    features = squeezenet1_1(weights=None).features.eval().requires_grad_(False)
    torch.nn.init.normal_(features[0].bias, std=0.5)
    for module in features:
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    heads = {
        f"lin{number}.model.1.weight": torch.rand(1, channels, 1, 1)
        for number, channels in enumerate((64, 128, 256, 384, 384, 512, 512))
    }
    a, b = torch.rand(2, 2, 3, 64, 80)
    converted = convert(features.state_dict(), heads)
    save_file({k: v.contiguous() for k, v in converted.items()}, tmp_path / "lpips.safetensors")
    found = LPIPS.from_file(tmp_path / "lpips.safetensors")(a, b)
    torch.testing.assert_close(found, published(features, heads, a, b), rtol=1e-4, atol=1e-5)
