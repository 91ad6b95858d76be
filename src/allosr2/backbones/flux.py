"""FLUX.1 (dev, schnell and their kin, `mini` among them) as a velocity field."""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from allosr2.backbones.velocity import JOINT_ATTENTION, Conditioning, VelocityField, config_of
from allosr2.errors import ModelError

_PATCH = 2
"""Side of the latent patch that makes one token."""


def pack(z: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n 4*c"]:
    """Latents to tokens, one a 2 x 2 patch, row by row."""
    return rearrange(z, "b c (h p) (w q) -> b (h w) (c p q)", p=_PATCH, q=_PATCH)


def unpack(tokens: Float[Tensor, "b n 4*c"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Tokens back to latents of `height` x `width`: the inverse of `pack`."""
    return rearrange(
        tokens,
        "b (h w) (c p q) -> b c (h p) (w q)",
        h=height // _PATCH,
        w=width // _PATCH,
        p=_PATCH,
        q=_PATCH,
    )


def position_ids(rows: int, columns: int, device: torch.device) -> Float[Tensor, "n 3"]:
    """FLUX's image ids: 0, row, column of each token."""
    grid = torch.cartesian_prod(
        torch.zeros(1, device=device),
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(columns, dtype=torch.float32, device=device),
    )
    return grid.view(-1, 3)


class FluxVelocity(VelocityField):
    """`v(z_t, t)` of a FLUX.1 transformer; latent sides are multiples of 2 (16 pixels).

    Guidance is given to guidance-distilled bases (FLUX.1-dev) and to no other.
    """

    patch = _PATCH
    # every attention and feed-forward projection of the blocks; never the top-level `proj_out`
    lora_targets = (
        r"x_embedder"
        r"|(single_)?transformer_blocks\.\d+\.("
        rf"attn\.{JOINT_ATTENTION}"
        r"|ff(_context)?\.net\.(0\.proj|2)"
        r"|proj_mlp|proj_out)"
    )

    def __init__(
        self, transformer: nn.Module, conditioning: Conditioning, guidance: float | None = None
    ) -> None:
        """As every field, but also raises ModelError for bases that take more than latents, as Fill does."""
        super().__init__(transformer, conditioning, guidance)
        config = config_of(transformer)
        given, taken = config["in_channels"], config.get("out_channels") or config["in_channels"]
        if given != taken:
            raise ModelError(
                f"this base takes {given} channels and gives {taken}: one that is controlled by images "
                "(Fill, Canny, Depth) is no plain flow; use FLUX.1-dev or FLUX.1-schnell"
            )

    @staticmethod
    def widths(transformer: nn.Module) -> tuple[int, int]:
        """Widths of T5's tokens and of CLIP's pooled embedding."""
        config = config_of(transformer)
        return config["joint_attention_dim"], config["pooled_projection_dim"]

    @property
    def channels(self) -> int:
        """Channels of the latents, a quarter of a token's."""
        return config_of(self.transformer)["in_channels"] // _PATCH**2

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
            img_ids=position_ids(height // _PATCH, width // _PATCH, z_t.device),
            return_dict=False,
        )[0]
        return unpack(cast(Tensor, tokens).to(z_t.dtype), height, width)
