"""What can be compared: interpolation, our models, files of other networks, programs, folders of results."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import spandrel
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from allosr2.errors import ConfigError, ModelError, one_line
from allosr2.imaging.resize import enlarge
from allosr2.model import CONFIG_NAME, model_folder
from allosr2.model_config import EMBEDDED, ModelConfig
from allosr2.upscaler import Upscaler

Enlarge = Callable[[Float[Tensor, "1 3 h w"]], Float[Tensor, "1 3 height width"]]
"""From an LR image in [0, 1] to its enlargement."""

INTERPOLATIONS = ("bicubic", "lanczos")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
# no command begins with a folder: `program --lr={lr}` has no name, nor has `program --scale=4 -i {lr}`
_NAMED = re.compile(r"(?P<name>((?!\s-\S)[^=/{}])+)=(?P<value>[^{].*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """Results that exist."""

    name: str
    """As tables name it."""
    folder: Path
    """Where they lie; names are those of the LR images, whatever the suffix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """Something that enlarges one image after the other, in this process."""

    name: str
    """As tables name it."""
    note: str
    """What it is, in one line; results are made again when it changes."""
    load: Callable[[int, torch.device], Enlarge]
    """Make it ready for a scale on a device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A command line that enlarges a folder of images."""

    name: str
    """As tables name it."""
    command: str
    """With `{lr}` and `{sr}` where the folders of LR images and of results belong."""


Method = Folder | Network | Program


def method_named(text: str) -> Method:
    """What a word of the command line stands for: `NAME=WHAT`, or `WHAT`, which then is its name too.

    WHAT is `bicubic` or `lanczos`; a model folder, `mini`, or a model on the hub; a folder of results; a file
    of a network that spandrel knows (Real-ESRGAN, SwinIR and others); or a command with `{lr}` and `{sr}`.

    Raises:
        ConfigError: for anything else.
        ModelError: for a model that is missing or broken.
    """
    named = _NAMED.fullmatch(text)
    what = named["value"] if named else text
    if "{lr}" in what or "{sr}" in what:
        if not named or "{lr}" not in what or "{sr}" not in what:
            raise ConfigError(
                f"method {text!r}: a command is named and takes both folders, "
                '"NAME=program -i {lr} -o {sr}"'
            )
        try:
            shlex.split(what)
        except ValueError as error:
            raise ConfigError(
                f"method {text!r}: {one_line(error)}; close its quotation marks"
            ) from error
        return Program(name=named["name"], command=what)
    path = Path(what).expanduser()
    name = named["name"] if named else _name_of(what, path)
    if what in INTERPOLATIONS:
        return Network(
            name=name,
            note=f"{what} interpolation, allosr2 {version('allosr2')}",
            load=_interpolation(what),
        )
    if what == EMBEDDED:
        return model_method(name, what)
    if path.is_file():
        return _spandrel(name, path)
    if path.is_dir():
        is_model = (path / CONFIG_NAME).is_file()
        return model_method(name, path) if is_model else Folder(name=name, folder=path)
    if _HUB_ID.fullmatch(what):
        return model_method(name, what)
    hint = "" if named or "=" not in text else "; a name has none of = / { } and no word like -x"
    raise ConfigError(
        f"method {text!r}: {what} is no file or folder; name one, {', '.join(INTERPOLATIONS)}, {EMBEDDED}, a "
        f'model of the hub, or a command, "NAME=program -i {{lr}} -o {{sr}}"{hint}'
    )


def _name_of(what: str, path: Path) -> str:
    if what in INTERPOLATIONS:
        return what
    return path.stem if path.is_file() else path.name or path.resolve().name


def _interpolation(kind: str) -> Callable[[int, torch.device], Enlarge]:
    def bicubic(scale: int, _: torch.device) -> Enlarge:
        return lambda lr: enlarge(lr, scale)

    def lanczos(scale: int, _: torch.device) -> Enlarge:
        def enlarged(lr: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 height width"]:
            height, width = (side * scale for side in lr.shape[-2:])
            # Pillow resamples each band in float, without rounding in between
            bands = [
                np.asarray(
                    Image.fromarray(band, mode="F").resize(
                        (width, height), Image.Resampling.LANCZOS
                    )
                )
                for band in lr[0].numpy()
            ]
            return torch.from_numpy(np.stack(bands))[None].clamp(0, 1)

        return enlarged

    return bicubic if kind == "bicubic" else lanczos


def model_method(name: str, source: str | Path) -> Network:
    """One of our models: a folder, `mini`, or one of the hub. Raises ModelError if it is missing or broken."""
    folder = model_folder(source)
    config = ModelConfig.read(folder)
    sha256 = hashlib.sha256()
    for path in sorted(
        path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors")
    ):
        sha256.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        with path.open("rb") as stream:
            sha256.update(hashlib.file_digest(stream, "sha256").digest())

    def load(scale: int, device: torch.device) -> Enlarge:
        upscaler = Upscaler.from_pretrained(source, device=str(device))
        return lambda lr: upscaler(lr, scale)

    weights = f"t* {config.t_star:.4g}, sha256 {sha256.hexdigest()[:16]}"
    note = f"model {source}, {weights}, allosr2 {version('allosr2')}"
    return Network(name=name, note=note, load=load)


def _spandrel(name: str, path: Path) -> Network:
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()[:16]

    def load(scale: int, device: torch.device) -> Enlarge:
        try:
            network = spandrel.ModelLoader(device).load_from_file(path)
        except Exception as error:  # pickles, archives and state dicts fail in ways of their own
            raise ModelError(
                f"{path}: no network that spandrel knows ({one_line(error)}); name weights as published"
            ) from error
        if not isinstance(network, spandrel.ImageModelDescriptor) or network.input_channels != 3:
            raise ModelError(
                f"{path}: a {network.architecture.name} does not enlarge RGB images; "
                "name another file"
            )
        if network.scale != scale:
            raise ModelError(
                f"{path}: enlarges by {network.scale}, the images are of scale {scale}; name another file"
            )
        network.eval()

        def enlarged(lr: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 height width"]:
            with torch.inference_mode():
                return network(lr.to(device)).float().clamp(0, 1).cpu()

        return enlarged

    return Network(
        name=name, note=f"{path.name}, sha256 {sha256}, spandrel {version('spandrel')}", load=load
    )
