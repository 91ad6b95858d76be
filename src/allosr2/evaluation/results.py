"""What methods make of LR images: each result made once, timed, and kept."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from allosr2.devices import describe_device
from allosr2.errors import ConfigError, DataError, ImageError
from allosr2.evaluation.images import count, images_of, partners, sizes_of
from allosr2.evaluation.measure import Progress, digest
from allosr2.evaluation.methods import Folder, Method, Network, Program
from allosr2.evaluation.processes import run_to_end
from allosr2.imaging.io import (
    find_images,
    image_from_any,
    read_rgb,
    read_size,
    to_array,
    write_image,
)
from allosr2.imaging.picture import Picture
from allosr2.storage import clear_partials, save_text

RECORD = "made.json"
LOG = "program.log"
REJECTED = "rejected"
"""Folder of what a program wrote that was not what is due; it may have taken hours."""
RUNNING = ".running-"
"""Begins the name of the folder that a program works in; one that is found is of a run that was killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A method's results."""

    images: Mapping[str, Path]
    """Name of each image, without its suffix, to its file."""
    seconds: float | None = None
    """Median seconds an image, without its files; of a program an image's share of all. None for a folder."""
    note: str = ""
    """What made them, in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    """How one result came about."""

    lr: str
    """Digest of its LR image."""
    seconds: float
    device: str
    """What the seconds are of; empty for a program, which chooses its own."""


def make(
    method: Method,
    lr: Mapping[str, Path],
    folder: Path,
    *,
    scale: int,
    device: torch.device,
    progress: Progress = lambda _: None,
) -> Made:
    """Results of a method for LR images, made in `folder/results` where they are not there yet.

    A result is made again when its LR image, the method or the scale has changed, or it has not the size that
    is due. A program counts as the same when its command line is: to run it again, remove `folder`. What a run
    that was stopped has made is kept; a program's images all together or not at all.

    Args:
        method: what to run; a folder's results stay where they are.
        lr: LR images by name, without suffix.
        folder: the method's own, which exists.
        scale: factor by which sides become larger.
        device: where networks run.
        progress: called with how many images are done.

    Raises:
        DataError: if a result is missing in a folder or of a program, or has another size.
        ConfigError: for a program that fails, and if results cannot be written.
        ModelError: for a network that cannot be loaded or is of another scale.
    """
    _clear(folder)
    match method:
        case Folder():
            return found(method, lr, scale)
        case Network():
            return _by_network(method, lr, folder, scale, device, progress)
        case Program():
            return _by_program(method, lr, folder, scale)


def found(method: Folder, lr: Mapping[str, Path], scale: int) -> Made:
    """A folder's results for LR images. Raises DataError if one is missing or is not `scale` times as large."""
    images = partners(list(lr), images_of(method.folder))
    missing = [name for name in lr if name not in images]
    if missing:
        raise DataError(
            f"{method.folder}: no result named {missing[0]} ({len(missing)} of {len(lr)} are missing); add it, "
            "or compare with --common on the images that all have"
        )
    _check_sizes(images, lr, scale)
    return Made(images=images, note=f"images in {method.folder}")


def _by_network(
    method: Network,
    lr: Mapping[str, Path],
    folder: Path,
    scale: int,
    device: torch.device,
    progress: Progress,
) -> Made:
    results = folder / "results"
    _make_folder(results)
    by = {"by": method.note, "scale": scale, "device": device.type}
    digests = {name: digest(path) for name, path in lr.items()}
    made = _record(folder, by)
    targets = {name: results / f"{name}.png" for name in lr}
    kept = _kept(made, digests, targets, lr, scale)
    to_do = [name for name in lr if name not in kept]
    if to_do:
        enlarge = method.load(scale, device)
        # what is replaced belongs to nothing until it is made: a kill must not leave it to a former method
        made = {name: entry for name, entry in made.items() if name not in to_do}
        _save(folder, by, made)
        # the first call pays for memory and the choice of kernels
        enlarge(image_from_any(read_rgb(lr[to_do[0]])))
        for done, name in enumerate(to_do, len(lr) - len(to_do)):
            progress(done)
            image = image_from_any(read_rgb(lr[name]))
            started = time.perf_counter()
            sr = enlarge(image)
            seconds = time.perf_counter() - started
            write_image(targets[name], Picture(color=to_array(sr)))
            made[name] = _Entry(lr=digests[name], seconds=seconds, device=describe_device(device))
            _save(folder, by, made)
    progress(len(lr))
    devices = dict.fromkeys(made[name].device for name in lr)
    note = f"{method.note}, {' and '.join(devices)}"
    return Made(images=targets, seconds=median(made[name].seconds for name in lr), note=note)


def _by_program(method: Program, lr: Mapping[str, Path], folder: Path, scale: int) -> Made:
    results = folder / "results"
    _make_folder(results)
    by = {"by": method.command, "scale": scale}
    digests = {name: digest(path) for name, path in lr.items()}
    made = _record(folder, by)
    images = {path.stem: path for path in find_images(results)}
    if len(_kept(made, digests, images, lr, scale)) < len(lr):
        _save(folder, by, {})
        for path in images.values():  # of another command, or of other images
            path.unlink()
        seconds = _run(method, lr, scale, results, folder / LOG)
        made = {name: _Entry(lr=digests[name], seconds=seconds / len(lr), device="") for name in lr}
        _save(folder, by, made)
        images = {path.stem: path for path in find_images(results)}
    return Made(
        images={name: images[name] for name in lr},
        seconds=median(made[name].seconds for name in lr),
        note=method.command,
    )


