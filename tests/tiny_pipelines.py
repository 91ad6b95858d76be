"""Random pipelines of every supported family, written as diffusers writes them; a few KB each.

Their vocabularies are made by hand, so that a test can write down the ids that a text must become.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    DiffusionPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from tiny_flux import clip, clip_tokenizer, t5, t5_tokenizer
from transformers import (
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

CLIP_IDS = [4] + [5] * 76
"""What CLIP's tokenizer makes of an empty text: start, end, and the end again as padding."""
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
_QWEN_VOCABULARY = {
    token: i for i, token in enumerate([*_SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "\u010a"])
}
"""\\u010a is how a line feed is written in a byte-level vocabulary."""
_MISTRAL_VOCABULARY = {
    token: i
    for i, token in enumerate(
        ["<unk>", "<pad>", "<s>", "</s>", "[INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    )
}
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def t5_ids(length: int) -> list[int]:
    """What T5's tokenizer makes of an empty text: end, then padding."""
    return [1] + [0] * (length - 1)


def qwen_ids(*, thinking: bool) -> list[int]:
    """The chat around an empty prompt; without thinking, an empty thought ends it."""
    pieces = ["<|im_start|>", *"user\n", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    if not thinking:
        pieces += ["<think>", "\n", "\n", "</think>", "\n", "\n"]
    return [_QWEN_VOCABULARY["\u010a" if piece == "\n" else piece] for piece in pieces]


def save_sd3(folder: Path) -> Path:
    """Stable Diffusion 3's three text encoders."""
    torch.manual_seed(1)
    return _save(
        StableDiffusion3Pipeline,
        folder,
        text_encoder=CLIPTextModelWithProjection(clip(8)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip(12)),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(),
        tokenizer_3=t5_tokenizer(),
    )


def save_klein(folder: Path) -> Path:
    """The text encoder of FLUX.2 [klein]: as many layers as three of which are taken."""
    torch.manual_seed(2)
    encoder = Qwen3ForCausalLM(_qwen(layers=28))
    return _save(Flux2KleinPipeline, folder, text_encoder=encoder, tokenizer=_qwen_tokenizer())


def save_z_image(folder: Path) -> Path:
    """Z-Image's text encoder."""
    torch.manual_seed(3)
    encoder = Qwen3Model(_qwen(layers=3))
    return _save(ZImagePipeline, folder, text_encoder=encoder, tokenizer=_qwen_tokenizer())


def save_flux2_dev(folder: Path) -> Path:
    """The text encoder of FLUX.2 [dev], which sees too, with a vocabulary that knows no word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(4)
    text = MistralConfig(
        vocab_size=len(_MISTRAL_VOCABULARY),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=31,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    vision = PixtralVisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
    )
    words = Tokenizer(models.WordLevel(_MISTRAL_VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["[INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    )
    chat = "<s>{% for message in messages %}[INST]{{ message.content[0].text }}{% endfor %}"
    return _save(
        Flux2Pipeline,
        folder,
        text_encoder=Mistral3ForConditionalGeneration(
            Mistral3Config(text_config=text, vision_config=vision, image_token_index=5)
        ),
        tokenizer=PixtralProcessor(PixtralImageProcessor(), tokenizer, chat_template=chat),
    )


def _save(kind: type[DiffusionPipeline], folder: Path, **text: object) -> Path:
    kind(scheduler=None, vae=None, transformer=None, **text).save_pretrained(folder)
    return folder


def _qwen(layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(_QWEN_VOCABULARY),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )


def _qwen_tokenizer() -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(vocab=_QWEN_VOCABULARY, merges=[], chat_template=_CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL[1:]})
    return tokenizer
