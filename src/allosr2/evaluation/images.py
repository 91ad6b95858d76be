"""Images of folders by name: which belong together, and of what sizes they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from allosr2.data.photo import Photo
from allosr2.errors import DataError, ImageError
from allosr2.imaging.io import find_images

_SCALE = re.compile(r"_?x\d$", re.IGNORECASE)


def images_of(folder: Path) -> dict[str, Path]:
    """Images of a folder by name without suffix, in the order of names.

    Raises DataError for a folder that is absent or has no image, and for a name that two images have.
    """
    try:
        paths = find_images(folder)
    except ImageError as error:
        raise DataError(str(error)) from error
    if not paths:
        raise DataError(f"{folder} holds no image; name a folder with images")
    images = {path.stem: path for path in reversed(paths)}
    doubles = [path for path in paths if images[path.stem] != path]
    if doubles:
        first = doubles[0]
        raise DataError(
            f"{first} has the name of {images[first.stem]}{count(doubles)}; take one out"
        )
    return dict(sorted(images.items()))


def partners(names: Sequence[str], images: Mapping[str, Path]) -> dict[str, Path]:
    """Those of `images` that belong to `names`, by these, in their order; what has no partner is left out.

    Names are the same, or the same but for a scale at their end: DRealSR's `DSC_1_x1` and `DSC_1_x4`, DIV2K's
    `0801x4` and `0801`. Where two images come to one name by that, neither is taken.
    """
    found = {name: images[name] for name in names if name in images}
    plain: dict[str, list[Path]] = {}
    for name, path in images.items():
        if name not in found:
            plain.setdefault(_SCALE.sub("", name), []).append(path)
    alone = [name for name in names if name not in found]
    without_scale = [_SCALE.sub("", name) for name in alone]
    for name, short in zip(alone, without_scale, strict=True):
        if without_scale.count(short) == 1 and len(plain.get(short, ())) == 1:
            found[name] = plain[short][0]
    return {name: found[name] for name in names if name in found}


def all_partners(names: Mapping[str, Path], others: Mapping[str, Path]) -> dict[str, Path]:
    """Partners of all images, as `partners` finds them. Raises DataError, naming the first, if one is alone."""
    found = partners(list(names), others)
    used = set(found.values())
    for images, there in ((names, others), (others, names)):
        lonely = [path for name, path in images.items() if name not in found and path not in used]
        if lonely:
            raise DataError(
                f"{lonely[0]} has no partner in {folder_of(there)}{count(lonely)}: {len(names)} images in "
                f"{folder_of(names)}, {len(others)} in {folder_of(others)}; give both of a pair one name"
            )
    return found


def sizes_of(images: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    """Height and width of each image, by its header. Raises DataError for the first that cannot be read."""
    sizes: dict[str, tuple[int, int]] = {}
    unreadable: list[ImageError] = []
    for name, path in images.items():
        try:
            sizes[name] = Photo(path=path, key=path.name).size()
        except ImageError as error:
            unreadable.append(error)
    if unreadable:
        raise DataError(f"{unreadable[0]}{count(unreadable)}") from unreadable[0]
    return sizes


def evenly(names: Sequence[str], limit: int) -> list[str]:
    """At most `limit` (1 or more) of the names, evenly spread, in their order."""
    number = min(limit, len(names))
    return [names[(2 * place + 1) * len(names) // (2 * number)] for place in range(number)]


def folder_of(images: Mapping[str, Path]) -> Path:
    """The folder that images lie in."""
    return next(iter(images.values())).parent


def count(wrong: Sequence[object], what: str = "file") -> str:
    """How many there are, where the first is not the only one."""
    return f" (one of {len(wrong)} such {what}s)" if len(wrong) > 1 else ""
