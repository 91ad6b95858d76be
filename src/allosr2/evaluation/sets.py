"""Benchmark sets: the field's four and pairs of one's own, checked when opened; crops for a synthetic one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8

from allosr2.errors import ConfigError, DataError, one_line
from allosr2.evaluation.images import all_partners, count, images_of, sizes_of


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkSet:
    """A set of images that published tables are of."""

    name: str
    """As commands name it, such as `realsr`."""
    title: str
    """As tables write it, such as `RealSR`."""
    count: int
    """Images, or pairs of them."""
    lr_side: int
    """Sides of the LR images, which are square, in pixels."""
    hr_side: int | None
    """Sides of the HR images; None where there is no reference."""
    source: str
    """Where it is published."""
    archive: str
    """The folder that the published archive unpacks to."""
    folders: tuple[str, str]
    """Its folders of LR and of HR images; `lr` and `hr` will do as well."""
    names: tuple[str, ...] = ()
    """Names of the LR images without suffix, which are checked; none where they are not known for sure."""


_STABLESR = "the test sets of StableSR (arXiv:2305.07015)"

_ALL = (
    BenchmarkSet(
        name="realsr",
        title="RealSR",
        count=100,
        lr_side=128,
        hr_side=512,
        source=_STABLESR,
        archive="RealSRVal_crop128",
        folders=("test_LR", "test_HR"),
        names=tuple(f"{c}_{i:03d}_LR4" for c, i in product(("Canon", "Nikon"), range(1, 51))),
    ),
    BenchmarkSet(
        name="drealsr",
        title="DRealSR",
        count=93,
        lr_side=128,
        hr_side=512,
        source=_STABLESR,
        archive="DrealSRVal_crop128",
        folders=("test_LR", "test_HR"),
    ),
    BenchmarkSet(
        name="div2k-val",
        title="DIV2K-Val",
        count=3000,
        lr_side=128,
        hr_side=512,
        source=_STABLESR,
        archive="DIV2K_V2_val",
        folders=("lq", "gt"),
    ),
    BenchmarkSet(
        name="reallq250",
        title="RealLQ250",
        count=250,
        lr_side=256,
        hr_side=None,
        source="the benchmark of DreamClear (arXiv:2410.18666)",
        archive="RealLQ250",
        folders=("lq", "gt"),
    ),
)

SETS: Mapping[str, BenchmarkSet] = MappingProxyType({known.name: known for known in _ALL})
"""The sets of the paper's Table 1 by their names."""

RECORD = "set.json"
"""Name of the file, beside the folders of images, that says what a synthetic set was made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetFolder:
    """The images of a set, or of one's own, as they lie on disk: all there, readable, of the right sizes."""

    set: BenchmarkSet | None
    """None for images of one's own."""
    lr: Mapping[str, Path]
    """LR images by name without suffix, in the order of names."""
    hr: Mapping[str, Path] | None
    """HR images by the same names, in the same order; None where there is no reference."""
    scale: int | None
    """How many times larger sides become; None where no HR image says it."""
    published: bool
    """Whether published figures are of these images: not of one's own, nor of a set with a `RECORD`."""


def set_named(name: str) -> BenchmarkSet:
    """The set of a name. Raises ConfigError, offering the nearest ones, for one that is unknown."""
    if name not in SETS:
        nearest = get_close_matches(name.lower(), SETS, n=len(SETS), cutoff=0)
        raise ConfigError(
            f"set {name!r} is unknown: use {', '.join(nearest[:-1])} or {nearest[-1]}"
        )
    return SETS[name]


def open_set(name: str, folder: Path) -> SetFolder:
    """Find a set in a folder and check it. Errors as `set_named` and `check_set`."""
    return check_set(set_named(name), folder)


def check_set(expected: BenchmarkSet, folder: Path) -> SetFolder:
    """Find the images of a set and check their number, their names and, from their headers, their sizes.

    They lie in `lr/` and `hr/`, or in folders called as in the published archive, in `folder` or in the
    archive's folder in it. Gray images and ones of 16 bits are fine.

    Raises:
        DataError: one line that names the first thing that is wrong, and how many there are: no such folder, an
            image that cannot be read or has no partner, a wrong number, another name, a wrong size.
    """
    lr_folder, hr_folder = _find(expected, folder)
    lr = images_of(lr_folder)
    hr = None if hr_folder is None else all_partners(lr, images_of(hr_folder))
    known, crops = expected, _record(lr_folder.parent)
    if crops is not None:
        source = "`allosr2 bench prepare`, which goes on where it was"
        expected = replace(expected, count=crops, source=source)
    _check_names(expected, lr, lr_folder)
    for images, side in ((lr, expected.lr_side), (hr or {}, expected.hr_side)):
        sizes = sizes_of(images)
        wrong = [name for name, size in sizes.items() if size != (side, side)]
        if wrong:
            height, width = sizes[wrong[0]]
            raise DataError(
                f"{images[wrong[0]]} is {width} x {height} px, {side} x {side} expected{count(wrong)}; "
                f"crops of one's own give other figures: use those of {expected.source}"
            )
    # without a reference, the field's own: RealLQ250 is enlarged from 256 to 1024
    scale = 4 if expected.hr_side is None else expected.hr_side // expected.lr_side
    return SetFolder(set=known, lr=lr, hr=hr, scale=scale, published=crops is None)


