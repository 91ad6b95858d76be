"""Resampling, the same as Pillow's: shrinking does not alias, enlarging is the usual bicubic."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def resize(
    image: Float[Tensor, "b c h w"],
    size: tuple[int, int],
    mode: Literal["bicubic", "bilinear"] = "bicubic",
) -> Float[Tensor, "b c height width"]:
    """Resample to `size` = (height, width) in pixels, pixel centers at half integers.

    Bicubic is Keys' kernel with a = -0.5, widened by the factor when shrinking; both modes agree
    with Pillow's filters of the same name on floats. The result is *not* clamped: the operation
    stays linear, and bicubic overshoots [0, 1] at edges by up to about a tenth. Clamp where an
    image in [0, 1] is due.
    """
    return functional.interpolate(image, size=size, mode=mode, align_corners=False, antialias=True)


def enlarge(image: Float[Tensor, "b c h w"], scale: int) -> Float[Tensor, "b c h*s w*s"]:
    """Bicubic enlargement by a whole factor, clamped to [0, 1]: what the codec encodes of an LR image."""
    height, width = image.shape[-2:]
    return resize(image, (height * scale, width * scale)).clamp_(0, 1)
