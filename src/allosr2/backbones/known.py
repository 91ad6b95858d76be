"""Bases without their weights: transformer and VAE on the meta device, which knows shapes and holds nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import nn

from allosr2.backbones.base import Part, kind_of
from allosr2.backbones.hub import reach
from allosr2.backbones.presets import mini_vae, mini_velocity
from allosr2.backbones.velocity import config_of
from allosr2.errors import ModelError, one_line

_flux_vae = partial(
    cast(Callable[..., nn.Module], AutoencoderKL),  # it has tuples of any length for tuples of one
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=16,
    sample_size=1024,
    scaling_factor=0.3611,
    shift_factor=0.1159,
    use_quant_conv=False,
    use_post_quant_conv=False,
)
_flux_dev = partial(FluxTransformer2DModel, guidance_embeds=True)
_flux_schnell = partial(FluxTransformer2DModel, guidance_embeds=False)
_flux2_klein = partial(
    Flux2Transformer2DModel,
    num_layers=5,
    num_single_layers=20,
    num_attention_heads=24,
    attention_head_dim=128,
    joint_attention_dim=7680,
    guidance_embeds=False,
)
_sd35_medium = partial(
    SD3Transformer2DModel,
    num_layers=24,
    num_attention_heads=24,
    attention_head_dim=64,
    caption_projection_dim=1536,
    pos_embed_max_size=384,
    dual_attention_layers=tuple(range(13)),
    qk_norm="rms_norm",
)
_sd35_vae = partial(_flux_vae, scaling_factor=1.5305, shift_factor=0.0609)
_z_image = partial(ZImageTransformer2DModel, axes_lens=[1536, 512, 512])

# what the repositories' config.json files say where that is not the class's default
_KNOWN: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "black-forest-labs/FLUX.1-dev": (_flux_dev, _flux_vae),
    "black-forest-labs/FLUX.1-schnell": (_flux_schnell, _flux_vae),
    "black-forest-labs/FLUX.2-klein-4B": (_flux2_klein, AutoencoderKLFlux2),
    "black-forest-labs/FLUX.2-klein-base-4B": (_flux2_klein, AutoencoderKLFlux2),
    "stabilityai/stable-diffusion-3.5-medium": (_sd35_medium, _sd35_vae),
    "Tongyi-MAI/Z-Image": (_z_image, _flux_vae),
    "Tongyi-MAI/Z-Image-Turbo": (_z_image, _flux_vae),
    "runs/mini-flow/model": (mini_velocity, mini_vae),  # until stages 1 and 2 have made it
}


def outline(base: str) -> tuple[nn.Module, nn.Module]:
    """Transformer and VAE of a base on the meta device, frozen, in float32.

    Bases of the recipes are known; of others the two `config.json` are read, in a folder or from the hub.
    Raises ModelError if these are absent or broken.
    """
    with torch.device("meta"):
        if base in _KNOWN and not Path(base).is_dir():
            transformer, vae = (build() for build in _KNOWN[base])
        else:
            transformer, vae = _from_config(base, "transformer"), _from_config(base, "vae")
    return transformer.requires_grad_(False).eval(), vae.requires_grad_(False).eval()


def usual_text_tokens(transformer: nn.Module) -> int:
    """Text tokens that a base's own pipeline makes of the empty prompt, as `allosr2 prepare` writes them."""
    match transformer:
        case FluxTransformer2DModel() if not config_of(transformer)["guidance_embeds"]:
            return 256
        case SD3Transformer2DModel():
            return 77 + 256
        case ZImageTransformer2DModel():
            return 8  # the chat around an empty prompt, not padded
        case _:
            return 512


def _from_config(base: str, part: Part) -> nn.Module:
    folder, name = Path(base), f"{part}/config.json"
    path = folder / name if folder.is_dir() else reach(base, name)
    if not path.is_file():
        raise ModelError(f"{folder}: no {name} in it; name a folder in diffusers layout")
    try:
        return cast(nn.Module, kind_of(path.parent).from_config(json.loads(path.read_text())))
    except Exception as error:  # diffusers raises whatever its classes do
        raise ModelError(
            f"{path}: no {part} can be made of it ({one_line(error)}); copy it again"
        ) from error
