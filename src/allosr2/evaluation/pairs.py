"""Pairs of LR and HR images in a folder with `lr/` and `hr/`, as a model sees them."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from allosr2.errors import DataError
from allosr2.imaging.io import find_images, image_from_any, read_rgb, read_size
from allosr2.imaging.resize import enlarge


def paired_names(folder: Path, scale: int) -> list[str]:
    """Names that `folder/lr` and `folder/hr` share, sorted.

    Raises DataError where they do not agree, and where the sides of an HR image are not `scale` times its LR
    image's; sizes are read from headers. Raises ImageError for a file that is no image.
    """
    for part in ("lr", "hr"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder}: no folder {part} in it; name one with lr/ and hr/")
    lr, hr = ({path.name for path in find_images(folder / part)} for part in ("lr", "hr"))
    if not lr and not hr:
        raise DataError(f"{folder}: no image in lr/ and hr/; name a folder with pairs")
    alone = sorted(lr ^ hr)
    if alone:
        where = "lr" if alone[0] in lr else "hr"
        raise DataError(
            f"{folder}: {where}/{alone[0]} has no partner ({len(alone)} such files); "
            "give both images of a pair one name"
        )
    for name in sorted(lr):
        (lr_height, lr_width), (height, width) = (
            read_size(folder / part / name) for part in ("lr", "hr")
        )
        if (height, width) != (lr_height * scale, lr_width * scale):
            raise DataError(
                f"{folder}: hr/{name} is {width}x{height}, x{scale} of its LR image is "
                f"{lr_width * scale}x{lr_height * scale}; pair them by the model's scale"
            )
    return sorted(lr)


def read_pair(
    folder: Path, name: str, *, scale: int, multiple: int
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 3 h w"]]:
    """The LR image, enlarged bicubically, and the HR image of a pair that `paired_names` found.

    RGB in [0, 1]; both are cropped, at the bottom and on the right, to sides that are multiples of `multiple`
    pixels. Raises DataError for a pair that is smaller than that, ImageError for one that cannot be read.
    """
    lr, hr = (image_from_any(read_rgb(folder / part / name)) for part in ("lr", "hr"))
    rows, columns = (side // multiple * multiple for side in hr.shape[-2:])
    if not rows or not columns:
        raise DataError(f"{folder}: hr/{name} is smaller than {multiple} px; remove the pair")
    return enlarge(lr, scale)[..., :rows, :columns], hr[..., :rows, :columns]
