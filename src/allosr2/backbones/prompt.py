"""The constant prompt: what a base's own text encoders make of no text, computed once."""

from __future__ import annotations

import inspect
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast, get_args

import torch
import transformers
from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from torch import Tensor

from allosr2.backbones.hub import announce, fetch, reach
from allosr2.backbones.velocity import Conditioning
from allosr2.errors import ConfigError, ModelError, one_line
from allosr2.storage import refuse_pickles

LONGEST = 512
"""The most text tokens that any of these bases was trained with; their pipelines refuse more."""

_INDEX = "model_index.json"
_SETTINGS = "transformer/config.json"
_Pipeline = (
    FluxPipeline | Flux2KleinPipeline | Flux2Pipeline | StableDiffusion3Pipeline | ZImagePipeline
)
_PIPELINES: dict[str, type[_Pipeline]] = {kind.__name__: kind for kind in get_args(_Pipeline)}
_NEEDS_NONE = "a base without any, such as mini's, needs no prompt: train with no --conditioning"
_AGAIN = "copy or download it again"


def encode_prompt(base: str, tokens: int | None = None) -> Conditioning:
    """The empty prompt as the base's own pipeline in diffusers encodes it, on the CPU, in bfloat16.

    bfloat16 is what these pipelines run in, so that the transformer is given what it is used to; twice the
    memory (T5 alone: 19 GB) would buy digits that it never saw. Transformer and VAE are neither fetched nor
    read.

    Args:
        base: a folder in diffusers layout or a hub id.
        tokens: length that the text is padded to, from 1 to 512; None is the base's own. Stable Diffusion 3
            puts CLIP's 77 tokens before it, Z-Image keeps no padding.

    Raises:
        ConfigError: for another length.
        ModelError: for a base that cannot be reached, is of an unknown kind, has no text encoders, or has
            some that are broken.
    """
    if tokens is not None and not 1 <= tokens <= LONGEST:
        raise ConfigError(f"tokens is {tokens}: use 1 to {LONGEST}")
    folder = Path(base)
    is_local = folder.is_dir()
    if is_local and not (folder / _INDEX).is_file():
        raise ModelError(f"{base}: no {_INDEX} in it that names text encoders; {_NEEDS_NONE}")
    index = _read_json(folder / _INDEX if is_local else reach(base, _INDEX))
    kind = _pipeline_class(base, index)
    parts = _text_parts(base, kind, index)
    if not is_local:
        encoders = [name for name in parts if name.startswith("text_encoder")]
        files = ("model.safetensors", "model.safetensors.index.json")
        announce(base, [f"{name}/{file}" for name in encoders for file in files])
        folder = fetch(base, _patterns(parts))
    pipeline = _build(base, folder, kind, parts)
    if tokens is None and kind is FluxPipeline and _is_schnell(folder):
        tokens = 256  # what it was distilled with; its pipeline class is FLUX.1-dev's
    try:
        with torch.no_grad():
            prompt, pooled = _encode_nothing(pipeline, tokens)
    except Exception as error:  # parts that do not fit together fail in many ways
        raise ModelError(
            f"{base}: its text encoders cannot encode the empty prompt ({one_line(error)}); {_AGAIN}"
        ) from error
    if not bool(prompt.isfinite().all() and pooled.isfinite().all()):
        raise ModelError(f"{base}: its text encoders give NaN or infinity; {_AGAIN}")
    return Conditioning(prompt=prompt, pooled=pooled)


def _encode_nothing(pipeline: _Pipeline, tokens: int | None) -> tuple[Tensor, Tensor]:
    """Text tokens `l d` and pooled embedding of an empty prompt; the latter is empty where there is none."""
    length: dict[str, Any] = {} if tokens is None else {"max_sequence_length": tokens}
    prompt: Any  # a batch, or with Z-Image a list
    pooled: Any = None
    match pipeline:
        case FluxPipeline():
            prompt, pooled, _ = pipeline.encode_prompt("", **length)
        case StableDiffusion3Pipeline():
            prompt, _, pooled, _ = pipeline.encode_prompt(
                "", "", "", do_classifier_free_guidance=False, **length
            )
        case ZImagePipeline():
            prompt, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False, **length)
        case Flux2KleinPipeline() | Flux2Pipeline():
            prompt, _ = pipeline.encode_prompt("", **length)
    return prompt[0], prompt[0].new_zeros(0) if pooled is None else pooled[0]


