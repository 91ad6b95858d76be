"""Z-Image as a velocity field; its VAE is FLUX.1's."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allosr2.backbones.velocity import Conditioning, VelocityField, config_of
from allosr2.errors import ModelError


class ZImageVelocity(VelocityField):
    """`v(z_t, t)` of a Z-Image transformer; latent sides are multiples of 2 (16 pixels).

    Its time runs the other way (1 is data), its velocity points from noise to data, and it takes samples
    as a list, each with a time axis of one frame. It needs text: a stack of blocks refines the tokens alone.
    """

    lora_targets = (
        r"all_x_embedder\.2-1"
        r"|(layers|noise_refiner|context_refiner)\.\d+\.("
        r"attention\.(to_q|to_k|to_v|to_out\.0)"
        r"|feed_forward\.w[123])"
    )

    def __init__(
        self, transformer: nn.Module, conditioning: Conditioning, guidance: float | None = None
    ) -> None:
        """As every field, but also raises ModelError for a prompt without text tokens."""
        super().__init__(transformer, conditioning, guidance)
        if conditioning.prompt.shape[0] == 0:
            raise ModelError(
                "conditioning has no text tokens: this base needs at least one; "
                "keep one or more of an encoded prompt"
            )

    @staticmethod
    def widths(transformer: nn.Module) -> tuple[int, int]:
        """Width of Qwen3's tokens; nothing is pooled."""
        return config_of(transformer)["cap_feat_dim"], 0

    @classmethod
    def without_text(cls, transformer: nn.Module) -> Conditioning:
        """One token of zeros, the least that it runs with; it fills up with pad tokens of its own."""
        tokens, pooled = cls.widths(transformer)
        return Conditioning(prompt=torch.zeros(1, tokens), pooled=torch.zeros(pooled))

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return config_of(self.transformer)["in_channels"]

    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity dz_t/dt at time t in [0, 1], in z_t's own dtype."""
        frames = list(z_t.to(self.prompt.dtype).unsqueeze(2))  # each c 1 h w
        prompts = [self.prompt] * len(frames)
        v = self.transformer(frames, 1 - t, prompts, return_dict=False)[0]
        return -torch.stack(v).squeeze(2).to(z_t.dtype)
