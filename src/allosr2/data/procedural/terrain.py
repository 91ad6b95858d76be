"""Terrain: regions bounded by level sets of 1/f noise, as coasts, clouds and bark are."""

import numpy as np

from allosr2.data.procedural.labels import SAMPLES, SUPERSAMPLE
from allosr2.data.procedural.layers import Layer, render
from allosr2.data.procedural.materials import Materials, sample_fills
from allosr2.data.procedural.textures import noise

LEVELS = (2, 6)
"""Least and greatest number of regions' levels."""
EXPONENTS = (2.2, 3.6)
"""Range of alpha in the height's power spectrum 1/f^alpha: from ragged to rounded outlines."""


def terrain_layer(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """An opaque layer of nested regions with fractal outlines."""
    height = noise(generator, size, generator.uniform(*EXPONENTS))
    count = int(generator.integers(LEVELS[0], LEVELS[1] + 1))
    cuts = np.sort(generator.normal(0.0, 0.8, count - 1)).astype(np.float32)
    labels = np.ones((len(SAMPLES), size, size), np.uint8)
    # Interpolated before it is cut, so that outlines run between pixels and get antialiased.
    down, across = (np.roll(height, -1, axis) - height for axis in (0, 1))
    for layer, (row, column) in zip(labels, SAMPLES, strict=True):
        y, x = (np.float32((step + 0.5) / SUPERSAMPLE) for step in (row, column))
        sample = height + y * down + x * across
        for cut in cuts:
            layer += sample > cut
    center, radius = np.full((count, 2), size / 2.0), np.full(count, 0.7 * size)
    return render(labels, sample_fills(generator, materials, center, radius), materials.textures)
