"""AlloSR2: a codec, a velocity field and the time t* at which LR latents enter the flow."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass, field
from importlib import resources
from math import isfinite
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from allosr2.backbones.base import codec_of, load_transformer, load_vae, velocity_of
from allosr2.backbones.codec import Codec
from allosr2.backbones.hub import fetch, reach, upload
from allosr2.backbones.lora import FILE_NAME as ADAPTERS_NAME
from allosr2.backbones.lora import adapter_totals, load_adapters, merge_adapters, save_adapters
from allosr2.backbones.velocity import Conditioning, VelocityField
from allosr2.card import model_card
from allosr2.errors import ConfigError, ModelError
from allosr2.flow import clean_prediction
from allosr2.licenses import OWN, license_of
from allosr2.storage import save_tensors, save_text

FORMAT_VERSION = 1
CONFIG_NAME = "allosr2.json"
CONDITIONING_NAME = "conditioning.safetensors"
CARD_NAME = "README.md"
EMBEDDED = "mini"
"""Name of the model that the package carries."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What `allosr2.json` says of a model."""

    base: str
    """Base in diffusers layout: a folder inside the model's, an absolute path, or a hub id."""
    origin: str = ""
    """What the base is, wherever it lies: a hub id, or a folder's name; its license holds."""
    t_star: float
    """Time at which LR latents enter the flow (Eq. 6)."""
    scale: int
    """Upscaling factor."""
    preset: str
    """Degradation preset that it was trained with."""
    prompt_length: int
    """Text tokens of the constant prompt."""
    guidance: float | None = None
    """Guidance given to a guidance-distilled base."""
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])
    """How it was trained: recipe, data, steps, versions."""
    metrics: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What was measured: `dataset`, `metric`, `value`, and `by`, the program and version that measured it."""
    format_version: int = FORMAT_VERSION
    """Version of this layout."""

    def __post_init__(self) -> None:
        if not isinstance(self.base, str):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON
            raise ModelError(f"base is {self.base}; it must be a folder or a hub id")
        if not PurePath(self.base).parts or ".." in PurePath(self.base).parts:
            raise ModelError(
                f"base is {self.base!r}; it must be a folder's name, an absolute path or a hub id"
            )
        if not isinstance(self.scale, int):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON
            raise ModelError(f"scale is {self.scale}; it must be a whole number")
        if not isinstance(self.guidance, int | float | None) or not isfinite(self.guidance or 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError(f"guidance is {self.guidance!r}; it must be a number or null")
        if not (isinstance(self.origin, str) and isinstance(self.preset, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError(f"origin and preset are {self.origin!r}, {self.preset!r}; write names")
        if not isinstance(self.provenance, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError(f"provenance is {self.provenance!r}; it must be an object")
        if not all(_is_metric(metric) for metric in self.metrics):
            raise ModelError("metrics must each have dataset, metric, value (a number) and by")
        if not 0 < self.t_star < 1:
            raise ModelError(f"t_star is {self.t_star}; it must lie in (0, 1)")
        if self.scale < 1:
            raise ModelError(f"scale is {self.scale}; it must be 1 or more")

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Read a model folder's `allosr2.json`. Raises ModelError, saying what is wrong with it."""
        path = folder / CONFIG_NAME
        if not path.is_file():
            raise ModelError(
                f"{folder}: no {CONFIG_NAME} in it; name a model folder, or {EMBEDDED}"
            )
        try:
            fields = json.loads(path.read_text())
            version = fields["format_version"]
            if version != FORMAT_VERSION:  # asked first: another version may have other fields
                raise ModelError(
                    f"format_version is {version}, this version reads {FORMAT_VERSION}; "
                    "upgrade allosr2 or export the model again"
                )
            return cls(**fields)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path}: not a model's config ({error}); export the model again"
            ) from error


