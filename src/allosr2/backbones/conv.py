"""A flow made of 3x3 convolutions alone, `mini`'s own, and its velocity field.

On a CPU attention as small as `mini`'s runs at a third of the speed of convolutions (`docs/mini.md`), and what
restoration needs of an image lies near by.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from allosr2.backbones.velocity import VelocityField, config_of

_Layer = TypeVar("_Layer", nn.Linear, nn.Conv2d)
_FREQUENCIES = 64
"""Frequencies that a time is embedded with, 1/4 to 64 turns over [0, 1]."""


class ConvFlowModel(ModelMixin, ConfigMixin):
    """Residual blocks of two convolutions, each scaled and shifted by what is made of the time.

    No normalization and nothing else that looks at a whole image: a tile comes out as the image does, but near
    its border. Modulations follow their convolution: at a constant time they are part of its weights.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ("ConvFlowBlock",)

    @register_to_config
    def __init__(
        self, in_channels: int = 16, width: int = 128, num_blocks: int = 12, time_width: int = 128
    ) -> None:
        """Starts with blocks that are identities and a velocity of zero.

        Args:
            in_channels: channels of the latents.
            width: channels inside.
            num_blocks: blocks of two convolutions.
            time_width: width of the embedded time.
        """
        super().__init__()
        self.time_embedder = nn.Sequential(
            nn.Linear(2 * _FREQUENCIES, time_width),
            nn.SiLU(),
            nn.Linear(time_width, time_width),
            nn.SiLU(),
        )
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(ConvFlowBlock(width, time_width) for _ in range(num_blocks))
        self.conv_out = _zeros(nn.Conv2d(width, in_channels, 3, padding=1))
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = None

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at time t in [0, 1]."""
        time = self.time_embedder(embed_time(t).to(z_t.dtype))  # b time_width
        x = self.conv_in(z_t)  # b width h w
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, time)
            else:
                x = block(x, time)
        return self.conv_out(x)


class ConvFlowBlock(nn.Module):
    """`x + gate * conv2(silu(scale * conv1(x) + shift))`, an identity at first.

    Scales and gates are 1 plus a linear function of the embedded time, shifts one without the 1.
    """

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.modulation = _zeros(nn.Linear(time_width, 3 * width))
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = _zeros(nn.Conv2d(width, width, 3, padding=1))

    def forward(
        self, x: Float[Tensor, "b d h w"], time: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b d h w"]:
        """The next features."""
        scale, shift, gate = self.modulation(time)[:, :, None, None].chunk(3, dim=1)  # b d 1 1
        inner = functional.silu(torch.addcmul(shift, self.conv1(x), 1 + scale))
        return torch.addcmul(x, self.conv2(inner), 1 + gate)


class ConvVelocity(VelocityField):
    """`v(z_t, t)` of a `ConvFlowModel`, which takes neither text nor guidance."""

    patch = 1
    lora_targets = r"conv_in|conv_out|blocks\.\d+\.conv[12]"

    @staticmethod
    def widths(transformer: nn.Module) -> tuple[int, int]:  # noqa: ARG004 - as every family
        """No text."""
        return 0, 0

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return config_of(self.transformer)["in_channels"]

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity dz_t/dt at time t in [0, 1], in z_t's own dtype."""
        return self.transformer(z_t.to(self.prompt.dtype), t).to(z_t.dtype)


def embed_time(t: Float[Tensor, " b"]) -> Float[Tensor, "b k"]:
    """Sines and cosines of a time in [0, 1], in float32."""
    turns = torch.logspace(-2, 6, _FREQUENCIES, base=2.0, device=t.device)
    angles = 2 * math.pi * t.float()[:, None] * turns
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _zeros(layer: _Layer) -> _Layer:
    """A layer that gives zero until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
