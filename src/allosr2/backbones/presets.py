"""The layout of `mini`: a flow of convolutions and a VAE from diffusers, small enough for a CPU."""

from __future__ import annotations

from diffusers import AutoencoderDC

from allosr2.backbones.conv import ConvFlowModel


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


def mini_velocity() -> ConvFlowModel:
    """A flow of 4.2 M parameters on these latents: 12 residual blocks of two convolutions, 128 wide."""
    return ConvFlowModel(in_channels=16, width=128, num_blocks=12)
