"""Metrics ready to be computed: functions of an SR image and what it is compared with, and by what."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import pyiqa
import scipy.io
import torch
from einops import reduce
from jaxtyping import Float
from PIL import Image as PILImage
from PIL.ExifTags import Base
from torch import Tensor

from allosr2.devices import is_out_of_memory
from allosr2.errors import AlloSR2Error, ConfigError, DataError, ModelError, one_line
from allosr2.evaluation.metrics import METRICS, Metric
from allosr2.evaluation.weights import Weights, loading_from
from allosr2.imaging.io import read_rgb, write_image
from allosr2.imaging.picture import Picture
from allosr2.imaging.quality import periodicity, sharpness
from allosr2.losses.perceptual import LPIPS

Image = Float[Tensor, "1 3 h w"]
"""RGB in [0, 1] of 8-bit levels."""

OfImage = Callable[[Image, Image | None], float]
OfSet = Callable[[Sequence[Path], Sequence[Path]], float]
Network = Callable[..., Any]
"""What pyiqa makes of a metric's name."""

_PYIQA: dict[str, tuple[str, dict[str, Any]]] = {
    "psnr": ("psnr", {"test_y_channel": True, "color_space": "ycbcr"}),
    "ssim": ("ssim", {"test_y_channel": True, "color_space": "ycbcr"}),
    "lpips": ("lpips", {}),
    "dists": ("dists", {}),
    "fid": ("fid", {}),
    "niqe": ("niqe", {}),
    "musiq": ("musiq", {}),
    "maniqa": ("maniqa-pipal", {}),
    "clipiqa": ("clipiqa", {}),
}
"""pyiqa's name and options of each of the paper's metrics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scorer:
    """A metric that can be computed."""

    metric: Metric
    by: str
    """What computes it: a library and its version."""
    device: str = "cpu"
    """Where: `cpu` or `cuda`."""
    weights: Mapping[str, str] = field(default_factory=dict[str, str])
    """SHA-256 of each file that it is computed with, by name."""
    of_image: OfImage | None = None
    """From an image and the one of its metric's `against`; may be called from several threads. None for a
    metric of a set."""
    of_set: OfSet | None = None
    """From the files of all SR and of all HR images."""


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError for a metric that does not exist, naming the nearest that do."""
    for name in names:
        if name not in METRICS:
            near = get_close_matches(name.lower(), METRICS, n=3, cutoff=0.4)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ConfigError(f"metric {name} is unknown: {hint}There are {', '.join(METRICS)}")


def load_scorers(
    names: Sequence[str], weights: Weights, device: torch.device
) -> tuple[list[Scorer], dict[str, str]]:
    """Make metrics ready; returns them, and why each of the others is skipped.

    A metric whose weights are absent and cannot be fetched is skipped.

    Raises:
        ConfigError: for a name that is unknown.
        ModelError: for a file of weights that was named and cannot be used.
    """
    check_names(names)
    scorers: list[Scorer] = []
    skipped: dict[str, str] = {}
    for name in dict.fromkeys(names):
        missing = weights.missing(name)
        if name == "niqe" and weights.niqe in missing:
            raise ModelError(f"{weights.niqe}: no such file; name one with NIQE's parameters")
        if name == "lpips-squeeze" and weights.perceptual is None:
            skipped[name] = "no file of LPIPS weights on SqueezeNet was given (--perceptual FILE)"
        elif missing and weights.offline and name != "lpips-squeeze":
            skipped[name] = f"its weights are absent ({weights.name_of(missing[0])})"
        else:
            try:
                scorers.append(_scorer(METRICS[name], weights, device))
            except AlloSR2Error:
                raise
            except Exception as error:  # whatever a library raises over a download or a broken file
                if not weights.files(name) or is_out_of_memory(error):
                    raise
                what = f"cannot be fetched into {weights.place}" if missing else "cannot be used"
                skipped[name] = f"its weights {what} ({one_line(error) or type(error).__name__})"
    return scorers, skipped


def _scorer(metric: Metric, weights: Weights, device: torch.device) -> Scorer:
    of_image, of_set = None, None
    if metric.name in _PYIQA:
        by = f"pyiqa {version('pyiqa')} {_PYIQA[metric.name][0]}"
        network = _pyiqa_network(metric, weights, device)
        if metric.of_set:
            of_set = _fid(network, device)
        else:
            of_image = _of_network(metric, network, device)
    else:
        by, of_image = f"allosr2 {version('allosr2')}", _own(metric, weights, device)
    hashes = weights.hashes(metric.name)  # the files are there by now
    return Scorer(
        metric=metric, by=by, device=device.type, weights=hashes, of_image=of_image, of_set=of_set
    )


