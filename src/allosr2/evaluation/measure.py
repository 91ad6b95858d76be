"""Measure a folder of images: names and sizes checked, metrics computed in parallel, what is done kept."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allosr2.devices import is_out_of_memory
from allosr2.errors import ConfigError, DataError, ImageError
from allosr2.evaluation.images import all_partners, count, sizes_of
from allosr2.evaluation.scorers import Scorer
from allosr2.evaluation.summary import Measured
from allosr2.imaging.io import image_from_any, read_image
from allosr2.imaging.picture import rounded

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Called with how many images are done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """An SR image and what it can be compared with."""

    sr: Path
    hr: Path | None = None
    lr: Path | None = None


def pair_images(
    sr: Mapping[str, Path],
    hr: Mapping[str, Path] | None = None,
    lr: Mapping[str, Path] | None = None,
) -> dict[str, Pair]:
    """SR images by name, each with the HR and the LR image of its name.

    Raises DataError for an image without a partner, one that cannot be read, and an HR image of another size.
    """
    hr = None if hr is None else all_partners(sr, hr)
    lr = None if lr is None else all_partners(sr, lr)
    if hr is not None:
        sr_sizes, hr_sizes = sizes_of(sr), sizes_of(hr)
        wrong = [name for name in sr if sr_sizes[name] != hr_sizes[name]]
        if wrong:
            (height, width), (hr_height, hr_width) = sr_sizes[wrong[0]], hr_sizes[wrong[0]]
            raise DataError(
                f"{sr[wrong[0]]} is {width} x {height} px, {hr[wrong[0]]} is {hr_width} x {hr_height}"
                f"{count(wrong)}; measure results that have the size of their HR image"
            )
    return {
        name: Pair(sr=path, hr=hr[name] if hr else None, lr=lr[name] if lr else None)
        for name, path in sr.items()
    }


def check_images(pairs: Mapping[str, Pair], scorers: Sequence[Scorer], *, scale: int = 1) -> None:
    """Look, by headers, whether metrics can be computed.

    Where SR images are still to be made, `pairs` has what they are made of; sides become `scale` times larger.
    Raises ImageError for the first SR image that is too small for a metric, and DataError for too few images.
    """
    for metric in (scorer.metric for scorer in scorers if scorer.of_set is not None):
        if len(pairs) < 2:
            raise DataError(
                f"{metric.title} compares sets of 2 images or more; leave {metric.name} out with --metrics"
            )
    enlarged = f", enlarged by {scale}," if scale > 1 else ""
    for name, sides in sizes_of({name: pair.sr for name, pair in pairs.items()}).items():
        height, width = (scale * side for side in sides)
        for metric in (scorer.metric for scorer in scorers):
            if min(height, width) < metric.least_side:
                raise ImageError(
                    f"{pairs[name].sr}{enlarged} is {width} x {height} px, {metric.title} needs sides of "
                    f"{metric.least_side} or more; leave {metric.name} out with --metrics"
                )


def measure(
    pairs: Mapping[str, Pair],
    scorers: Sequence[Scorer],
    *,
    journal: Path | None = None,
    workers: int = 0,
    progress: Progress = lambda _: None,
) -> Measured:
    """Compute metrics of every image, several images at a time, and metrics of the whole set.

    A metric sees one image at a time, so that no value depends on which others there are. Images count as
    RGB of 8 bits; that others were converted is logged.

    Args:
        pairs: what to measure.
        scorers: the metrics; those that need an HR image need one in every pair.
        journal: file that values are kept in as they come and taken from the next time, for the same pixels,
            metric, library and weights; None keeps nothing.
        workers: images at a time; 0 is one a core, and two on a GPU.
        progress: called after each image.

    Raises:
        ImageError: for an image that cannot be read or is too small for a metric.
        ConfigError: if the journal cannot be read or written.
    """
    check_images(pairs, scorers)
    kept = _Journal(journal)
    of_image = [scorer for scorer in scorers if scorer.of_image is not None]
    values: dict[str, dict[str, float]] = {}
    converted: dict[Path, str] = {}
    threads = torch.get_num_threads()
    on_gpu = any(scorer.device == "cuda" for scorer in scorers)
    workers = workers or (2 if on_gpu else threads)
    with _exact(), _pool(workers, max(1, threads // workers)) as pool:
        running = {
            pool.submit(_values, pair, of_image, kept, converted): name
            for name, pair in pairs.items()
        }
        for done, future in enumerate(as_completed(running), 1):
            values[running[future]], new = future.result()
            kept.add(new)
            progress(done)
        of_set = {
            scorer.metric.name: _of_set(pairs, scorer, kept)
            for scorer in scorers
            if scorer.of_set is not None
        }
    if converted:
        logger.warning(
            "%d images are not RGB of 8 bits and were converted, one of them %s (%s)",
            len(converted),
            *min((str(path), how) for path, how in converted.items()),
        )
    return Measured(
        images={name: values[name] for name in pairs},
        of_set=of_set,
    )


@contextmanager
def _exact() -> Generator[None]:
    """Compute with float32 as it is, not rounded to TensorFloat-32, so that no value depends on the device."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


