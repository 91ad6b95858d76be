"""Measures on pictures that need no weights: PSNR, SSIM, sharpness, and a detector of periodic grids."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from allosr2.errors import ImageError
from allosr2.imaging.tiling import reflected

LUMA_WEIGHTS = (65.481, 128.553, 24.966)
"""Levels of Y for red, green and blue of 1 (ITU-R BT.601, studio swing)."""

_SSIM_SIZE = 11
_SSIM_SIGMA = 1.5
_SSIM_C1 = (0.01 * 255) ** 2
_SSIM_C2 = (0.03 * 255) ** 2

_DETAIL_FROM = 1 / 8
"""Cycles a pixel from which on structure counts as detail: LR's Nyquist frequency at a scale of 4."""

FEWEST_PERIODS = 8
"""Periods that a side must hold, for grid frequencies and the bins between them to be distinct."""


def luma(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Y of ITU-R BT.601, studio swing (16 to 235), float64, of RGB in [0, 1] rounded to 8 bits."""
    return _luma_of_levels(image.to(torch.float64).clamp(0, 1).mul(255).round())


def unrounded_luma(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Y as in `luma` of RGB as it is, neither clamped nor rounded, so that gradients pass."""
    return _luma_of_levels(image * 255)


def _luma_of_levels(levels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    red, green, blue = levels.unbind(dim=1)
    weighted = LUMA_WEIGHTS[0] * red + LUMA_WEIGHTS[1] * green + LUMA_WEIGHTS[2] * blue
    return rearrange(weighted / 255 + 16, "b h w -> b 1 h w")


def psnr_y(sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Peak signal to noise ratio of Y (`luma`, peak 255) in dB, one for each image.

    Y is not rounded and no border is cropped. Equal images give infinity. Float64.

    Raises:
        ImageError: if the shapes differ.
    """
    _check_pair(sr, hr)
    error = (luma(sr) - luma(hr)).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim_y(sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """Structural similarity of Y (`luma`, range 255), one for each image.

    Wang et al. 2004 as in the authors' MATLAB code: 11 x 11 Gaussian window of sigma 1.5, constants
    0.01 and 0.03, population covariances, mean over the windows that lie inside. Float64. Two
    details of pyiqa, on which the field's published figures rest (each moves an image's figure by
    0.002 to 0.02): Y is rounded to whole levels, and a negative structure term counts as 0.

    Raises:
        ImageError: if the shapes differ or a side is shorter than the window.
    """
    _check_pair(sr, hr)
    if min(sr.shape[-2:]) < _SSIM_SIZE:
        raise ImageError(
            f"an image of {_size(sr)} px is too small for SSIM; use sides of {_SSIM_SIZE} or more"
        )
    x, y = luma(sr).round(), luma(hr).round()
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    variance_x = _local_mean(x * x) - mean_x**2
    variance_y = _local_mean(y * y) - mean_y**2
    covariance = _local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variance_x + variance_y + _SSIM_C2)
    return (luminance * structure.clamp(min=0)).mean(dim=(1, 2, 3))


def periodicity(
    image: Float[Tensor, "b 3 h w"], periods: tuple[int, ...] = (8, 16)
) -> Float[Tensor, "b p"]:
    """How far a grid of each period (in pixels) stands out of the spectrum; 1 where there is none.

    For one axis and one period p: Y (`luma`) is cropped to a multiple of p, its lines lose their
    means and get a periodic Hann window, and their power spectra are averaged over all lines. The
    crop puts the grid frequencies k / p cycles a pixel, k = 1 ... p // 2, exactly on bins, from
    which a grid leaks into the next bin only. Each is divided by the geometric mean of its
    neighbors 2 to 5 bins away on both sides (mirrored at Nyquist); geometric, as spectra of
    photographs are powers of the frequency. The result is the mean over k, then over both axes.

    A grid of period 8 has frequencies of period 16 too and raises both. Float64.

    Raises:
        ImageError: if a side is shorter than 8 of the periods.
    """
    y = rearrange(luma(image), "b 1 h w -> b h w")
    if min(y.shape[-2:]) < FEWEST_PERIODS * max(periods):
        raise ImageError(
            f"an image of {_size(image)} px is too small to look for a grid of {max(periods)} px; "
            f"use sides of {FEWEST_PERIODS * max(periods)} or more"
        )
    columns = rearrange(y, "b h w -> b w h")
    # 1e-6: far below one level in one line
    by_period = [
        torch.stack([grid_contrast(lines, period, 1e-6).exp() for lines in (y, columns)]).mean(
            (0, 2)
        )
        for period in periods
    ]
    return torch.stack(by_period, dim=1)


def grid_contrast(
    lines: Float[Tensor, "b n length"], period: int, floor: float
) -> Float[Tensor, "b k"]:
    """Natural logarithm of a grid's power over its neighbors', at frequency k / period, k = 1 ... period // 2.

    As in `periodicity`, for lines along one axis. `floor` is added to every power, in squared units of
    `lines`, so that flat pictures have a contrast of 0. Differentiable.
    """
    length = lines.shape[-1] // period * period
    window = torch.hann_window(length, dtype=lines.dtype, device=lines.device)
    lines = lines[..., :length]
    spectrum: Tensor = torch.fft.rfft(  # pyright: ignore[reportUnknownMemberType]
        (lines - lines.mean(dim=-1, keepdim=True)) * window
    )
    # not abs().square(): the gradient of abs is undefined at 0
    power = (spectrum.real.square() + spectrum.imag.square()).mean(dim=1) + floor  # b f
    grid = torch.arange(1, period // 2 + 1, device=lines.device) * (length // period)
    offsets = torch.tensor([-5, -4, -3, -2, 2, 3, 4, 5], device=lines.device)
    neighbors = grid[:, None] + offsets
    neighbors = torch.where(neighbors > length // 2, length - neighbors, neighbors)
    return power[:, grid].log() - power[:, neighbors].log().mean(dim=-1)


def sharpness(sr: Float[Tensor, "b 3 h w"], hr: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
    """How much of HR's detail is there, in its place and of its strength; 1 is all of it, for each image.

    Detail D is what a Gaussian blur takes from Y (`luma`) that halves the amplitude of an eighth of a cycle
    a pixel: the finest that an LR image of a quarter of the sides can hold. The figure is
    `2 <D_sr, D_hr> / (<D_sr, D_sr> + <D_hr, D_hr>)`, from -1 to 1. Blur makes it smaller, and so does all that
    HR has not: noise, invented texture, halos. Detail of f times the strength has 2 f / (1 + f^2); a smooth
    picture 0, as has one with unrelated detail. Borders are reflected. Float64. 1 where neither has any detail.

    Raises:
        ImageError: if the shapes differ.
    """
    _check_pair(sr, hr)
    of_sr, of_hr = _detail(luma(sr)), _detail(luma(hr))
    agreement = 2 * (of_sr * of_hr).sum(dim=(1, 2, 3))
    power = (of_sr.square() + of_hr.square()).sum(dim=(1, 2, 3))
    # one level in one pixel comes to about a half; below that is rounding
    return torch.where(power > 1e-6, agreement / power, 1.0)


def _detail(plane: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """What a Gaussian blur that halves the amplitude at `_DETAIL_FROM` takes away."""
    sigma = math.sqrt(math.log(2) / 2) / (math.pi * _DETAIL_FROM)
    reach = math.ceil(4 * sigma)
    distance = torch.arange(-reach, reach + 1, dtype=plane.dtype, device=plane.device)
    kernel = torch.exp(-(distance**2) / (2 * sigma**2))
    kernel = rearrange(kernel / kernel.sum(), "k -> 1 1 1 k")
    height, width = plane.shape[-2:]
    rows, columns = (
        reflected(torch.arange(-reach, side + reach, device=plane.device), side)
        for side in (height, width)
    )
    blurred = functional.conv2d(plane[..., columns], kernel)
    blurred = functional.conv2d(blurred[..., rows, :], kernel.mT)
    return plane - blurred


def _local_mean(plane: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 valid_h valid_w"]:
    distance = torch.arange(_SSIM_SIZE, dtype=plane.dtype, device=plane.device) - _SSIM_SIZE // 2
    kernel = torch.exp(-(distance**2) / (2 * _SSIM_SIGMA**2))
    kernel = rearrange(kernel / kernel.sum(), "k -> 1 1 1 k")
    rows = functional.conv2d(plane, kernel)
    return functional.conv2d(rows, rearrange(kernel, "1 1 1 k -> 1 1 k 1"))


def _check_pair(sr: Tensor, hr: Tensor) -> None:
    if sr.shape != hr.shape:
        raise ImageError(
            f"cannot compare images of shapes {tuple(sr.shape)} and {tuple(hr.shape)}; "
            "give pairs of one size"
        )


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]} x {image.shape[-1]}"
