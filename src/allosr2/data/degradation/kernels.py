"""Blur kernels: Gaussian, generalized Gaussian, plateau and circular low-pass.

Every kernel is built in float64 on the CPU, sums to 1, and comes as float32 padded with zeros to
`PADDED_SIZE`, so that kernels of different sizes stack. `x` runs along the width, `y` along the
height, and a rotation turns the x axis toward the y axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from allosr2.errors import ConfigError

KERNEL_SIZES = (7, 9, 11, 13, 15, 17, 19, 21)
PADDED_SIZE = 21

KernelFamily = Literal["gaussian", "generalized", "plateau"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EllipticalKernel:
    """A kernel that falls with an elliptical distance from its center."""

    family: KernelFamily
    """How it falls with the distance."""
    size: int
    """Side in pixels, odd."""
    sigma_x: float
    """Width along the first axis, in pixels."""
    sigma_y: float
    """Width along the second axis, in pixels."""
    rotation: float
    """Angle of the first axis, in radians; 0 where both widths are equal."""
    beta: float
    """Exponent of the squared distance; 1 for a Gaussian."""

    def describe(self) -> str:
        """Family, size, widths and exponent in a few words."""
        widths = f"{self.sigma_x:.2f}"
        if self.sigma_y != self.sigma_x:
            widths += f"x{self.sigma_y:.2f} at {math.degrees(self.rotation):.0f} deg"
        beta = "" if self.family == "gaussian" else f", beta {self.beta:.2f}"
        return f"{self.family} {self.size} px, sigma {widths}{beta}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SincKernel:
    """An ideal circular low-pass, cut to a square: it rings like an over-sharpened photograph."""

    size: int
    """Side in pixels, odd."""
    cutoff: float
    """Cut-off frequency in radians a pixel; pi lets everything pass along an axis."""

    def describe(self) -> str:
        """Size and cut-off in a few words."""
        return f"sinc {self.size} px, cutoff {self.cutoff / math.pi:.2f} pi"


Kernel = EllipticalKernel | SincKernel


def build_kernel(kernel: Kernel) -> Float[Tensor, "k k"]:
    """The taps of a drawn kernel, of side `PADDED_SIZE`.

    Raises:
        ConfigError: size, widths or cut-off cannot make a kernel.
    """
    match kernel:
        case SincKernel():
            return sinc_kernel(kernel.size, kernel.cutoff)
        case EllipticalKernel(family="gaussian"):
            return gaussian_kernel(kernel.size, kernel.sigma_x, kernel.sigma_y, kernel.rotation)
        case EllipticalKernel(family="generalized"):
            build = generalized_gaussian_kernel
        case EllipticalKernel():
            build = plateau_kernel
    return build(kernel.size, kernel.sigma_x, kernel.sigma_y, kernel.rotation, kernel.beta)


def gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float, rotation: float
) -> Float[Tensor, "k k"]:
    """`exp(-d/2)`, with d the squared elliptical distance: a bivariate normal density."""
    return generalized_gaussian_kernel(size, sigma_x, sigma_y, rotation, 1.0)


def generalized_gaussian_kernel(
    size: int, sigma_x: float, sigma_y: float, rotation: float, beta: float
) -> Float[Tensor, "k k"]:
    """`exp(-d^beta / 2)`: pointed for beta below 1, boxy above (arXiv:2107.10833, section 3.1)."""
    distance = _squared_distance(size, sigma_x, sigma_y, rotation)
    return _normalize_and_pad(torch.exp(-0.5 * distance**beta))


def plateau_kernel(
    size: int, sigma_x: float, sigma_y: float, rotation: float, beta: float
) -> Float[Tensor, "k k"]:
    """`1 / (1 + d^beta)`: flat at the center, with heavy tails (arXiv:2107.10833, section 3.1)."""
    distance = _squared_distance(size, sigma_x, sigma_y, rotation)
    return _normalize_and_pad(1 / (1 + distance**beta))


def sinc_kernel(size: int, cutoff: float) -> Float[Tensor, "k k"]:
    """`cutoff J1(cutoff r) / (2 pi r)`, the circular low-pass (arXiv:2107.10833, Eq. 6)."""
    if not cutoff > 0:
        raise ConfigError(f"kernel cutoff is {cutoff}: choose a positive frequency, at most pi")
    x, y = _coordinates(size)
    radius = torch.hypot(x, y)
    bessel: Tensor = torch.special.bessel_j1(cutoff * radius)
    taps = cutoff * bessel / (2 * math.pi * radius)
    taps[size // 2, size // 2] = cutoff**2 / (4 * math.pi)  # the limit at r = 0
    return _normalize_and_pad(taps)


def _coordinates(size: int) -> tuple[Float[Tensor, "1 s"], Float[Tensor, "s 1"]]:
    """Distances from the center along the width and along the height."""
    if not (1 <= size <= PADDED_SIZE and size % 2 == 1):
        raise ConfigError(f"kernel size is {size}: choose an odd size from 1 to {PADDED_SIZE}")
    axis = torch.arange(size, dtype=torch.float64) - size // 2
    return axis[None, :], axis[:, None]


def _squared_distance(
    size: int, sigma_x: float, sigma_y: float, rotation: float
) -> Float[Tensor, "s s"]:
    """Squared Mahalanobis distance from the center."""
    if not (sigma_x > 0 and sigma_y > 0):
        raise ConfigError(f"kernel sigma is ({sigma_x}, {sigma_y}): choose positive widths")
    x, y = _coordinates(size)
    cosine, sine = math.cos(rotation), math.sin(rotation)
    along = (cosine * x + sine * y) / sigma_x
    across = (cosine * y - sine * x) / sigma_y
    return along**2 + across**2


def _normalize_and_pad(taps: Float[Tensor, "s s"]) -> Float[Tensor, "k k"]:
    margin = (PADDED_SIZE - taps.shape[0]) // 2
    return F.pad(taps / taps.sum(), (margin,) * 4).float()
