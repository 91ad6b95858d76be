"""A frozen transformer in 4 bits a weight, as QLoRA holds it (arXiv:2305.14314), through bitsandbytes."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn

from allosr2.errors import ConfigError

BLOCK = 64
"""Weights that share a scale."""
_INSIDE_A_BLOCK = re.compile(r".+\.\d+\..+")


def is_quantized(name: str, layer: nn.Module) -> bool:
    """Whether a transformer's layer of this name is held in 4 bits: the blocks' linear layers are.

    Rows must be of whole groups of weights: on CPUs, scales that reach into the next row are misread.
    """
    return (
        type(layer) is nn.Linear
        and _INSIDE_A_BLOCK.fullmatch(name) is not None
        and layer.in_features % BLOCK == 0
    )


def require_bitsandbytes(setting: str) -> None:
    """Raise ConfigError, naming the setting that needs it, if the library is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{setting}: it needs pip install 'allosr2[quantize]'")


def quantize_blocks(transformer: nn.Module) -> None:
    """Put NF4 layers in the place of the linear layers inside the blocks; embedders and the head stay.

    The weights are quantized when the transformer is next moved to a device (`.to`), on that device.
    Computes in bfloat16. Raises ConfigError if bitsandbytes is not installed.
    """
    require_bitsandbytes("base_precision is nf4")
    from bitsandbytes.nn import Linear4bit, Params4bit

    linear = {
        name: cast(nn.Linear, layer)
        for name, layer in transformer.named_modules()
        if is_quantized(name, layer)
    }
    for name, layer in linear.items():
        with torch.device("meta"):  # the weights that it would draw are thrown away
            quantized: Any = Linear4bit(
                layer.in_features,
                layer.out_features,
                compute_dtype=torch.bfloat16,
                quant_type="nf4",
            )
        # on CPUs, one pass without gradient would repack the weights into a form that has no backward
        quantized.support_avx512bf16_for_cpu = False
        quantized.weight = cast(Any, Params4bit)(
            layer.weight.data,
            requires_grad=False,
            quant_type="nf4",
            blocksize=BLOCK,
            compress_statistics=False,  # 0.4 bits a weight more, and scales that are exact
        )
        quantized.bias = layer.bias
        parent, _, own = name.rpartition(".")
        setattr(transformer.get_submodule(parent), own, quantized)
    transformer.is_loaded_in_4bit = True  # pyright: ignore[reportArgumentType] - PEFT asks for it
