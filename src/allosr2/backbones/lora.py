"""LoRA on a VAE's encoder and a flow transformer, stored as diffusers stores it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from allosr2.backbones.composed import ComposedConv2d
from allosr2.errors import ConfigError, ModelError
from allosr2.storage import refuse_pickles, save_tensors

ADAPTER = "default"
"""PEFT's name of the one adapter that a model carries."""
FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for."""

_METADATA_KEY = "lora_adapter_metadata"
"""Where diffusers keeps rank and alpha inside the file."""
_BASE_KEY = "allosr2_base"
"""Where the kind and size of each part's base are kept, so that another base is noticed."""


Init = Literal["gaussian", "kaiming"]
"""How A is drawn; B starts at zero, so that an adapter starts without effect."""


def target_names(module: nn.Module, targets: str) -> list[str]:
    """Full names of the linear and convolution layers that match a regular expression.

    Raises ConfigError if there is none, or the expression is none.
    """
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(
            f"targets is {targets!r}: not a regular expression ({error}); correct it"
        ) from error
    names = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and pattern.fullmatch(name)
    ]
    if not names:
        raise ConfigError(
            f"targets is {targets!r}: no layer of {type(module).__name__} has such a name; "
            "match full names of linear or convolution layers"
        )
    return names


def add_adapter(
    module: nn.Module,
    targets: str | Sequence[str],
    *,
    rank: int,
    alpha: int,
    init: Init = "gaussian",
) -> None:
    """Put a fresh adapter, in float32 and without effect yet, on a transformer or a VAE; it alone is trainable.

    `targets` is a regular expression of full names, or a list of them. Raises ConfigError as `target_names`.
    """
    names = target_names(module, targets) if isinstance(targets, str) else list(targets)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        # as an expression of whole names: PEFT takes those of a list as the ends of names
        target_modules="|".join(map(re.escape, names)),
        init_lora_weights="gaussian" if init == "gaussian" else True,
    )
    config._register_custom_module({nn.Conv2d: ComposedConv2d})  # pyright: ignore[reportPrivateUsage] - PEFT's way
    module.requires_grad_(False)
    inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    module.peft_config = {ADAPTER: config}  # pyright: ignore[reportArgumentType] - PEFT reads it back
    for parameter in module.parameters():
        if parameter.requires_grad:  # small steps are lost in a base's bfloat16
            parameter.data = parameter.data.float()


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


def merge_adapters(module: nn.Module, scale: float = 1.0) -> None:
    """Add the adapters, times `scale`, into the weights they sit on: nothing is left to compute.

    What was merged before is taken out first, up to rounding.
    """
    for layer in _adapter_layers(module):
        if layer.merged:
            layer.unmerge()
        layer.set_scale(ADAPTER, scale)  # pyright: ignore[reportAttributeAccessIssue] - every LoRA layer has it
        layer.merge()


def save_adapters(folder: Path, **parts: nn.Module) -> None:
    """Write the adapters of parts (`vae=...`, `transformer=...`) to one file for diffusers, in bfloat16.

    Parts without any are left out.

    What was loaded is written again bit by bit; what was trained in float32 is rounded once.
    """
    tensors: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for part, module in parts.items():
        config: LoraConfig | None = getattr(module, "peft_config", {}).get(ADAPTER)
        if config is None:
            continue
        state: dict[str, Tensor] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
        tensors |= {f"{part}.{k}": v.to(torch.bfloat16) for k, v in state.items()}
        settings |= {
            f"{part}.r": config.r,
            f"{part}.lora_alpha": config.lora_alpha,
            f"{part}.target_modules": sorted({key.partition(".lora_")[0] for key in state}),
        }
    metadata = {
        "format": "pt",
        _METADATA_KEY: json.dumps(settings, sort_keys=True),
        _BASE_KEY: json.dumps({part: _base(module) for part, module in parts.items()}),
    }
    save_tensors(folder / FILE_NAME, tensors, metadata)


