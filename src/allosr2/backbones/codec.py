"""A diffusers VAE as a codec: images in [0, 1] to the model's latents and back."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from jaxtyping import Float
from torch import Tensor, nn

from allosr2.backbones.velocity import config_of


class Codec(nn.Module):
    """Encode images to latents at the posterior mode; decode latents to images.

    The latent convention of FLUX.1: `z = (posterior - shift) * scale`, so that the flow sees unit scale.
    Only this class knows the VAE's own image range [-1, 1].
    """

    lora_targets: ClassVar[str] = r"encoder\..+"
    """Layers that get adapters: the encoder's alone, the decoder stays as it was trained."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae
        config = config_of(vae)
        self.shift: float = config.get("shift_factor") or 0.0
        self.scale: float = config.get("scaling_factor") or 1.0
        self.channels: int = config["latent_channels"]
        stages = config.get("block_out_channels") or config["encoder_block_out_channels"]
        self.factor: int = 2 ** (len(stages) - 1)
        """Pixels per latent element, along a side."""

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h/f w/f"]:
        """Latents of images in [0, 1], whose sides are multiples of `factor`. Deterministic."""
        pixels = (image * 2 - 1).to(self._dtype)
        encoded = self.vae.encode(pixels, return_dict=False)[0]
        if isinstance(encoded, DiagonalGaussianDistribution):
            encoded = encoded.mode()
        return self._to_model(_at_least_float32(encoded))

    def decode(self, z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h*f w*f"]:
        """Images of latents; about [0, 1], not clamped, so that gradients pass everywhere."""
        decoded = self.vae.decode(self._to_vae(z).to(self._dtype), return_dict=False)[0]
        return (_at_least_float32(cast(Tensor, decoded)) + 1) / 2

    @property
    def _dtype(self) -> torch.dtype:
        # the decoder's, as an encoder with adapters is held in two
        return next(self.vae.decoder.parameters()).dtype

    def _to_model(self, posterior: Tensor) -> Tensor:
        """The VAE's latents as the flow's."""
        return (posterior - self.shift) * self.scale

    def _to_vae(self, z: Tensor) -> Tensor:
        """The inverse of `_to_model`."""
        return z / self.scale + self.shift


def _at_least_float32(x: Tensor) -> Tensor:
    # losses and latent arithmetic keep full precision where the networks run in bfloat16
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
