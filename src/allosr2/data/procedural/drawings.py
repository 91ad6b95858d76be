"""Drawings: flat shapes with inked outlines, as in cartoons, maps and signs."""

import numpy as np

from allosr2.data.procedural.labels import (
    MOST_LABELS,
    SUPERSAMPLE,
    label_canvas,
    sampled,
    to_corners,
)
from allosr2.data.procedural.layers import Layer, render
from allosr2.data.procedural.leaves import leaf_outlines, sample_leaves
from allosr2.data.procedural.materials import Materials, sample_fills
from allosr2.data.procedural.sampling import log_uniform

SMALLEST_RADII = (6.0, 24.0)
"""Range of the smallest shape's radius in pixels."""
PEN_WIDTHS = (0.75, 3.5)
"""Range of the outlines' width in pixels."""
INK = 0.06
"""Greatest lightness of ink."""
P_PLAIN = 0.8
"""Probability that shapes have one color each, without gradients and textures."""


def drawing_layer(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """A layer of shapes of power-law sizes, each within its line."""
    r_min = log_uniform(generator, *SMALLEST_RADII)
    center, radius = sample_leaves(generator, size, generator.uniform(0.3, 2.0), r_min)
    center, radius = center[: MOST_LABELS - 1], radius[: MOST_LABELS - 1]
    vertices, counts = leaf_outlines(generator, center, radius)
    canvas, pen = label_canvas(size)
    width = round(SUPERSAMPLE * log_uniform(generator, *PEN_WIDTHS))
    ink = len(counts) + 1
    corners, ends = to_corners(vertices), (2 * np.cumsum(counts)).tolist()
    for label, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
        outline = corners[start:end]
        pen.polygon(outline, fill=label)
        pen.line(outline + outline[:4], fill=ink, width=width, joint="curve")
    # The ink is one more object, as wide as the image.
    center, radius = np.vstack([center, [[size / 2.0] * 2]]), np.append(radius, size)
    fills = sample_fills(generator, materials, center, radius)
    if generator.random() < P_PLAIN:
        fills.plane[:], fills.amplitude[:] = 0.0, 0.0
    fills.color[:3, ink] = generator.uniform(0.0, INK)
    fills.tint[:, ink] = 0.0
    return render(sampled(canvas), fills, materials.textures)
