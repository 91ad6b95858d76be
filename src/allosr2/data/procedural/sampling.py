"""Laws of sizes and directions that several kinds of images draw from."""

import math
from typing import overload

import numpy as np
from jaxtyping import Float64

P_UPRIGHT = 0.4
"""Probability that what has a direction follows rows and columns of pixels, as much does that people build."""


def draw_upright(generator: np.random.Generator) -> bool:
    """Whether the next thing is to stand upright in the picture."""
    return generator.random() < P_UPRIGHT


def sample_angle(generator: np.random.Generator) -> float:
    """An angle in [0, 2 pi) radians: with probability `P_UPRIGHT` a multiple of pi / 2, else uniform."""
    if draw_upright(generator):
        return float(generator.integers(4)) * math.pi / 2.0
    return generator.uniform(0.0, 2.0 * math.pi)


def sample_radii(
    generator: np.random.Generator, count: int, r_min: float, r_max: float
) -> Float64[np.ndarray, " count"]:
    """`count` radii in [r_min, r_max] of density p(r) ~ r^-3, by inversion of the distribution.

    The exponent 3 makes a dead-leaves image scale invariant (Ruderman 1997; Lee, Mumford and
    Huang 2001), which is what gives it a photograph's 1/f^2 power spectrum.
    """
    u = generator.random(count)
    return r_min / np.sqrt(1.0 - u * (1.0 - (r_min / r_max) ** 2))


def mean_squared_radius(r_min: float, r_max: float) -> float:
    """E[r^2] under the law of `sample_radii`."""
    return 2.0 * math.log(r_max / r_min) / (r_min**-2 - r_max**-2)


@overload
def log_uniform(generator: np.random.Generator, low: float, high: float) -> float: ...
@overload
def log_uniform(
    generator: np.random.Generator, low: float, high: float, count: int
) -> Float64[np.ndarray, " count"]: ...
def log_uniform(
    generator: np.random.Generator, low: float, high: float, count: int | None = None
) -> float | Float64[np.ndarray, " count"]:
    """Drawn so that the logarithm is uniform between those of `low` and `high`."""
    exponent = generator.uniform(math.log(low), math.log(high), count)
    return math.exp(exponent) if isinstance(exponent, float) else np.exp(exponent)
