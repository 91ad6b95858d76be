"""A FLUX transformer as a velocity field: packing, position ids, timestep, guidance, a constant prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from diffusers import FluxTransformer2DModel
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from allosr2.errors import ModelError

PATCH = 2
"""Side of the latent patch that makes one token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """The constant prompt, encoded once."""

    prompt: Float[Tensor, "l d"]
    """Text tokens; l may be 0."""
    pooled: Float[Tensor, " p"]
    """Pooled text embedding."""

    @classmethod
    def empty(cls, transformer: FluxTransformer2DModel) -> Conditioning:
        """No text tokens and a zero pooled embedding."""
        config = transformer.config
        return cls(
            prompt=torch.zeros(0, config["joint_attention_dim"]),
            pooled=torch.zeros(config["pooled_projection_dim"]),
        )


def pack(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n 4*c"]:
    """Latents to tokens, one a 2 x 2 patch, row by row."""
    return rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def unpack(tokens: Float[Tensor, "b n 4*c"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Tokens back to latents of `height` x `width`: the inverse of `pack`."""
    return rearrange(
        tokens,
        "b (h w) (c p q) -> b c (h p) (w q)",
        h=height // PATCH,
        w=width // PATCH,
        p=PATCH,
        q=PATCH,
    )


def position_ids(rows: int, columns: int, device: torch.device) -> Float[Tensor, "n 3"]:
    """FLUX's image ids: 0, row, column of each token."""
    grid = torch.cartesian_prod(
        torch.zeros(1, device=device),
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(columns, dtype=torch.float32, device=device),
    )
    return grid.view(-1, 3)


def representable_time(t: float) -> float:
    """The nearest time that FLUX embeds alike in float32 and in bfloat16.

    The transformer computes 1000 t in its own precision; bfloat16 has 8 bits, and the embedding's highest
    frequency tells 437 from 438. At such a time a model trained in one precision runs in the other.
    """
    rounded = torch.tensor(t, dtype=torch.bfloat16) * 1000
    return rounded.item() / 1000


class FluxVelocity(nn.Module):
    """`v(z_t, t)` of a FLUX transformer with its prompt and guidance held constant.

    Latent sides must be multiples of 2 (16 pixels). Guidance is given to guidance-distilled bases
    (FLUX.1-dev) and to no other.
    """

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        conditioning: Conditioning,
        guidance: float | None = None,
    ) -> None:
        super().__init__()
        config = transformer.config
        distilled = bool(config["guidance_embeds"])
        if distilled != (guidance is not None):
            need = "needs a guidance (1.0)" if distilled else "takes no guidance"
            raise ModelError(f"guidance is {guidance}: this base {need}; set it in allosr2.json")
        expected = (config["joint_attention_dim"], config["pooled_projection_dim"])
        found = (conditioning.prompt.shape[1], conditioning.pooled.shape[0])
        if expected != found:
            raise ModelError(
                f"conditioning has widths {found}, this base needs {expected}; take its own file"
            )
        self.transformer = transformer
        self.guidance = guidance
        self.register_buffer("prompt", conditioning.prompt, persistent=False)
        self.register_buffer("pooled", conditioning.pooled, persistent=False)
        self.prompt: Tensor
        self.pooled: Tensor

    def check_channels(self, channels: int) -> None:
        """Raise ModelError unless the field is one of latents with so many channels."""
        own = self.transformer.config["in_channels"] // PATCH**2
        if channels != own:
            raise ModelError(
                f"the VAE's latents have {channels} channels, the transformer's {own}; "
                "take both from one base"
            )

    @property
    def conditioning(self) -> Conditioning:
        """The prompt that the field was built with."""
        return Conditioning(prompt=self.prompt, pooled=self.pooled)

    def with_guidance(self, guidance: float) -> FluxVelocity:
        """The same field at another guidance. Raises ModelError if the base takes none."""
        return FluxVelocity(self.transformer, self.conditioning, guidance)

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity dz_t/dt at time t in [0, 1], in z_t's own dtype."""
        batch, _, height, width = z_t.shape
        dtype = self.prompt.dtype
        tokens = self.transformer(
            hidden_states=pack(z_t).to(dtype),  # b n 4c
            timestep=t,
            guidance=None if self.guidance is None else t.new_full((batch,), self.guidance),
            pooled_projections=self.pooled.expand(batch, -1),
            encoder_hidden_states=self.prompt.expand(batch, -1, -1),  # b l d
            txt_ids=self.prompt.new_zeros(self.prompt.shape[0], 3),
            img_ids=position_ids(height // PATCH, width // PATCH, z_t.device),
            return_dict=False,
        )[0]
        return unpack(cast(Tensor, tokens).to(z_t.dtype), height, width)
