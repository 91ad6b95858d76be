"""Transparency: colors for what is not seen, and an opacity that stays where it was."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from allosr2.imaging.resize import resize

_REACH = 2
"""Input pixels around a pixel among which its opacity must lie: what bicubic enlargement looks at."""


def fill_transparent(
    color: Float[Tensor, "1 c h w"], alpha: Float[Tensor, "1 1 h w"]
) -> Float[Tensor, "1 c h w"]:
    """Give transparent pixels the colors of the nearest visible ones, fading into the mean of more.

    Files hold anything there, mostly black, which enlarging would draw into the visible edge as a fringe. What
    is visible at all keeps its color: levels are not premultiplied. A picture without a visible pixel stays.

    Colors times opacity are halved in size again and again (pull) and, where nothing is visible, taken from
    the next smaller size (push), as in Gortler et al., The Lumigraph, 1996.
    """
    if not bool((alpha > 0).any()):
        return color
    if bool((alpha > 0).all()):
        return color
    weighted, weight = color * alpha, alpha
    smaller_weight = _halved(weight)
    smaller = _halved(weighted) / smaller_weight.clamp(min=torch.finfo(weight.dtype).tiny)
    filled = fill_transparent(smaller, smaller_weight)
    background = resize(filled, (color.shape[-2], color.shape[-1]), "bilinear")
    return color.where(alpha > 0, background)


def opacity_bounds(
    alpha: Float[Tensor, "1 1 h w"],
) -> tuple[Float[Tensor, "1 1 h w"], Float[Tensor, "1 1 h w"]]:
    """Least and greatest opacity around each pixel: opaque and transparent grounds stay exactly that."""
    size = 2 * _REACH + 1
    greatest = functional.max_pool2d(alpha, size, stride=1, padding=_REACH)
    return -functional.max_pool2d(-alpha, size, stride=1, padding=_REACH), greatest


def _halved(image: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h2 w2"]:
    return functional.avg_pool2d(image, 2, ceil_mode=True, count_include_pad=False)
