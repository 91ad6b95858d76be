"""A base model: a folder in diffusers layout (`transformer/`, `vae/`), such as FLUX.1-dev or `mini`'s own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoModel, FluxTransformer2DModel
from torch import nn

from allosr2.errors import ModelError

Part = Literal["transformer", "vae"]


def _load(base: str, part: Part, dtype: torch.dtype) -> nn.Module:
    """One part of a base, frozen, in evaluation mode. Raises ModelError if it is absent or broken."""
    folder = Path(base)
    if folder.is_dir() and not (folder / part / "config.json").is_file():
        raise ModelError(f"{base}: no {part}/config.json in it; name a folder in diffusers layout")
    try:
        model = cast(
            nn.Module,
            AutoModel.from_pretrained(
                base, subfolder=part, torch_dtype=dtype, use_safetensors=True
            ),
        )
    except Exception as error:  # diffusers, hub and safetensors each raise their own
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{base}: its {part} cannot be loaded ({reason}); "
            "name a folder in diffusers layout, or a hub id that this machine can reach"
        ) from error
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:  # diffusers only warns of them
        raise ModelError(
            f"{base}: its {part} has no weights for {missing[0]} and {len(missing) - 1} others; copy it again"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{base}: in its {part}, {name} holds NaN or infinity; copy or train it again"
            )
    return model.requires_grad_(False).eval()


def load_vae(base: str, dtype: torch.dtype = torch.float32) -> AutoencoderKL | AutoencoderDC:
    """The VAE of a base. Raises ModelError as above, or if its kind is not supported."""
    vae = _load(base, "vae", dtype)
    if not isinstance(vae, AutoencoderKL | AutoencoderDC):
        raise ModelError(
            f"{base}: its VAE is a {type(vae).__name__}; AutoencoderKL and AutoencoderDC are supported"
        )
    return vae


def load_transformer(base: str, dtype: torch.dtype = torch.float32) -> FluxTransformer2DModel:
    """The transformer of a base. Raises ModelError as above, or if its kind is not supported."""
    transformer = _load(base, "transformer", dtype)
    if not isinstance(transformer, FluxTransformer2DModel):
        raise ModelError(
            f"{base}: its transformer is a {type(transformer).__name__}; FluxTransformer2DModel is supported"
        )
    return transformer


def save_base(folder: Path, **parts: nn.Module) -> None:
    """Write parts (`vae=...`, `transformer=...`) in diffusers layout, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in parts.items():
        # built anew from its config, so that neither where it came from nor what compiled it is kept
        kind = cast(Any, type(module))
        config = {k: v for k, v in cast(Any, module).config.items() if k != "_name_or_path"}
        clone = kind.from_config(config)
        clone.load_state_dict(module.state_dict())
        nn.Module.to(clone, torch.bfloat16)
        clone.save_pretrained(folder / name)