def published_set(folder: Path) -> BenchmarkSet | None:
    """The set whose pairs, as published, a folder holds; None for one's own, and for none that it can be."""
    for known in SETS.values():
        with suppress(DataError):
            found = check_set(known, folder)
            if found.published and found.hr is not None:
                return known
    return None


def open_pairs(lr: Path, hr: Path | None) -> SetFolder:
    """Images of one's own: a folder of LR images, and one of HR images by the same names, or none.

    Raises:
        DataError: one line that names the first thing that is wrong, and how many there are: no such folder,
            an image that cannot be read or has no partner, HR sides that are no whole multiple of the LR
            image's, or another one than those of the other pairs.
    """
    lr_images = images_of(lr)
    lr_sizes = sizes_of(lr_images)
    if hr is None:
        return SetFolder(set=None, lr=lr_images, hr=None, scale=None, published=False)
    hr_images = all_partners(lr_images, images_of(hr))
    hr_sizes = sizes_of(hr_images)
    scales = {name: _multiple(size, hr_sizes[name]) for name, size in lr_sizes.items()}
    broken = [name for name, scale in scales.items() if scale is None]
    if broken:
        (lr_height, lr_width), (height, width) = lr_sizes[broken[0]], hr_sizes[broken[0]]
        raise DataError(
            f"{hr_images[broken[0]]} is {width} x {height} px, no whole multiple of its LR image's "
            f"{lr_width} x {lr_height}{count(broken)}; crop it"
        )
    ((scale, _),) = Counter(scales.values()).most_common(1)
    others = [name for name, other in scales.items() if other != scale]
    if others:
        raise DataError(
            f"{hr_images[others[0]]} has {scales[others[0]]} times the sides of its LR image, other pairs "
            f"{scale} times{count(others)}; measure them apart"
        )
    return SetFolder(set=None, lr=lr_images, hr=hr_images, scale=scale, published=False)


def random_crop(
    photo: UInt8[np.ndarray, "h w 3"], side: int, seed: int, index: int
) -> UInt8[np.ndarray, "side side 3"]:
    """The square for image `index` of a synthetic set; the photo's size and (seed, index) say its place.

    Raises DataError for a photo with a shorter side.
    """
    height, width = photo.shape[:2]
    if min(height, width) < side:
        raise DataError(f"a photo of {width} x {height} px holds no crop of {side} px; take it out")
    # A stream apart from those of degradations, which have the key (index,), and of training.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 4)))
    top, left = (int(rng.integers(length - side, endpoint=True)) for length in (height, width))
    return np.ascontiguousarray(photo[top : top + side, left : left + side])


def _record(folder: Path) -> int | None:
    """How many pairs a folder's synthetic set is to have; None where the folder holds no such set."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return int(json.loads(path.read_text())["crops"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); make the set again") from error


def _find(expected: BenchmarkSet, folder: Path) -> tuple[Path, Path | None]:
    layouts = tuple(dict.fromkeys((("lr", "hr"), expected.folders)))
    for root, (lr, hr) in product((folder, folder / expected.archive), layouts):
        if (root / lr).is_dir():
            return root / lr, None if expected.hr_side is None else root / hr
    parts = 1 if expected.hr_side is None else 2
    wanted = ", or ".join(" and ".join(f"{part}/" for part in layout[:parts]) for layout in layouts)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name one with {wanted}")
    raise DataError(
        f"{folder} holds no {expected.title}: there is no {wanted} in it or in {expected.archive}/; "
        "name the folder of those"
    )


def _check_names(expected: BenchmarkSet, images: Mapping[str, Path], folder: Path) -> None:
    missing = [name for name in expected.names if name not in images]
    if len(images) == expected.count and not missing:
        return
    foreign = [name for name in images if name not in expected.names] if expected.names else []
    which = ""
    if missing:
        which = f": {missing[0]} is missing{count(missing, 'image')}"
    elif foreign:
        which = f": {foreign[0]} is none of them{count(foreign, 'image')}"
    raise DataError(
        f"{folder} holds {len(images)} images, {expected.title} has {expected.count}{which}; "
        f"get it again from {expected.source}"
    )


def _multiple(lr_size: tuple[int, int], hr_size: tuple[int, int]) -> int | None:
    scale = hr_size[0] // lr_size[0]
    return scale if scale and hr_size == (scale * lr_size[0], scale * lr_size[1]) else None
