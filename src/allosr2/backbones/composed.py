"""LoRA on convolutions, whose weights are small beside what they work on: one convolution, not three."""

from __future__ import annotations

from typing import cast

from peft.tuners.lora import Conv2d as LoraConv2d
from torch import Tensor, nn


class ComposedConv2d(LoraConv2d):
    """A convolution with the adapter added to its weights, each time anew, while it is trained.

    PEFT's own convolves with A, with B and with the base; at rank 64 and 128 channels that is half as much
    again as the base alone, and three times the activations. Composed, a pass costs what the base's does, and
    once more a product of A and B, which does not grow with the image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution, with the adapter or, where it is off or merged, without."""
        if self.disable_adapters or self.merged:
            return super().forward(x)
        (adapter,) = self.active_adapters
        base = cast(nn.Conv2d, self.get_base_layer())
        weight = base.weight + self.get_delta_weight(adapter)
        return base._conv_forward(x, weight, base.bias)  # pyright: ignore[reportPrivateUsage] - pads as it does
