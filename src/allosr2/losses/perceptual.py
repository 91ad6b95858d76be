"""LPIPS on SqueezeNet 1.1 from one safetensors file; the perceptual distance of Eq. 8."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from allosr2.errors import ModelError

_TAPS = (1, 4, 7, 9, 10, 11, 12)
"""Indices into SqueezeNet's `features` after which LPIPS compares activations."""
BGR_MEAN = (103.939, 116.779, 123.68)
"""Pixel means, 0 to 255, of the Caffe network that the weights come from."""


def _parameter_name(key: str) -> str:
    """From the file's key to our module's."""
    if key.startswith("lpips.lin"):
        return f"linear.{key.removeprefix('lpips.lin').removesuffix('.weight')}"
    return key.replace(".squeeze1x1.", ".squeeze.")


class LPIPS(nn.Module):
    """Learned perceptual distance (Zhang et al., CVPR 2018), version 0.1, frozen.

    Weights: `features.*` of a SqueezeNet 1.1 that takes BGR pixels of 0 to 255 less their mean, named as in
    torchvision (`squeeze1x1` for `squeeze`), and `lpips.lin{0..6}.weight`, the non-negative channel weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = squeezenet1_1(weights=None).features
        for module in self.features:
            if isinstance(module, nn.ReLU):
                module.inplace = False
        channels = (64, 128, 256, 384, 384, 512, 512)
        self.linear = nn.ParameterList([torch.zeros(1, c, 1, 1) for c in channels])
        self.register_buffer("mean", torch.tensor(BGR_MEAN).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor

    @classmethod
    def from_file(cls, path: Path) -> LPIPS:
        """Load weights. Raises ModelError if the file is absent, unreadable or of another network."""
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"{path}: no LPIPS weights can be read there ({error}); name a safetensors file with "
                "--perceptual FILE"
            ) from error
        state = {_parameter_name(key): value for key, value in tensors.items()}
        lpips = cls()
        try:
            lpips.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(
                f"{path}: not LPIPS weights on SqueezeNet 1.1; name a file with features.* and lpips.lin*"
            ) from error
        return lpips.requires_grad_(False).eval()

    def _activations(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        x = 255 * image.flip(1) - self.mean
        activations: list[Tensor] = []
        for index, module in enumerate(self.features):
            x = module(x)
            if index in _TAPS:
                # float32: squares of bfloat16 activations would lose the small differences
                activations.append(nn.functional.normalize(x.float(), dim=1, eps=1e-10))
        return activations

    def forward(
        self, image: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance of RGB images in [0, 1]; 0 for equal images, larger is worse."""
        distance = image.new_zeros(image.shape[0])
        pairs = zip(self._activations(image), self._activations(reference), strict=True)
        for weight, (a, b) in zip(self.linear, pairs, strict=True):
            distance = distance + ((a - b).square() * weight).sum(1).mean((1, 2))
        return distance