def load_adapters(folder: Path, **parts: nn.Module) -> None:
    """Put the adapters of a folder on parts (`vae=...`, `transformer=...`), frozen.

    A part of which the file says nothing gets none. Raises ModelError if the file is absent or broken, of
    another layout, or was made for another base.
    """
    path = folder / FILE_NAME
    with _opened(folder) as file:
        metadata = file.metadata() or {}
        settings = _json_object(metadata.get(_METADATA_KEY))
        bases = _json_object(metadata.get(_BASE_KEY))  # absent where diffusers saved the file
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    _refuse_other_layouts(path, tensors)
    if not any(key.startswith(tuple(parts)) for key in tensors):
        raise ModelError(f"{path}: no adapters of {' or '.join(parts)} in it; save it again")
    for part, module in parts.items():
        prefix = f"{part}."
        state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if not state and f"{prefix}r" not in settings:
            module.requires_grad_(False)
            continue
        rank, alpha = settings.get(f"{prefix}r"), settings.get(f"{prefix}lora_alpha")
        if not (
            isinstance(rank, int)
            and isinstance(alpha, int | float)
            and alpha == int(alpha)
            and state
        ):
            raise ModelError(f"{path}: no rank and alpha for the {part} in it; save it again")
        other_ranks = {v.shape[0] for k, v in state.items() if v.ndim and ".lora_A." in k} - {rank}
        if other_ranks:
            raise ModelError(
                f"{path}: its {part} adapters are of rank {min(other_ranks)}, its metadata says {rank}; "
                "save it again"
            )
        targets = sorted({key.partition(".lora_")[0] for key in state})
        layers = dict(module.named_modules())
        if bases.get(part, _base(module)) == _base(module) and all(
            isinstance(layers.get(name), nn.Linear | nn.Conv2d) for name in targets
        ):
            add_adapter(module, targets, rank=rank, alpha=int(alpha))
            expected = get_peft_model_state_dict(module, adapter_name=ADAPTER)
        else:
            expected = {}
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


def adapter_totals(folder: Path) -> tuple[int, list[int]]:
    """Parameters of a folder's adapters and their ranks, from the file's header. Raises ModelError."""
    with _opened(folder) as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    ranks = {shape[0] for key, shape in shapes.items() if shape and ".lora_A." in key}
    return sum(math.prod(shape) for shape in shapes.values()), sorted(ranks)


@contextmanager
def _opened(folder: Path) -> Generator[Any]:
    """A folder's file of adapters. Raises ModelError if it is absent or broken."""
    path = folder / FILE_NAME
    if not path.is_file():
        refuse_pickles(folder, f"save the adapters as {FILE_NAME}")
        if (folder / "adapter_model.safetensors").is_file():
            raise ModelError(f"{folder}: its adapters are in PEFT's own layout; {_CONVERT}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(
            f"{path}: the adapters cannot be read ({error}); copy them again"
        ) from error


def _base(module: nn.Module) -> str:
    """Kind and size of a part without its adapters, the same in every precision that it may be held in."""
    weights = sum(
        layer.in_features * layer.out_features
        if isinstance(layer, nn.Linear)
        else layer.weight.numel()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in name
    )
    return f"{type(module).__name__} {weights}"


_OURS = re.compile(r"(transformer|vae)\..+\.lora_[AB]\.weight")
_CONVERT = (
    "convert the file with diffusers: pipeline.load_lora_weights (of PEFT's own files "
    'transformer.load_lora_adapter with prefix="base_model.model"), then save_lora_weights with '
    "transformer_lora_adapter_metadata"
)


def _refuse_other_layouts(path: Path, keys: Iterable[str]) -> None:
    """Raise ModelError, naming the converter, for keys as kohya's trainers, PEFT itself and others write."""
    for key in keys:
        if _OURS.fullmatch(key):
            continue
        if key.startswith(("lora_unet_", "lora_te", "lora_transformer_")) or ".lora_down." in key:
            layout = "kohya's layout"
        elif key.startswith("base_model.model."):
            layout = "PEFT's own layout"
        elif key.startswith("text_encoder"):
            raise ModelError(
                f"{path}: keys such as {key} adapt a text encoder, which is not used here; leave them out"
            )
        else:
            layout = "another layout than diffusers'"
        raise ModelError(f"{path}: keys such as {key} are in {layout}; {_CONVERT}")


def _json_object(text: str | None) -> dict[str, Any]:
    value = json.loads(text or "{}")
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def unfreeze_adapters(module: nn.Module) -> None:
    """Make a part's adapters, and nothing else of it, trainable."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def adapter_size(module: nn.Module) -> tuple[int, int]:
    """Rank and alpha of the adapter that a part carries; zeros if there is none."""
    config: LoraConfig | None = getattr(module, "peft_config", {}).get(ADAPTER)
    return (config.r, config.lora_alpha) if config else (0, 0)
