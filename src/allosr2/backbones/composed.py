"""LoRA on convolutions, whose weights are small beside what they work on: one convolution, not three."""

from __future__ import annotations

from typing import cast

from peft.tuners.lora import Conv2d as LoraConv2d
from torch import Tensor, nn


class ComposedConv2d(LoraConv2d):
    """A convolution with W + B A for its weights, computed in every pass while the adapter is trained.

    PEFT's own convolves with W, with A and with B: at rank 64 and 128 channels 1.6 times the operations of W
    alone, and three activations to keep instead of one. This one costs what W alone does, and the product B A,
    which does not grow with the image.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The convolution, with the adapter or, where it is off or merged, without."""
        if self.disable_adapters or self.merged:
            return super().forward(x)
        (adapter,) = self.active_adapters
        base = cast(nn.Conv2d, self.get_base_layer())
        weight = base.weight + self.get_delta_weight(adapter)
        return base._conv_forward(x, weight, base.bias)  # pyright: ignore[reportPrivateUsage] - pads as it does
