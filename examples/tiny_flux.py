"""FLUX.1-dev in miniature: random weights, all of its parts, to try every command before 34 GB come.

python examples/tiny_flux.py tiny-flux
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CLIP_VOCABULARY = {
    "a": 0,
    "b": 1,
    "a</w>": 2,
    "b</w>": 3,
    "<|startoftext|>": 4,
    "<|endoftext|>": 5,
}
T5_WIDTH = 24


def save_flux(folder: Path, *, distilled: bool = True) -> Path:
    """Write a folder as diffusers does: FLUX.1-dev with a guidance input, FLUX.1-schnell without."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=10,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 6, 6),
    )
    # diffusers writes the types of its sequences as if they had one element
    vae = cast(Any, AutoencoderKL)(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.1159,
        scaling_factor=0.3611,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        transformer=transformer,
        text_encoder=CLIPTextModel(clip(10)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)
    return folder


def clip(width: int) -> CLIPTextConfig:
    """Settings of a CLIP text encoder."""
    return CLIPTextConfig(
        vocab_size=len(CLIP_VOCABULARY),
        hidden_size=width,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=4,
        eos_token_id=5,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """Letters a and b, start and end."""
    return CLIPTokenizer(vocab=CLIP_VOCABULARY, merges=[], model_max_length=77)


def t5() -> T5EncoderModel:
    """A T5 encoder of two layers."""
    config = T5Config(vocab_size=5, d_model=T5_WIDTH, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return T5EncoderModel(config)


def t5_tokenizer() -> T5Tokenizer:
    """A vocabulary of five pieces."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("a", -3.0)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/tiny_flux.py FOLDER")
    save_flux(Path(sys.argv[1]))
