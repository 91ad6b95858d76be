"""AlloSR2: a codec, a velocity field and the time t* at which LR latents enter the flow."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

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
from allosr2.model_config import CONFIG_NAME, EMBEDDED, ModelConfig
from allosr2.storage import save_tensors, save_text

CONDITIONING_NAME = "conditioning.safetensors"
CARD_NAME = "README.md"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")


class AlloSR2(nn.Module):
    """One-step super-resolution in latent space.

    `codec` maps images in [0, 1] to latents and back; `velocity` is the flow; both carry LoRA until merged.
    """

    def __init__(self, codec: Codec, velocity: VelocityField, config: ModelConfig) -> None:
        super().__init__()
        self.codec = codec
        self.velocity = velocity
        self.config = config
        self.step = 1.0
        """How much of the step from t* to the data is taken; below 1 if `merge` was given a fidelity."""
        self.folder: Path | None = None
        """Where the model was loaded from; a base that lies inside it goes along when it is saved."""

    @property
    def multiple(self) -> int:
        """Sides of an image must be multiples of this many pixels."""
        return self.codec.factor * self.velocity.patch

    def one_step(self, z_lr: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """`z_sr = z_lr - t* v(z_lr, t*)`: one Euler step from t* to data (arXiv:2604.19238, Eq. 7)."""
        t_star = z_lr.new_full((z_lr.shape[0],), self.config.t_star)
        return clean_prediction(z_lr, self.velocity(z_lr, t_star), self.step * t_star)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Restore images that were enlarged already; sides are multiples of `multiple`, values in [0, 1]."""
        return self.codec.decode(self.one_step(self.codec.encode(image)))

    def merge(self, fidelity: float = 0.0) -> AlloSR2:
        """Merge the adapters into the weights, for inference.

        `fidelity` 0 is the model as it was trained. Up to 1, the two ways in which it moves the LR latents, by
        the encoder's adapters and by the step, are scaled by 1 - fidelity; at 1 an image passes through the
        base's codec and nothing else. The transformer's adapters stay whole: half of them is not half of a
        velocity, and gave worse results than either end. Not of the paper; PiSA-SR (arXiv:2412.03017) scales
        two adapters at inference to this end. Raises ConfigError out of [0, 1].
        """
        if not 0 <= fidelity <= 1:
            raise ConfigError(f"fidelity is {fidelity}: use a number from 0 to 1")
        self.step = 1 - fidelity
        merge_adapters(self.codec.vae, self.step)
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


def named_base(base: str) -> str:
    """A base as it can be loaded: the embedded model's own by its name, all others as they are."""
    return str(model_folder(EMBEDDED) / "base") if base == EMBEDDED else base


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
