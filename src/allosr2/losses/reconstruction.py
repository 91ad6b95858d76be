"""The reconstruction loss (arXiv:2604.19238, Eq. 8)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def latent_reconstruction(
    z_sr: Float[Tensor, "b c h w"], z_hr: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """Mean squared error between latents, the first term of Eq. 8. Its second is `LPIPS` on images."""
    return functional.mse_loss(z_sr, z_hr)