class AlloSR2(nn.Module):
    """One-step super-resolution in latent space.

    `codec` maps images in [0, 1] to latents and back; `velocity` is the flow; both carry LoRA until merged.
    """

    def __init__(self, codec: Codec, velocity: VelocityField, config: ModelConfig) -> None:
        super().__init__()
        self.codec = codec
        self.velocity = velocity
        self.config = config
        self.folder: Path | None = None
        """Where the model was loaded from; a base that lies inside it goes along when it is saved."""

    @property
    def multiple(self) -> int:
        """Sides of an image must be multiples of this many pixels."""
        return self.codec.factor * self.velocity.patch

    def one_step(self, z_lr: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """`z_sr = z_lr - t* v(z_lr, t*)`: one Euler step from t* to data (arXiv:2604.19238, Eq. 7)."""
        t_star = z_lr.new_full((z_lr.shape[0],), self.config.t_star)
        return clean_prediction(z_lr, self.velocity(z_lr, t_star), t_star)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Restore images that were enlarged already; sides are multiples of `multiple`, values in [0, 1]."""
        return self.codec.decode(self.one_step(self.codec.encode(image)))

    def merge(self) -> AlloSR2:
        """Merge the adapters into the weights, for inference."""
        merge_adapters(self.codec.vae)
        merge_adapters(self.velocity.transformer)
        return self

    @classmethod
    def from_pretrained(
        cls, source: str | Path, precision: Literal["float32", "bfloat16"] = "float32"
    ) -> AlloSR2:
        """Load a model: a folder with `allosr2.json`, the embedded "mini", or "user/model" on the hub.

        A revision of the hub's goes behind an @. Weights are frozen and on the CPU. Raises ModelError, saying
        what is missing or broken.
        """
        if precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {precision}: use float32 or bfloat16")
        folder = model_folder(source).resolve()
        config = ModelConfig.read(folder)
        base = base_of(folder, config)
        conditioning = load_conditioning(folder / CONDITIONING_NAME)
        adapter_totals(folder)  # what is small is read first: a base may take minutes
        if conditioning.prompt.shape[0] != config.prompt_length:
            raise ModelError(
                f"{folder / CONDITIONING_NAME}: it has {conditioning.prompt.shape[0]} text tokens, "
                f"{CONFIG_NAME} says {config.prompt_length}; export the model again"
            )
        vae, transformer = load_vae(base, precision), load_transformer(base, precision)
        load_adapters(folder, vae=vae, transformer=transformer)
        codec = codec_of(vae)
        try:
            velocity = velocity_of(transformer, conditioning, config.guidance)
            velocity.check_channels(codec.channels)
        except ModelError as error:
            raise ModelError(f"{folder}: {error}") from error
        model = cls(codec, velocity, config)
        model.folder = folder
        return model.to(getattr(torch, precision)).requires_grad_(False).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, adapters (in bfloat16), encoded prompt and a model card.

        A base inside the folder that the model was loaded from goes along; one that is to lie inside for the
        first time is written beside them by whoever made it.
        """
        folder, settings = Path(folder), dataclasses.asdict(self.config)
        card = model_card(settings)  # before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        save_adapters(folder, vae=self.codec.vae, transformer=self.velocity.transformer)
        save_tensors(folder / CONDITIONING_NAME, self.velocity.conditioning.tensors())
        save_text(folder / CONFIG_NAME, json.dumps(settings, indent=2) + "\n")
        save_text(folder / CARD_NAME, card)
        if self.folder is not None and (self.folder / self.config.base).is_dir():
            copy_base(self.folder / self.config.base, folder, self.config.base)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Send the model to "user/model" on the Hugging Face Hub; returns its address.

        Raises ModelError if its base lies on this machine alone, and if the hub refuses.
        """
        if Path(self.config.base).is_absolute():
            raise ModelError(
                f"base is {self.config.base}, which nobody else has; train on a hub id, or with --embed-base"
            )
        with TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder))
            return upload(Path(folder), repository, private=private)


def model_folder(source: str | Path) -> Path:
    """The folder of a model given by path, by the embedded one's name or by hub id. Raises ModelError.

    The string "mini" is always the name; a folder that is called so is `Path("mini")` or "./mini".
    """
    if source == EMBEDDED:
        return Path(str(resources.files("allosr2") / EMBEDDED))
    folder = Path(source)
    if folder.is_dir():
        return folder
    if isinstance(source, str) and _HUB_ID.fullmatch(source):
        repository, _, revision = source.partition("@")
        return _fetch_model(repository, revision or None)
    raise ModelError(
        f"{source}: no such model; name a folder with {CONFIG_NAME}, a hub id such as user/model, or {EMBEDDED}"
    )


def _fetch_model(repository: str, revision: str | None) -> Path:
    """A model of the hub as a folder, with no file that is not one of a model's."""
    config = reach(repository, CONFIG_NAME, revision)  # a base has none, and is not downloaded
    base = ModelConfig.read(config.parent).base
    own = [] if "/" in base else [f"{base}/{part}/*" for part in ("transformer", "vae")]
    files = [CONFIG_NAME, CONDITIONING_NAME, ADAPTERS_NAME, CARD_NAME, *own]
    return fetch(repository, files, revision)


def base_of(folder: Path, config: ModelConfig) -> str:
    """The base of a model folder: a folder inside it, an absolute path or a hub id. Raises ModelError."""
    inside = folder / config.base
    if inside.is_dir():
        return str(inside)
    if "/" not in config.base:
        raise ModelError(
            f"{inside} is missing: the model's base lies there; copy the whole folder again"
        )
    return config.base


def load_frozen_codec(source: str | Path) -> Codec:
    """The codec of a model's base, without adapters: the fixed encoder of Eq. 6. Raises ModelError."""
    folder = model_folder(source)
    return codec_of(load_vae(base_of(folder, ModelConfig.read(folder))))


def load_conditioning(path: Path) -> Conditioning:
    """Read an encoded prompt. Raises ModelError if the file is absent or broken."""
    try:
        tensors = load_file(path)
        prompt, pooled = tensors["prompt"].float(), tensors["pooled"].float()
        if (prompt.ndim, pooled.ndim) != (2, 1):
            raise ValueError(f"shapes {tuple(prompt.shape)} and {tuple(pooled.shape)}")
        for name, values in (("prompt", prompt), ("pooled", pooled)):
            if not bool(values.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinity")
        return Conditioning(prompt=prompt, pooled=pooled)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: no encoded prompt can be read ({error}); copy it again"
        ) from error


def copy_base(base: Path, folder: Path, name: str = "base") -> None:
    """Copy a small base's transformer and VAE into a model folder, under the name of its `base`."""
    target = folder / name
    if base.resolve() == target.resolve():
        return
    for part in ("transformer", "vae"):
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(base / part, target / part)


def origin_of(base: str) -> str:
    """What a base is, for whoever has it elsewhere: a hub id as it is, a folder by a name."""
    folder = Path(base)
    if not folder.is_dir():
        return base
    if folder.resolve().is_relative_to(model_folder(EMBEDDED).resolve()):
        return OWN
    for part in reversed(
        (*folder.resolve().parts, *folder.absolute().parts)
    ):  # links too say what it is
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
        if license_of(part) is not None:
            return part
    return folder.resolve().name


def _is_metric(metric: object) -> bool:
    return (
        isinstance(metric, dict)
        and {"dataset", "metric", "value", "by"} <= metric.keys()
        and isinstance(metric["value"], int | float)
        and all(isinstance(metric[name], str) for name in ("dataset", "metric", "by"))
    )
