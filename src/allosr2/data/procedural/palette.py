"""Colors of one scene, distributed as photographs' are."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

OPPONENT_AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
"""Principal axes of RGB in photographs (Ruderman 1998): light, blue-yellow, green-magenta."""

# Fitted by moments to 62 photographs under free licenses (landscapes, towns, plants, interiors), 8
# crops of 512 pixels each. The pixels of a crop have a mean and a deviation of lightness (the mean
# of RGB) and of the two other coordinates, these over sqrt(4 light (1 - light)), which is how color
# fades toward black and white. The numbers say how those means and deviations vary over crops.
LIGHT_MEAN = (2.2, 3.2)
"""Beta law of a scene's mean lightness: 0.41 on average, deviation 0.19."""
CAST_SCALES = (0.113, 0.042)
"""Laplace scales of a scene's mean color."""
LOG_DEVIATIONS = ((-1.75, 0.6), (-2.85, 1.0), (-3.7, 0.95))
"""Mean and deviation of the logarithms of a scene's deviations: of lightness and of color.

Lightness was fitted with -1.85; folding at black and white takes the rest.
"""
LOG_CORRELATION = np.array([[1.0, 0.0, 0.0], [0.42, 0.91, 0.0], [0.28, 0.77, 0.57]])
"""Cholesky factor of these logarithms' correlations: what has more contrast has more color."""
CAST_CORRELATION = 0.5
"""Correlation of a color's deviation with its mean's size, in logarithms: gray scenes are all gray."""
CORRELATION_DEVIATION = 0.5
"""Deviation of the correlation, within a scene, of one coordinate with another."""

HUES = (2, 6)
"""Least and greatest number of hues in a palette: the kinds of things in a scene."""
WITHIN_HUE = 0.5
"""Share of a scene's variance that lies within a hue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Palette:
    """The colors of one scene."""

    colors: Float32[np.ndarray, "n 3"]
    """RGB in [0, 1]."""
    contrast: float
    """Deviation of lightness over that of a typical photograph."""


def sample_palette(generator: np.random.Generator, count: int) -> Palette:
    """`count` colors of one scene: a few hues, each in several shades."""
    typical, varied = np.array(LOG_DEVIATIONS).T
    logarithm = LOG_CORRELATION @ generator.standard_normal(3)
    cast = generator.laplace(0.0, 1.0, 2)
    # The logarithm of an exponential variable has mean -Euler's constant, deviation pi / sqrt(6).
    size = (np.log(np.abs(cast) + 1e-9) + np.euler_gamma) * (math.sqrt(6.0) / math.pi)
    logarithm[1:] *= math.sqrt(1.0 - CAST_CORRELATION**2)
    logarithm[1:] += CAST_CORRELATION * size
    deviation = np.exp(typical + varied * logarithm.clip(-2.5, 1.5))
    middle = np.array([generator.beta(*LIGHT_MEAN), *(CAST_SCALES * cast)])

    hues = int(generator.integers(HUES[0], HUES[1] + 1))
    # Laplace: in photographs, too, few pixels are far from the scene's mean, and those are very far.
    unit = generator.laplace(0.0, math.sqrt(0.5), (hues + count, 3)) @ _correlation(generator).T
    unit[:hues] -= unit[:hues].mean(axis=0)  # the scene's mean is drawn already
    shades = math.sqrt(1.0 - WITHIN_HUE) * unit[generator.integers(hues, size=count)]
    shades += math.sqrt(WITHIN_HUE) * unit[hues:]
    light, *chroma = (middle + deviation * shades).T
    light = (1.0 - np.abs(1.0 - np.abs(light))).clip(0.01, 0.99)  # folded at 0 and 1
    fade = np.sqrt(4.0 * light * (1.0 - light))
    opponent = np.column_stack([math.sqrt(3.0) * light, *(fade * chroma)])
    colors = (opponent @ OPPONENT_AXES).clip(0.0, 1.0).astype(np.float32)
    return Palette(colors=colors, contrast=float(deviation[0] / math.exp(typical[0])))


def _correlation(generator: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """Cholesky factor of a random correlation matrix."""
    a, b, c = generator.normal(0.0, CORRELATION_DEVIATION, 3).clip(-0.9, 0.9)
    across, rest = math.sqrt(1.0 - a * a), math.sqrt(1.0 - b * b)
    return np.array(
        [[1.0, 0.0, 0.0], [a, across, 0.0], [b, c * rest, rest * math.sqrt(1.0 - c * c)]]
    )