@contextmanager
def _pool(workers: int, threads: int) -> Generator[ThreadPoolExecutor]:
    """Threads with so many of torch's own each; what still waits when the block ends is dropped."""
    former = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(former)


def digest(path: Path) -> str:
    """SHA-256 of a file, as far as it tells files apart: 32 digits. Raises ImageError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()[:32]
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}); measure again") from error


class _Journal:
    """Values by what they are of, in a file, a JSON line each; what a kill tore counts as nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.values: dict[str, float] = {}
        try:
            lines = path.read_bytes().splitlines() if path is not None and path.exists() else []
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); delete it") from error
        for line in lines:
            try:
                key, value = json.loads(line)
                self.values[str(key)] = float(value)
            except (ValueError, TypeError):
                continue

    def add(self, new: Mapping[str, float]) -> None:
        self.values |= new
        if self.path is None or not new:
            return
        lines = "".join(f"\n{json.dumps([key, value])}" for key, value in new.items())
        try:
            with self.path.open("a") as stream:
                stream.write(lines)
        except OSError as error:
            raise ConfigError(
                f"{self.path} cannot be written ({error.strerror}); choose a folder with room"
            ) from error


def _key(scorer: Scorer, *files: str) -> str:
    computed = json.dumps(
        [
            scorer.metric.name,
            scorer.by,
            scorer.device,
            torch.__version__,
            dict(scorer.weights),
            *files,
        ]
    )
    return hashlib.sha256(computed.encode()).hexdigest()[:32]


def _values(
    pair: Pair, scorers: Sequence[Scorer], kept: _Journal, converted: dict[Path, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """All values of a pair by metric, and by key those that were not known."""
    digests: dict[Path, str] = {}
    images: dict[Path, Float[Tensor, "1 3 h w"]] = {}
    values, new = dict[str, float](), dict[str, float]()
    for scorer in scorers:
        against = {"hr": pair.hr, "lr": pair.lr, None: None}[scorer.metric.against]
        files = (pair.sr,) if against is None else (pair.sr, against)
        for path in files:
            digests[path] = digests.get(path) or digest(path)
        key = _key(scorer, *(digests[path] for path in files))
        if key not in kept.values:
            for path in files:
                images[path] = images[path] if path in images else _rgb(path, converted)
            new[key] = _value(scorer, pair.sr, *(images[path] for path in files))
        values[scorer.metric.name] = new[key] if key in new else kept.values[key]
    return values, new


def _rgb(path: Path, converted: dict[Path, str]) -> Float[Tensor, "1 3 h w"]:
    picture = read_image(path)
    color = picture.color
    how = [
        *(["rounded from 16 bits"] if color.dtype != np.uint8 else []),
        *(["gray"] if color.shape[2] != 3 else []),
        *(["opacity left out"] if picture.alpha is not None else []),
    ]
    if how:
        converted[path] = ", ".join(how)
    return image_from_any(np.broadcast_to(rounded(color, np.uint8), (*color.shape[:2], 3)))


def _value(
    scorer: Scorer,
    path: Path,
    sr: Float[Tensor, "1 3 h w"],
    reference: Float[Tensor, "1 3 height width"] | None = None,
) -> float:
    assert scorer.of_image is not None
    try:
        value = scorer.of_image(sr, reference)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ImageError(
            f"{path}: memory ran out for {scorer.metric.title}; use --workers 1, or --device cpu"
        ) from error
    if not math.isfinite(value):
        raise ImageError(
            f"{path}: {scorer.metric.title} is {value}, as of a picture of one color; leave the image out, or "
            f"{scorer.metric.name} with --metrics"
        )
    return value


def _of_set(pairs: Mapping[str, Pair], scorer: Scorer, kept: _Journal) -> float:
    assert scorer.of_set is not None
    files = [(pair.sr, pair.hr) for pair in pairs.values()]
    sr, hr = [sr for sr, _ in files], [hr for _, hr in files if hr is not None]
    key = _key(scorer, *(digest(path) for path in (*sr, *hr)))
    if key not in kept.values:
        value = scorer.of_set(sr, hr)
        if not math.isfinite(value):
            name = scorer.metric.name
            raise DataError(f"{scorer.metric.title} is {value}; leave {name} out with --metrics")
        kept.add({key: value})
    return kept.values[key]