def _pipeline_class(base: str, index: dict[str, Any]) -> type[_Pipeline]:
    name = str(index.get("_class_name"))
    if name not in _PIPELINES:
        raise ModelError(
            f"{base}: a base of kind {name} is not supported; use one of {', '.join(_PIPELINES)}"
        )
    return _PIPELINES[name]


def _text_parts(base: str, kind: type[_Pipeline], index: dict[str, Any]) -> dict[str, str]:
    """Folder and class of every text encoder and tokenizer that a pipeline takes."""
    names = [
        name
        for name in inspect.signature(kind).parameters
        if name.startswith(("text_encoder", "tokenizer"))
    ]
    classes: dict[str, str] = {}
    for name in names:
        match index.get(name):
            case ["transformers", str(class_name)]:
                classes[name] = class_name
            case None | [None, *_]:
                pass
            case entry:
                raise ModelError(
                    f"{base}: its {name} is {entry}, which is not of transformers; "
                    "use the base as its owner published it"
                )
    if not classes:
        raise ModelError(f"{base}: its {_INDEX} names no text encoders; {_NEEDS_NONE}")
    absent = [name for name in names if name not in classes]
    if absent:
        raise ModelError(
            f"{base}: its {_INDEX} names no {' and no '.join(absent)}, which its prompt needs; "
            "use the base as its owner published it"
        )
    return classes


def _patterns(parts: dict[str, str]) -> list[str]:
    """The files of a repository that text takes: whole tokenizers, encoders in their main precision only."""
    patterns = [_INDEX, _SETTINGS]
    for name in parts:
        if name.startswith("tokenizer"):
            patterns.append(f"{name}/*")
        else:  # model.fp16.safetensors and its like would be downloaded for nothing
            files = ("*.json", "model.safetensors", "model-*-of-*.safetensors")
            patterns += [f"{name}/{file}" for file in files]
    return patterns


def _build(base: str, folder: Path, kind: type[_Pipeline], parts: dict[str, str]) -> _Pipeline:
    """The pipeline with text parts alone; nothing takes the place of what else it takes.

    The parts are loaded one by one and not by the pipeline, which neither says which one is broken nor
    that one has no weights: transformers then makes up random ones, and a vocabulary likewise.
    """
    components: dict[str, Any] = {
        name: None
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    for name, class_name in parts.items():
        components[name] = _load_part(base, folder / name, class_name)
    return kind(**components)


def _load_part(base: str, folder: Path, class_name: str) -> object:
    """One text encoder or tokenizer. Raises ModelError if it is absent or broken."""
    if not folder.is_dir():
        raise ModelError(f"{base}: no {folder.name} in it, which its prompt needs; {_AGAIN}")
    is_tokenizer = folder.name.startswith("tokenizer")
    if is_tokenizer:
        _check_vocabulary(base, folder)
    elif not any(folder.glob("*.safetensors")):
        refuse_pickles(folder, "save the base with safe_serialization=True")
    try:
        kind = getattr(transformers, class_name)
        if is_tokenizer:
            return kind.from_pretrained(folder, local_files_only=True)
        encoder, report = kind.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except ImportError as error:
        raise ModelError(
            f"{base}: its {folder.name} needs a package that is not here ({one_line(error)}); install it"
        ) from error
    except Exception as error:  # transformers, tokenizers and safetensors each raise their own
        raise ModelError(
            f"{base}: its {folder.name} cannot be loaded ({one_line(error)}); {_AGAIN}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{base}: its {folder.name} has no weights for {missing[0]} and {len(missing) - 1} others; {_AGAIN}"
        )
    return encoder


def _check_vocabulary(base: str, folder: Path) -> None:
    """Raise ModelError if a tokenizer's vocabulary is absent or needs a package that is."""
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names:
        return
    if not names & {"spiece.model", "tokenizer.model"}:
        raise ModelError(f"{base}: its {folder.name} has no vocabulary; {_AGAIN}")
    if find_spec("sentencepiece") is None:
        raise ModelError(
            f"{base}: its {folder.name} has no tokenizer.json, and what it has is read by packages that are "
            "not here; pip install sentencepiece protobuf"
        )


def _is_schnell(folder: Path) -> bool:
    path = folder / _SETTINGS
    return path.is_file() and _read_json(path).get("guidance_embeds") is False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__} and no names")
        return cast(dict[str, Any], content)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: it cannot be read ({one_line(error)}); {_AGAIN}") from error
