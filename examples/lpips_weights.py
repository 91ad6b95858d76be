"""LPIPS weights as training reads them, from the two places that publish them.

    pip install lpips
    python examples/lpips_weights.py lpips.safetensors

The network (SqueezeNet 1.1) is downloaded by torchvision, the channel weights come with the package lpips.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

from allosr2.losses.perceptual import BGR_MEAN
from allosr2.storage import save_tensors

SHIFT = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
SCALE = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
"""What LPIPS subtracts from, and divides, RGB in [-1, 1] by."""


def convert(network: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's `features` and lpips' `squeeze.pth` under the names, and for the input, of `LPIPS`.

    That input is BGR from 0 to 255 less a mean. The first convolution pads nothing, so that its weights
    and bias take up the difference exactly.
    """
    mean = torch.tensor(BGR_MEAN).flip(0).view(3, 1, 1) / 255  # RGB in [0, 1]
    first = network["0.weight"]  # 64 3 3 3
    tensors = {
        f"features.{name.replace('.squeeze.', '.squeeze1x1.')}": tensor
        for name, tensor in network.items()
    }
    tensors["features.0.weight"] = (first * (2 / 255) / SCALE).flip(1)
    offset = (2 * mean - 1 - SHIFT) / SCALE
    tensors["features.0.bias"] = network["0.bias"] + (first * offset).sum((1, 2, 3))
    for number in range(7):
        tensors[f"lpips.lin{number}.weight"] = heads[f"lin{number}.model.1.weight"]
    return tensors


def main(path: Path) -> None:
    """Write the file."""
    package = find_spec("lpips")
    if package is None or package.origin is None:
        sys.exit("lpips_weights: the package lpips is not installed: pip install lpips")
    published = Path(package.origin).parent / "weights" / "v0.1" / "squeeze.pth"
    heads = torch.load(published, map_location="cpu", weights_only=True)
    network = squeezenet1_1(weights=SqueezeNet1_1_Weights.IMAGENET1K_V1).features.state_dict()
    save_tensors(path, convert(network, heads))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/lpips_weights.py FILE")
    main(Path(sys.argv[1]))
