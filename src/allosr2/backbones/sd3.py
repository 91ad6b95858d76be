"""Stable Diffusion 3 and 3.5 as a velocity field; its VAE is a plain one."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from allosr2.backbones.velocity import JOINT_ATTENTION, VelocityField, config_of


class SD3Velocity(VelocityField):
    """`v(z_t, t)` of an SD3 transformer; latent sides are multiples of 2 (16 pixels).

    It packs latents itself, crops its table of positions around the center (so that a tile lies in the
    middle of the picture that the base was trained on), and counts time from 0 to 1000.
    """

    lora_targets = (
        r"pos_embed\.proj"
        r"|transformer_blocks\.\d+\.("
        rf"attn2?\.{JOINT_ATTENTION}"
        r"|ff(_context)?\.net\.(0\.proj|2))"
    )

    @staticmethod
    def widths(transformer: nn.Module) -> tuple[int, int]:
        """Widths of the text tokens (two CLIPs and T5 in one row) and of both CLIPs' pooled embeddings."""
        config = config_of(transformer)
        return config["joint_attention_dim"], config["pooled_projection_dim"]

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return config_of(self.transformer)["in_channels"]

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity dz_t/dt at time t in [0, 1], in z_t's own dtype."""
        batch = z_t.shape[0]
        v = self.transformer(
            hidden_states=z_t.to(self.prompt.dtype),
            timestep=t * 1000,
            encoder_hidden_states=self.prompt.expand(batch, -1, -1),  # b l d
            pooled_projections=self.pooled.expand(batch, -1),
            return_dict=False,
        )[0]
        return v.to(z_t.dtype)
