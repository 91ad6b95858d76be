"""A synthetic benchmark set: crops of photographs and what a degradation makes of them, the same every time."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from allosr2.data.degradation import degrade, mixture, sample_degradation
from allosr2.data.photo import Photo
from allosr2.errors import ConfigError, DataError, one_line
from allosr2.evaluation.sets import RECORD, BenchmarkSet, random_crop
from allosr2.imaging.io import find_images, image_from_any, to_array, write_image
from allosr2.imaging.picture import Picture
from allosr2.manifest import locked
from allosr2.storage import save_text

NOTE = (
    "crops of one's own: figures on them compare with each other, not with published ones, "
    "which are of StableSR's own 3000 crops"
)


def prepare_pairs(
    made: BenchmarkSet,
    source: Path,
    output: Path,
    *,
    preset_name: str,
    crops: int,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Make the pairs that are not there yet in `output/hr` and `output/lr`; returns how many were.

    Pair i is a crop of photograph i modulo their number, in the order of names, and its degradation; its place
    and the degradation are drawn by (seed, i) alone. `output/set.json` says what all was made of.

    Args:
        made: the set whose sizes pairs get.
        source: folder of photographs.
        output: folder, made if need be.
        preset_name: degradation.
        crops: how many pairs.
        seed: seed of everything drawn.
        progress: called with how many pairs there are.

    Raises:
        DataError: for photographs that are absent, too small or unreadable.
        ConfigError: for an unknown preset, and a folder whose pairs are of other settings or that cannot be
            written.
    """
    assert made.hr_side is not None
    degradation = mixture(preset_name)
    hr_folder, lr_folder = output / "hr", output / "lr"
    if source.resolve() in (hr_folder.resolve(), lr_folder.resolve()):
        raise ConfigError(
            f"--output is {output}: the pairs would lie among the photographs; name another folder"
        )
    photos = _photos(source, made.hr_side)
    names = [f"{photos[i % len(photos)].path.stem}_pch{i:05d}.png" for i in range(crops)]
    settings = {
        "set": made.name,
        "preset": preset_name,
        "seed": seed,
        "crops": crops,
        "hr_side": made.hr_side,
        "lr_side": made.lr_side,
        "allosr2": version("allosr2"),
        "sources": _hashes(photos),
    }
    try:
        for folder in (hr_folder, lr_folder):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {output} cannot be made ({error.strerror}); choose another folder"
        ) from error
    with locked(output, (hr_folder, lr_folder)), _one_thread():
        _check_record(output, settings)
        missing = [
            index
            for index, name in enumerate(names)
            if not ((hr_folder / name).exists() and (lr_folder / name).exists())
        ]
        if missing:
            _save_record(output, settings, complete=False)
        done = were_there = len(names) - len(missing)
        progress(done)
        for number, photo in enumerate(photos):  # so that each is decoded once
            indices = [index for index in missing if index % len(photos) == number]
            pixels = photo.pixels() if indices else None
            for index in indices:
                assert pixels is not None
                hr = random_crop(pixels, made.hr_side, seed, index)
                drawn = sample_degradation(degradation, seed, index)
                lr = degrade(image_from_any(hr), [drawn], made.hr_side // made.lr_side)
                write_image(hr_folder / names[index], Picture(color=hr))
                write_image(lr_folder / names[index], Picture(color=to_array(lr)))
                done += 1
                progress(done)
        _save_record(output, settings, complete=True)
    return were_there


def _photos(source: Path, side: int) -> list[Photo]:
    """The photographs of a folder in the order of names. Raises DataError for one below `side` pixels."""
    if not source.is_dir():
        raise DataError(f"{source} is no folder; name that of DIV2K's validation photographs")
    photos = [Photo(path=path, key=path.name) for path in find_images(source)]
    if not photos:
        raise DataError(
            f"{source} holds no photograph; name that of DIV2K's validation photographs"
        )
    for photo in photos:
        height, width = photo.size()
        if min(height, width) < side:
            raise DataError(
                f"{photo.name} is {width} x {height} px, which holds no crop of {side} px; take it out"
            )
    return photos


def _hashes(photos: Sequence[Photo]) -> dict[str, str]:
    """SHA-256 of each photograph by its name. Raises DataError for one that cannot be read."""
    hashes: dict[str, str] = {}
    for photo in photos:
        try:
            with photo.path.open("rb") as stream:
                hashes[photo.key] = file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"{photo.name} cannot be read: {error.strerror}; fetch it again"
            ) from error
    return hashes


def _check_record(output: Path, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming what differs, where the folder's pairs were made by other settings."""
    path = output / RECORD
    if not path.exists():
        found = [*find_images(output / "hr"), *find_images(output / "lr")]
        if found:
            raise ConfigError(
                f"--output is {output}: {found[0]} is there, and no {RECORD} that says of what; "
                "name another folder, or empty it"
            )
        return
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({one_line(error)}); name another --output, or empty it"
        ) from error
    for name, value in settings.items():
        there = record.get(name)
        if there != value:
            differs = (
                "other photographs" if name == "sources" else f"{name} {there}, and now {value}"
            )
            raise ConfigError(
                f"--output is {output}: its pairs are of {differs}; "
                "name another folder, or make them as before"
            )


def _save_record(output: Path, settings: Mapping[str, Any], *, complete: bool) -> None:
    record = {**settings, "complete": complete, "note": NOTE}
    try:
        save_text(output / RECORD, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"--output is {output}: {error.strerror}; choose a folder that is writable and has room"
        ) from error


@contextmanager
def _one_thread() -> Generator[None]:
    """Compute in one thread: by their number, torch's resizes round single pixels another way."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