def _kept(
    made: Mapping[str, _Entry],
    digests: Mapping[str, str],
    images: Mapping[str, Path],
    lr: Mapping[str, Path],
    scale: int,
) -> set[str]:
    """Names of the results that need not be made again: of the same LR image, and of the size that is due."""
    kept: set[str] = set()
    for name, path in lr.items():
        if name in made and made[name].lr == digests[name] and name in images:
            height, width = read_size(path)
            with suppress(ImageError):
                if read_size(images[name]) == (scale * height, scale * width):
                    kept.add(name)
    return kept


def _run(method: Program, lr: Mapping[str, Path], scale: int, results: Path, log: Path) -> float:
    """Run a program on a folder of LR images and move what it made to `results`; returns its seconds."""
    with TemporaryDirectory(prefix=RUNNING, dir=log.parent, ignore_cleanup_errors=True) as place:
        inputs, outputs = Path(place, "lr").absolute(), Path(place, "sr").absolute()
        inputs.mkdir()
        outputs.mkdir()
        for name, path in lr.items():
            (inputs / f"{name}{path.suffix}").symlink_to(path.resolve())
        words = [
            word.replace("{lr}", str(inputs)).replace("{sr}", str(outputs))
            for word in shlex.split(method.command)
        ]
        started = time.perf_counter()
        try:
            code = run_to_end(words, log)
        except OSError as error:
            raise ConfigError(
                f"method {method.name}: {words[0]} cannot be run ({error.strerror}); check the command"
            ) from error
        seconds = time.perf_counter() - started
        if code:
            said = log.read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
            raise ConfigError(
                f"method {method.name}: its command ended with code {code} and said last: {last[:100]}; "
                f"all of it is in {log}"
            )
        try:
            written = _by_name(find_images(outputs, recursive=True), list(lr))
            _check_sizes(written, lr, scale)
        except (DataError, ImageError) as error:
            rejected = log.parent / REJECTED
            shutil.rmtree(rejected, ignore_errors=True)
            outputs.replace(rejected)
            problem = str(error).replace(str(outputs), str(rejected))
            raise DataError(
                f"method {method.name}: {problem}; what its command wrote is in {rejected}, what it said "
                f"in {log}"
            ) from error
        for name, path in written.items():
            path.replace(results / f"{name}{path.suffix}")
    return seconds


def _by_name(written: Sequence[Path], names: Sequence[str]) -> dict[str, Path]:
    """What a program wrote for each name: files called so, or so with an addition such as `baby_out.png`.

    Raises DataError for a name with none, or with several.
    """
    longest_first = sorted(names, key=len, reverse=True)
    by_name: dict[str, Path] = {}
    for name in names:
        of_name = [path for path in written if path.stem == name]
        of_name = of_name or [
            path
            for path in written
            if next((n for n in longest_first if f"{path.stem}_".startswith(f"{n}_")), "") == name
        ]
        if len(of_name) != 1:
            raise DataError(
                f"{len(of_name)} images were written for {name}, {len(written)} in all, one is due"
            )
        by_name[name] = of_name[0]
    return by_name


def _check_sizes(results: Mapping[str, Path], lr: Mapping[str, Path], scale: int) -> None:
    """Raise DataError for the first image that is not `scale` times the size of its LR image."""
    sizes = sizes_of(results)
    due = {name: (scale * height, scale * width) for name, (height, width) in sizes_of(lr).items()}
    wrong = [name for name in lr if sizes[name] != due[name]]
    if wrong:
        (height, width), (due_height, due_width) = sizes[wrong[0]], due[wrong[0]]
        raise DataError(
            f"{results[wrong[0]]} is {width} x {height} px, {scale} times its LR image is "
            f"{due_width} x {due_height}{count(wrong)}; give results of that size"
        )


def _clear(folder: Path) -> None:
    """Take away what a run that was killed has left in a method's folder."""
    clear_partials([folder / "results"])
    for place in folder.glob(f"{RUNNING}*"):
        shutil.rmtree(place, ignore_errors=True)


def _record(folder: Path, by: Mapping[str, Any]) -> dict[str, _Entry]:
    """What was made in a folder by the same method, by image; empty where that was another one."""
    try:
        record = json.loads((folder / RECORD).read_text())
        if {name: record[name] for name in by} != by:
            return {}
        return {name: _Entry(**entry) for name, entry in record["images"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(folder: Path, by: Mapping[str, Any], made: Mapping[str, _Entry]) -> None:
    images = {name: asdict(entry) for name, entry in made.items()}
    try:
        save_text(folder / RECORD, json.dumps({**by, "images": images}, indent=2))
    except OSError as error:
        raise _not_written(folder, error) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error


def _not_written(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder} cannot be written ({error.strerror}); choose another --output")
