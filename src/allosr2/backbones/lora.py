"""LoRA on a VAE's encoder and a FLUX transformer, stored as diffusers stores it."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from allosr2.errors import ModelError

ADAPTER = "default"
"""PEFT's name of the one adapter that a model carries."""
FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for."""

_METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps rank and alpha inside the file."""
_TRANSFORMER_TARGETS = re.compile(
    r"x_embedder"
    r"|(single_)?transformer_blocks\.\d+\.("
    r"attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|ff(_context)?\.net\.(0\.proj|2)"
    r"|proj_mlp|proj_out)"
)
"""Every attention and feed-forward projection of the blocks; never the top-level `proj_out`."""
_VAE_TARGETS = re.compile(r"encoder\..+")
"""The encoder alone: the decoder stays as it was trained."""


def target_names(module: nn.Module, part: str) -> list[str]:
    """Full names of the layers of a `transformer` or a `vae` that get an adapter."""
    pattern = _TRANSFORMER_TARGETS if part == "transformer" else _VAE_TARGETS
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and pattern.fullmatch(name)
    ]


def add_adapter(module: nn.Module, part: str, *, rank: int, alpha: int) -> None:
    """Put a fresh adapter, without effect yet, on a `transformer` or a `vae`; it alone is trainable."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=target_names(module, part),
        init_lora_weights="gaussian",
    )
    module.requires_grad_(False)
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    module.peft_config = {ADAPTER: config}  # pyright: ignore[reportArgumentType] - PEFT reads it back


def _adapter_layers(module: nn.Module) -> Iterator[BaseTunerLayer]:
    return (layer for layer in module.modules() if isinstance(layer, BaseTunerLayer))


@contextmanager
def adapters_off(module: nn.Module) -> Generator[None]:
    """Run a module as its base for a while; which parameters are trainable does not change."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    for layer in _adapter_layers(module):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in _adapter_layers(module):
            layer.enable_adapters(True)
        module.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)


def merge_adapters(module: nn.Module) -> None:
    """Add the adapters into the weights they sit on: equal outputs, nothing left to compute."""
    for layer in _adapter_layers(module):
        layer.merge()


def save_adapters(folder: Path, **parts: nn.Module) -> None:
    """Write the adapters of parts (`vae=...`, `transformer=...`) to one file for diffusers, in bfloat16.

    What was loaded is written again bit by bit; what was trained in float32 is rounded once.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for part, module in parts.items():
        config: LoraConfig = cast(Any, module).peft_config[ADAPTER]
        state: dict[str, Tensor] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
        tensors |= {f"{part}.{k}": v.to(torch.bfloat16).contiguous() for k, v in state.items()}
        settings |= {
            f"{part}.r": config.r,
            f"{part}.lora_alpha": config.lora_alpha,
            f"{part}.target_modules": sorted(cast(Any, config.target_modules)),
        }
    metadata = {"format": "pt", _METADATA_KEY: json.dumps(settings, sort_keys=True)}
    save_file(tensors, folder / FILE_NAME, metadata=metadata)


def load_adapters(folder: Path, **parts: nn.Module) -> None:
    """Put the adapters of a folder on parts (`vae=...`, `transformer=...`), frozen.

    Raises ModelError if the file is absent or broken, or was made for another base.
    """
    path = folder / FILE_NAME
    try:
        with safe_open(path, "pt") as file:
            settings = json.loads((file.metadata() or {}).get(_METADATA_KEY, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{path}: the adapters cannot be read ({error}); copy them again"
        ) from error
    for part, module in parts.items():
        prefix = f"{part}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not {f"{prefix}r", f"{prefix}lora_alpha"} <= settings.keys():
            raise ModelError(f"{path}: no rank and alpha for the {part} in it; save it again")
        add_adapter(
            module, part, rank=settings[f"{prefix}r"], alpha=settings[f"{prefix}lora_alpha"]
        )
        expected = get_peft_model_state_dict(module, adapter_name=ADAPTER)
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in expected.items()}:
            raise ModelError(
                f"{path}: its {part} adapters do not fit the base; use the base that they were trained on"
            )
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise ModelError(
                f"{path}: its {part} adapters hold NaN or infinity; copy or train them again"
            )
        set_peft_model_state_dict(module, state, adapter_name=ADAPTER)
        module.requires_grad_(False)


def unfreeze_adapters(module: nn.Module) -> None:
    """Make a part's adapters, and nothing else of it, trainable."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def adapter_size(module: nn.Module) -> tuple[int, int]:
    """Rank and alpha of the adapter that a part carries."""
    config: LoraConfig = cast(Any, module).peft_config[ADAPTER]
    return config.r, config.lora_alpha
