"""Z-Image as a velocity field; its VAE is FLUX.1's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allosr2.backbones.velocity import VelocityField, config_of


class ZImageVelocity(VelocityField):
    """`v(z_t, t)` of a Z-Image transformer; latent sides are multiples of 2 (16 pixels).

    Its time runs the other way (1 is data), its velocity points from noise to data, and it takes samples
    as a list, each with a time axis of one frame.
    """

    lora_targets = (
        r"all_x_embedder\.2-1"
        r"|(layers|noise_refiner|context_refiner)\.\d+\.("
        r"attention\.(to_q|to_k|to_v|to_out\.0)"
        r"|feed_forward\.w[123])"
    )

    @staticmethod
    def widths(transformer: nn.Module) -> tuple[int, int]:
        """Width of Qwen3's tokens; nothing is pooled."""
        return config_of(transformer)["cap_feat_dim"], 0

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return config_of(self.transformer)["in_channels"]

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity dz_t/dt at time t in [0, 1], in z_t's own dtype."""
        frames = z_t.to(self.prompt.dtype).unsqueeze(2)  # b c 1 h w
        v = self.transformer(list(frames), 1 - t, [self.prompt] * z_t.shape[0], return_dict=False)[
            0
        ]
        return -torch.stack(v).squeeze(2).to(z_t.dtype)
