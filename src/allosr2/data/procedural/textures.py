"""Textures: zero-mean scalar fields, sharp to the pixel, that fills are modulated with."""

import math

import numpy as np
from jaxtyping import Float32

from allosr2.data.procedural.patterns import PATTERNS, sample_coordinates
from allosr2.data.procedural.sampling import log_uniform

NOISES_PER_IMAGE = (2, 3)
PATTERNS_PER_IMAGE = (0, 2)
"""Least and greatest number of textures of either kind."""
SPECTRAL_EXPONENTS = (0.9, 3.0)
"""Range of alpha in the power spectrum 1/f^alpha of a noise texture; photographs are near 2."""


def texture_stack(generator: np.random.Generator, size: int) -> Float32[np.ndarray, "k size size"]:
    """The textures of one image: 1/f^alpha noises of several spectra, then patterns.

    Each has mean 0 and standard deviation 1.
    """
    noises = [
        noise(generator, size, generator.uniform(*SPECTRAL_EXPONENTS))
        for _ in range(generator.integers(NOISES_PER_IMAGE[0], NOISES_PER_IMAGE[1] + 1))
    ]
    count = generator.integers(PATTERNS_PER_IMAGE[0], PATTERNS_PER_IMAGE[1] + 1)
    kinds = generator.choice(len(PATTERNS), size=count, replace=False)
    # Some noise on and in a pattern makes it a worn or bent material instead of a test chart.
    patterns = [
        _standardized(
            PATTERNS[kind](generator, sample_coordinates(generator, size, noises[0]))
            + np.float32(generator.uniform(0.0, 0.6)) * noises[1]
        )
        for kind in kinds
    ]
    return np.stack([*noises, *patterns])


def noise(
    generator: np.random.Generator, size: int, alpha: float
) -> Float32[np.ndarray, "size size"]:
    """Noise of power spectrum 1/f^alpha, mean 0 and deviation 1; it continues across its borders.

    In part it is stretched along one direction, as wood and water are, or folded into ridges.
    """
    stretch = log_uniform(generator, 1.0, 8.0) if generator.random() < 0.4 else 1.0
    angle = generator.uniform(0.0, math.pi)
    fy = np.fft.fftfreq(size).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(size).astype(np.float32)[None]
    along = np.float32(stretch * math.cos(angle)) * fx + np.float32(stretch * math.sin(angle)) * fy
    across = np.float32(math.cos(angle)) * fy - np.float32(math.sin(angle)) * fx
    power = along * along + across * across
    power[0, 0] = np.inf
    # Uniform numbers are cheaper, and sums of this many are normal all the same.
    parts = generator.random((*power.shape, 2), dtype=np.float32)
    parts -= np.float32(0.5)
    spectrum = parts.view(np.complex64)[..., 0] * power ** np.float32(-alpha / 4)
    field = _standardized(np.fft.irfft2(spectrum, s=(size, size)))
    # Folding at 0 gives ridges and veins, the phase structure that Gaussian noise lacks.
    return _standardized(-np.abs(field)) if generator.random() < 0.25 else field


def _standardized(field: Float32[np.ndarray, "s s"]) -> Float32[np.ndarray, "s s"]:
    field = field - field.mean()
    return field * np.float32(1.0 / (math.sqrt(np.vdot(field, field) / field.size) + 1e-6))
