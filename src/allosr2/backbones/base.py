"""A base model: a folder in diffusers layout (`transformer/`, `vae/`), such as FLUX.1-dev or `mini`'s own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import nn

from allosr2.backbones.codec import Codec
from allosr2.backbones.conv import ConvFlowModel, ConvVelocity
from allosr2.backbones.flux import FluxVelocity
from allosr2.backbones.flux2 import Flux2Codec, Flux2Velocity
from allosr2.backbones.hub import fetch_part
from allosr2.backbones.quantize import quantize_blocks, require_bitsandbytes
from allosr2.backbones.sd3 import SD3Velocity
from allosr2.backbones.velocity import Conditioning, VelocityField
from allosr2.backbones.z_image import ZImageVelocity
from allosr2.errors import ModelError, one_line
from allosr2.storage import refuse_pickles

Part = Literal["transformer", "vae"]
Precision = Literal["float32", "bfloat16", "nf4"]
"""How weights are held; nf4 is 4 bits a weight, for frozen ones alone (bitsandbytes)."""


def family_of(transformer: nn.Module) -> type[VelocityField]:
    """The velocity field of a transformer's kind. Raises ModelError for one that is not supported."""
    match transformer:
        case FluxTransformer2DModel():
            return FluxVelocity
        case Flux2Transformer2DModel():
            return Flux2Velocity
        case SD3Transformer2DModel():
            return SD3Velocity
        case ZImageTransformer2DModel():
            return ZImageVelocity
        case ConvFlowModel():
            return ConvVelocity
        case _:
            raise ModelError(
                f"a transformer of kind {type(transformer).__name__} is not supported; "
                "use a base of FLUX.1, FLUX.2, Stable Diffusion 3 or Z-Image"
            )


def velocity_of(
    transformer: nn.Module, conditioning: Conditioning, guidance: float | None = None
) -> VelocityField:
    """A transformer as a velocity field. Raises ModelError if prompt or guidance do not suit it."""
    return family_of(transformer)(transformer, conditioning, guidance)


def codec_of(vae: nn.Module) -> Codec:
    """A VAE as a codec. Raises ModelError for a kind that is not supported."""
    match vae:
        case AutoencoderKL() | AutoencoderDC():
            return Codec(vae)
        case AutoencoderKLFlux2():
            return Flux2Codec(vae)
        case _:
            raise ModelError(
                f"a VAE of kind {type(vae).__name__} is not supported; "
                "use a base with AutoencoderKL, AutoencoderKLFlux2 or AutoencoderDC"
            )


def kind_of(folder: Path) -> Any:  # noqa: ANN401 - classes of diffusers and one of ours share no type
    """The class that loads a part, by what its `config.json` says. Raises OSError, ValueError."""
    name = json.loads((folder / "config.json").read_text()).get("_class_name")
    return ConvFlowModel if name == ConvFlowModel.__name__ else AutoModel


def load_vae(base: str, precision: Precision = "float32") -> nn.Module:
    """The VAE of a base, frozen. Raises ModelError if it is absent, broken or of an unknown kind."""
    return _load(base, "vae", precision, codec_of)


def load_transformer(base: str, precision: Precision = "float32") -> nn.Module:
    """The transformer of a base, frozen. Raises ModelError as above."""
    return _load(base, "transformer", precision, family_of)


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


def _load(
    base: str, part: Part, precision: Precision, supported: Callable[[nn.Module], object]
) -> nn.Module:
    """One part of a base, frozen, in evaluation mode. Raises ModelError if it is absent or broken.

    `supported` raises ModelError for kinds that are not.
    """
    if precision == "nf4":
        require_bitsandbytes("base_precision is nf4")  # before gigabytes are read
    folder = Path(base) if Path(base).is_dir() else fetch_part(base, part)
    _check_files(folder, part)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    try:
        model = cast(
            nn.Module,
            kind_of(folder / part).from_pretrained(
                str(folder), subfolder=part, torch_dtype=dtype, use_safetensors=True
            ),
        )
    except Exception as error:  # diffusers, hub and safetensors each raise their own
        raise ModelError(
            f"{base}: its {part} cannot be loaded ({one_line(error)}); copy or download it again"
        ) from error
    try:
        supported(model)
    except ModelError as error:
        raise ModelError(f"{base}: {error}") from error
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:  # diffusers only warns of them
        raise ModelError(
            f"{base}: its {part} has no weights for {missing[0]} and {len(missing) - 1} others; copy it again"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not bool(tensor.sum(dtype=torch.float32).isfinite()):  # 60 times faster than one by one
            raise ModelError(
                f"{base}: in its {part}, {name} holds NaN or infinity; copy or train it again"
            )
    if precision == "nf4":
        quantize_blocks(model)
    return model.requires_grad_(False).eval()


def _check_files(folder: Path, part: Part) -> None:
    """Raise ModelError, naming the file, if a local part lacks one or can only be read from a pickle."""
    inside = folder / part
    if not (inside / "config.json").is_file():
        raise ModelError(
            f"{folder}: no {part}/config.json in it; name a folder in diffusers layout"
        )
    for index in inside.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index}: not an index of shards ({error}); copy it again") from error
        missing = sorted(name for name in shards if not (inside / name).is_file())
        if missing:
            raise ModelError(
                f"{inside}: {', '.join(missing)} of {len(shards)} shards missing or renamed; copy it again"
            )
    if any(inside.glob("*.safetensors")):
        return
    refuse_pickles(inside, "save the base with safe_serialization=True")
    raise ModelError(f"{inside}: no .safetensors file in it; copy it again")
