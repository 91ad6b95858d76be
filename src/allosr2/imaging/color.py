"""Color correction: an enlarged picture keeps its detail and takes its colors from the input."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

LEVELS = 5
"""Levels of the a-trous pyramid; the last one blurs with a standard deviation of 13 px."""

RADIUS = 2**LEVELS - 1
"""Pixels farther away than this (in either axis) have no influence on a result: 31 px."""

_BAND = 512
"""Rows that are blurred at a time: a picture of 200 megapixels needs no further copies of itself."""


def match_color(
    sr: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 3 h w"]:
    """Replace the low frequencies of `sr` by those of `reference`; both in [0, 1], as the result.

    The low frequencies are what is left after blurring five times with the separable kernel
    [1 2 1] / 4 whose taps lie 1, 2, 4, 8 and 16 px apart, border pixels repeated (the "wavelet"
    color fix of StableSR, arXiv:2305.07015). The blur is linear, so one blur of the difference
    does: `sr + low(reference - sr)`.

    Each result depends on pixels up to `RADIUS` away. Apply it to a whole picture; on a cut-out,
    the outermost `RADIUS` pixels would differ from those of the whole.
    """
    height = sr.shape[-2]
    matched = torch.empty_like(sr)
    for top in range(0, height, _BAND):
        rows = slice(top, min(top + _BAND, height))
        first, last = max(rows.start - RADIUS, 0), min(rows.stop + RADIUS, height)
        low = _low_frequencies(reference[..., first:last, :] - sr[..., first:last, :])
        low = low[..., rows.start - first : rows.stop - first, :]
        matched[..., rows, :] = low.add_(sr[..., rows, :]).clamp_(0, 1)
    return matched


def _low_frequencies(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    for level in range(LEVELS):
        image = _blur(image, 2**level, axis=-1)
        image = _blur(image, 2**level, axis=-2)
    return image


def _blur(image: Float[Tensor, "b c h w"], distance: int, axis: int) -> Float[Tensor, "b c h w"]:
    sides = (distance, distance, 0, 0) if axis == -1 else (0, 0, distance, distance)
    length = image.shape[axis]
    padded = functional.pad(image, sides, mode="replicate")
    before = padded.narrow(axis, 0, length)
    after = padded.narrow(axis, 2 * distance, length)
    return torch.add(before, after).mul_(0.25).add_(image, alpha=0.5)
