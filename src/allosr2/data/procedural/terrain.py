"""Terrain: regions bounded by level sets of 1/f noise, as coasts, clouds and bark are."""

import numpy as np
from jaxtyping import Float32
from PIL import Image

from allosr2.data.procedural.layers import SUPERSAMPLE, render
from allosr2.data.procedural.materials import Materials, sample_fills
from allosr2.data.procedural.textures import noise

LEVELS = (2, 6)
"""Least and greatest number of regions' levels."""
EXPONENTS = (2.2, 3.6)
"""Range of alpha in the height's power spectrum 1/f^alpha: from ragged to rounded outlines."""


def terrain_layer(
    generator: np.random.Generator, size: int, materials: Materials
) -> Float32[np.ndarray, "size size 4"]:
    """An opaque premultiplied RGBA layer of nested regions with fractal outlines."""
    height = noise(generator, size, generator.uniform(*EXPONENTS))
    side = SUPERSAMPLE * size
    # Interpolated before it is cut, so that outlines run between samples and get antialiased.
    fine = np.asarray(Image.fromarray(height).resize((side, side), Image.Resampling.BILINEAR))
    count = int(generator.integers(LEVELS[0], LEVELS[1] + 1))
    cuts = np.sort(generator.normal(0.0, 0.8, count - 1)).astype(np.float32)
    label_map = np.ones((side, side), np.int32)
    for cut in cuts:
        label_map += fine > cut
    center, radius = np.full((count, 2), size / 2.0), np.full(count, 0.7 * size)
    return render(label_map, sample_fills(generator, materials, center, radius), materials.textures)
