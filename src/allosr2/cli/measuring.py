"""What the verbs that measure share: which metrics, with what weights, and the files that are written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import TextColumn

from allosr2.cli.console import progress_bar
from allosr2.cli.files import make_folder
from allosr2.errors import ConfigError

if TYPE_CHECKING:
    from allosr2.evaluation.measure import Pair
    from allosr2.evaluation.scorers import Scorer
    from allosr2.evaluation.summary import Measured

logger = logging.getLogger(__name__)

JOURNAL = ".measured.jsonl"
"""Values by what they are of, so that a run that was stopped goes on, and another metric costs itself alone."""
PER_IMAGE = "per_image.csv"
SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """Which metrics, and how they are computed."""

    metrics: tuple[str, ...] = ()
    """Metrics. Without any: psnr ssim lpips dists fid niqe musiq maniqa clipiqa (the paper's), sharpness,
    color-shift, grid-8 and grid-16, those that the images allow, and with --perceptual lpips-squeeze."""
    perceptual: Path | None = None
    """LPIPS weights on SqueezeNet 1.1 (safetensors), as for training."""
    niqe: Path | None = None
    """NIQE's parameters: `niqe_modelparameters.mat` as published, or an `.npz`."""
    weights: Path | None = None
    """Folder with `checkpoints/`, `pyiqa/` and `clip/` that hold the other metrics' weights; by default
    PyTorch's cache."""
    offline: bool = False
    """Fetch no weights: metrics whose weights are absent are skipped, by name."""
    workers: int = 0
    """Images that are measured at a time; 0 is one a core."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: CUDA if there is a GPU."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ConfigError(f"--workers is {self.workers}: use 1 or more, or 0 for one a core")


def require_evaluation() -> None:
    """Raise ConfigError where what measures is not installed."""
    for package in ("pyiqa", "scipy", "spandrel", "matplotlib", "jinja2"):
        if find_spec(package) is None:
            raise ConfigError(f"measuring needs {package}: pip install 'allosr2[eval]'")


def scorers_of(
    measuring: Measuring, images: int, *, hr: bool, lr: bool
) -> tuple[list[Scorer], dict[str, str]]:
    """The metrics that were asked for, ready, and why each of the others is skipped, which is warned of.

    Args:
        measuring: what was asked for.
        images: how many there are.
        hr: whether there are HR images.
        lr: whether there are LR images.

    Raises:
        ConfigError: for a metric that does not exist, or compares with images that there are none of.
        ModelError: for weights that were named and cannot be used.
    """
    from allosr2.devices import resolve_device
    from allosr2.evaluation.metrics import METRICS
    from allosr2.evaluation.scorers import check_names, load_scorers
    from allosr2.evaluation.weights import Weights

    there = {None, *(["hr"] if hr else []), *(["lr"] if lr else [])}
    check_names(measuring.metrics)
    for name in measuring.metrics:
        against = METRICS[name].against
        if against not in there:
            raise ConfigError(
                f"metric {name} compares with images of --{against}: add that, or leave it out"
            )
    names = measuring.metrics or tuple(
        name
        for name, metric in METRICS.items()
        if metric.against in there and (name != "lpips-squeeze" or measuring.perceptual is not None)
    )
    weights = Weights(
        folder=measuring.weights,
        niqe=measuring.niqe,
        perceptual=measuring.perceptual,
        offline=measuring.offline,
    )
    too_few = {
        name: "it compares sets of 2 images or more"
        for name in names
        if METRICS[name].of_set and images < 2
    }
    loaded = [name for name in names if name not in too_few]
    scorers, skipped = load_scorers(loaded, weights, resolve_device(measuring.device))
    skipped |= too_few
    for name, reason in skipped.items():
        logger.warning("%s is skipped: %s", METRICS[name].title, reason)
    if any("its weights" in reason for reason in skipped.values()):
        logger.warning(
            "weights are looked for in %s; --weights DIR names another folder, --niqe FILE NIQE's own, "
            "--offline fetches none",
            weights.place,
        )
    if not scorers:
        raise ConfigError("no metric is left; name others with --metrics, or give their weights")
    return scorers, skipped


def measure_into(
    folder: Path,
    label: str,
    pairs: Mapping[str, Pair],
    scorers: Sequence[Scorer],
    skipped: Mapping[str, str],
    *,
    workers: int,
    **context: object,
) -> Measured:
    """Measure with a progress bar; write `per_image.csv` and `summary.json` into a folder, made if need be."""
    from allosr2.evaluation.measure import check_images, measure
    from allosr2.evaluation.summary import per_image_csv, record
    from allosr2.storage import save_text

    check_images(pairs, scorers)
    make_folder(folder)
    with progress_bar(TextColumn("{task.completed}/{task.total}", markup=False)) as bar:
        task = bar.add_task(label, total=len(pairs))
        measured = measure(
            pairs,
            scorers,
            journal=folder / JOURNAL,
            workers=workers,
            progress=lambda done: bar.update(task, completed=done),
        )
    measured = replace(measured, skipped=skipped)
    try:
        save_text(folder / PER_IMAGE, per_image_csv(measured))
        save_text(folder / SUMMARY, record(measured, scorers, **context))
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}); choose another --output"
        ) from error
    return measured
