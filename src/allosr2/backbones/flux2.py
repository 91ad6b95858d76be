"""FLUX.2 [klein]: its VAE as a codec of patches, its transformer as a velocity field."""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from allosr2.backbones.codec import Codec
from allosr2.backbones.velocity import JOINT_ATTENTION, VelocityField, config_of


class Flux2Codec(Codec):
    """Latents are 2 x 2 patches of the VAE's posterior, `b 128 h/16 w/16`, at unit scale channel by channel.

    Mean and variance are the VAE's own (a batch normalization that is never trained again).
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__(vae)
        self.channels *= 4
        self.factor *= 2

    def _to_model(self, posterior: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4*c h/2 w/2"]:
        patches = rearrange(posterior, "b c (h p) (w q) -> b (c p q) h w", p=2, q=2)
        mean, deviation = self._statistics()
        return (patches - mean) / deviation

    def _to_vae(self, z: Float[Tensor, "b 4*c h/2 w/2"]) -> Float[Tensor, "b c h w"]:
        mean, deviation = self._statistics()
        return rearrange(z * deviation + mean, "b (c p q) h w -> b c (h p) (w q)", p=2, q=2)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        norm = cast(nn.BatchNorm2d, self.vae.bn)
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        deviation = (variance.float() + config_of(self.vae)["batch_norm_eps"]).sqrt()
        return mean.float().view(1, -1, 1, 1), deviation.view(1, -1, 1, 1)


class Flux2Velocity(VelocityField):
    """`v(z_t, t)` of a FLUX.2 transformer; every element of the latents is a token.

    [klein] takes no guidance, [dev] does. Position ids have four axes: image, row, column, text token.
    """

    patch = 1
    # feed-forward projections are called linear_in and linear_out, a single block's are fused with attention
    lora_targets = (
        r"x_embedder"
        r"|transformer_blocks\.\d+\.("
        rf"attn\.{JOINT_ATTENTION}"
        r"|ff(_context)?\.linear_(in|out))"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
    )

    @staticmethod
    def widths(transformer: nn.Module) -> tuple[int, int]:
        """Width of the text tokens, three layers of Qwen3 side by side; nothing is pooled."""
        return config_of(transformer)["joint_attention_dim"], 0

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return config_of(self.transformer)["in_channels"]

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity dz_t/dt at time t in [0, 1], in z_t's own dtype."""
        batch, _, height, width = z_t.shape
        tokens = self.transformer(
            hidden_states=rearrange(z_t, "b c h w -> b (h w) c").to(self.prompt.dtype),
            timestep=t,
            guidance=None if self.guidance is None else t.new_full((batch,), self.guidance),
            encoder_hidden_states=self.prompt.expand(batch, -1, -1),  # b l d
            txt_ids=_ids(1, 1, self.prompt.shape[0], z_t.device),
            img_ids=_ids(height, width, 1, z_t.device),
            return_dict=False,
        )[0]
        return rearrange(tokens.to(z_t.dtype), "b (h w) c -> b c h w", h=height, w=width)


def _ids(rows: int, columns: int, texts: int, device: torch.device) -> Float[Tensor, "n 4"]:
    return torch.cartesian_prod(
        *(torch.arange(count, device=device) for count in (1, rows, columns, texts))
    )