def _own(metric: Metric, weights: Weights, device: torch.device) -> OfImage:
    match metric.name:
        case "sharpness":
            return lambda sr, hr: float(sharpness(sr, _given(hr)))
        case "color-shift":
            return lambda sr, lr: 255 * float((_channels(sr) - _channels(_given(lr))).abs().mean())
        case "grid-8":
            return lambda sr, _: float(periodicity(sr, (8,)))
        case "grid-16":
            return lambda sr, _: float(periodicity(sr, (16,)))
        case _:
            assert metric.name == "lpips-squeeze"
            return _lpips_squeeze(weights, device)


def _pyiqa_network(metric: Metric, weights: Weights, device: torch.device) -> Network:
    name, defaults = _PYIQA[metric.name]
    options: dict[str, Any] = dict(defaults)
    if metric.name == "niqe" and weights.niqe is not None:
        options |= {"pretrained_model_path": _niqe_parameters(weights.niqe)}
    with loading_from(weights):
        # without pyiqa's wrapper, which changes the process's settings of cuDNN at each call
        return pyiqa.create_metric(name, device=device, **options).net


def _of_network(metric: Metric, network: Network, device: torch.device) -> OfImage:
    # MANIQA's network keeps what its layers give in one list until it is used
    alone = Lock() if metric.name == "maniqa" else nullcontext()

    def of_image(sr: Image, reference: Image | None) -> float:
        images = (sr, _given(reference)) if metric.against else (sr,)
        with torch.inference_mode(), alone:
            try:
                return float(network(*(image.to(device) for image in images)))
            except torch.linalg.LinAlgError:  # NIQE of a picture of one color
                return math.nan

    return of_image


def _channels(image: Image) -> Float[Tensor, " 3"]:
    """Means of R, G and B."""
    return reduce(image.double(), "1 c h w -> c", "mean")


def _lpips_squeeze(weights: Weights, device: torch.device) -> OfImage:
    assert weights.perceptual is not None
    lpips = LPIPS.from_file(weights.perceptual).to(device)

    def of_image(sr: Image, reference: Image | None) -> float:
        with torch.inference_mode():
            return float(lpips(sr.to(device), _given(reference).to(device)))

    return of_image


def _fid(network: Network, device: torch.device) -> OfSet:
    def of_set(sr: Sequence[Path], hr: Sequence[Path]) -> float:
        with _folder_of(sr) as of_sr, _folder_of(hr) as of_hr:
            try:
                with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                    value = network(of_sr, of_hr, num_workers=0, verbose=False, device=device)
            except (ValueError, np.linalg.LinAlgError) as error:
                raise DataError(
                    f"FID of {len(sr)} images cannot be had ({one_line(error)}); leave it out with --metrics"
                ) from error
            return float(value)

    return of_set


def _given(reference: Image | None) -> Image:
    assert reference is not None
    return reference


def _no_niqe(path: Path) -> ModelError:
    return ModelError(
        f"{path}: no NIQE parameters are in it; name niqe_modelparameters.mat as published, or an .npz with "
        "mu_pris_param (36) and cov_pris_param (36 x 36)"
    )


def _niqe_parameters(path: Path) -> io.BytesIO:
    """NIQE's parameters as the `.mat` file that pyiqa reads."""
    try:
        if path.suffix == ".mat":
            held = scipy.io.loadmat(path)
            mean, covariance = held["mu_prisparam"], held["cov_prisparam"]
        else:
            with np.load(path, allow_pickle=False) as held:
                mean, covariance = held["mu_pris_param"], held["cov_pris_param"]
        fits = (mean.size, covariance.shape) == (36, (36, 36))
    except Exception as error:  # scipy's and numpy's readers raise what they meet
        raise _no_niqe(path) from error
    if not fits:
        raise _no_niqe(path)
    content = io.BytesIO()
    scipy.io.savemat(content, {"mu_prisparam": mean, "cov_prisparam": covariance})
    content.seek(0)
    return content


@contextmanager
def _folder_of(files: Sequence[Path]) -> Generator[str]:
    """A folder for the time being that shows pyiqa's own reader the pixels that other metrics see."""
    with TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            place = Path(folder, f"{number:06d}{file.suffix.lower()}")
            if _is_plain(file):
                place.symlink_to(file.resolve())
            else:
                write_image(place.with_suffix(".png"), Picture(color=read_rgb(file)))
        yield folder


def _is_plain(file: Path) -> bool:
    """Whether Pillow reads a file as `read_rgb` does: upright RGB of 8 bits."""
    try:
        with PILImage.open(file) as image:
            upright = image.getexif().get(Base.Orientation, 1) == 1
            deep = any("16" in str(tile.args) for tile in image.tile)
            return image.format in ("PNG", "JPEG") and image.mode == "RGB" and upright and not deep
    except OSError:
        return False
