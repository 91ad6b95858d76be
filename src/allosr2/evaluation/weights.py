"""The files that metrics are computed with: where they lie, whether they are there, and what they are."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import torch
from huggingface_hub import constants, try_to_load_from_cache

_VIT = ("timm/vit_base_patch8_224.augreg2_in21k_ft_in1k", "model.safetensors")
"""What timm builds MANIQA's transformer from, in the hub's own cache."""

_FILES = {
    "lpips": ("checkpoints/alexnet-owt-7be5be79.pth", "pyiqa/LPIPS_v0.1_alex-df73285e.pth"),
    "dists": ("checkpoints/vgg16-397923af.pth", "pyiqa/DISTS_weights-f5e65c96.pth"),
    "fid": ("pyiqa/pt_inception-2015-12-05-6726825d.pth",),
    "niqe": ("pyiqa/niqe_modelparameters.mat",),
    "musiq": ("pyiqa/musiq_koniq_ckpt-e95806b9.pth",),
    "maniqa": ("pyiqa/MANIQA_PIPAL-ae6d356b.pth",),
    "clipiqa": ("clip/RN50.pt",),
}
"""Files that pyiqa 0.1.16 asks for, in PyTorch's cache (`torch.hub.get_dir()`)."""

_CLIP = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
"""SHA-256 of CLIP's file as published. Of any other pyiqa would fetch it again, over the one that is there."""

_PATIENCE = 20.0
"""Seconds that a download may stand still."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where the weights of metrics come from."""

    folder: Path | None = None
    """Laid out as PyTorch's cache, with `checkpoints/`, `pyiqa/` and `clip/`; None is that cache itself."""
    niqe: Path | None = None
    """NIQE's pristine model: `.mat` as published, or `.npz` with mu_pris_param and cov_pris_param."""
    perceptual: Path | None = None
    """LPIPS on SqueezeNet 1.1, safetensors, as for training."""
    offline: bool = False
    """Fetch nothing: what is absent is skipped."""

    @property
    def place(self) -> Path:
        """The folder that pyiqa looks into and fetches into."""
        return self.folder or Path(torch.hub.get_dir())

    def files(self, metric: str) -> tuple[Path, ...]:
        """The files of a metric, whether they are there or not; none for one that needs none."""
        if metric == "niqe" and self.niqe is not None:
            return (self.niqe,)
        if metric == "lpips-squeeze":
            return () if self.perceptual is None else (self.perceptual,)
        files = tuple(self.place / name for name in _FILES.get(metric, ()))
        if metric == "maniqa":
            cached = try_to_load_from_cache(*_VIT)
            missing = Path(constants.HF_HUB_CACHE, *_VIT)
            return (*files, Path(cached) if isinstance(cached, str) else missing)
        return files

    def missing(self, metric: str) -> list[Path]:
        """Those files of a metric that are not there, or not what they should be."""
        absent = [path for path in self.files(metric) if not path.is_file()]
        if metric == "clipiqa" and not absent and self.hashes(metric)["RN50.pt"] != _CLIP:
            return list(self.files(metric))
        return absent

    def name_of(self, file: Path) -> str:
        """A file's name within `place`, or as it is where it lies elsewhere."""
        return str(file.relative_to(self.place) if file.is_relative_to(self.place) else file)

    def hashes(self, metric: str) -> dict[str, str]:
        """SHA-256 of each file of a metric by its name; all of them must be there."""
        return {path.name: _sha256(path) for path in self.files(metric)}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return file_digest(stream, "sha256").hexdigest()


@contextmanager
def loading_from(weights: Weights) -> Generator[None]:
    """Lead PyTorch and pyiqa to the folder, keep them quiet, and let no pickle run code.

    Pickles are read as tensors alone (`weights_only`), whatever the library asks for. CLIP's file is
    TorchScript, which pyiqa takes only with the published SHA-256.
    """
    from pyiqa.utils import download_util

    former_place, former_patience = torch.hub.get_dir(), socket.getdefaulttimeout()
    former_cache = download_util.DEFAULT_CACHE_DIR
    former_offline = constants.HF_HUB_OFFLINE
    former_force = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    torch.hub.set_dir(str(weights.place))
    download_util.DEFAULT_CACHE_DIR = str(weights.place / "pyiqa")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    constants.HF_HUB_OFFLINE = weights.offline or former_offline
    socket.setdefaulttimeout(_PATIENCE)
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        torch.hub.set_dir(former_place)
        download_util.DEFAULT_CACHE_DIR = former_cache
        constants.HF_HUB_OFFLINE = former_offline
        socket.setdefaulttimeout(former_patience)
        if former_force is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = former_force
