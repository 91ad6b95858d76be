"""The layout of `mini`: a FLUX transformer and a VAE, both from diffusers, small enough for a CPU."""

from __future__ import annotations

from diffusers import AutoencoderDC, FluxTransformer2DModel
from torch import nn


def mini_vae() -> AutoencoderDC:
    """A VAE of 2.7 M parameters with FLUX.1's latent shape: 16 channels, 1/8 size.

    The encoder starts with a pixel unshuffle, so that nothing but one convolution runs at full size. The
    decoder ends with a thin block at full size: without it, what pixel shuffles leave shows as a grid.
    """
    return AutoencoderDC(
        latent_channels=16,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(32, 32, 64, 128),
        decoder_block_out_channels=(16, 32, 64, 128),
        encoder_layers_per_block=(0, 1, 3, 3),
        decoder_layers_per_block=(1, 2, 3, 3),
        encoder_qkv_multiscales=((), (), (), ()),
        decoder_qkv_multiscales=((), (), (), ()),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


def mini_transformer() -> FluxTransformer2DModel:
    """A FLUX transformer of 6.3 M parameters: 6 single blocks, 4 heads of 64, no text tokens needed."""
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=0,
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(16, 24, 24),
    )
    # DiT's start: blocks begin as identities (zero gates), the velocity at zero
    for name, parameter in transformer.named_parameters():
        if ".norm.linear." in name or name.startswith(("norm_out.linear.", "proj_out.")):
            nn.init.zeros_(parameter)
    return transformer
