"""Pairs of LR and HR images in a folder with `lr/` and `hr/`, as a model sees them."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from allosr2.errors import DataError
from allosr2.evaluation.sets import SetFolder, open_pairs
from allosr2.imaging.io import image_from_any, read_rgb
from allosr2.imaging.resize import enlarge


def pairs_of(folder: Path, scale: int) -> SetFolder:
    """Pairs in `folder/lr` and `folder/hr` whose HR images have `scale` times the sides of their LR images.

    Raises DataError for another scale, and as `open_pairs`; sizes are read from headers.
    """
    for part in ("lr", "hr"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder}: no folder {part} in it; name one with lr/ and hr/")
    images = open_pairs(folder / "lr", folder / "hr")
    if images.scale != scale:
        raise DataError(
            f"{folder}: HR images are x{images.scale} of their LR images, the model is of x{scale}; "
            "pair them by the model's scale"
        )
    return images


def read_pair(
    lr: Path, hr: Path, *, scale: int, multiple: int
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 3 h w"]]:
    """The LR image, enlarged bicubically, and the HR image of a pair of `pairs_of`.

    RGB in [0, 1]; both are cropped, at the bottom and on the right, to sides that are multiples of `multiple`
    pixels. Raises DataError for a pair that is smaller than that, ImageError for one that cannot be read.
    """
    of_lr, of_hr = (image_from_any(read_rgb(path)) for path in (lr, hr))
    rows, columns = (side // multiple * multiple for side in of_hr.shape[-2:])
    if not rows or not columns:
        raise DataError(f"{hr} is smaller than {multiple} px; remove the pair")
    return enlarge(of_lr, scale)[..., :rows, :columns], of_hr[..., :rows, :columns]
