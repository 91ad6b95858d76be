"""Line art: hatching, grids, curves, rings and twigs, from hairlines up."""

import math

import numpy as np
from jaxtyping import Float

from allosr2.data.procedural.labels import SUPERSAMPLE, label_canvas, sampled, to_corners
from allosr2.data.procedural.layers import Layer, render
from allosr2.data.procedural.materials import Materials, sample_fills
from allosr2.data.procedural.sampling import log_uniform, sample_angle

GROUPS = (2, 5)
"""Least and greatest number of line groups in a layer."""
WIDTHS = (0.75, 4.0)
"""Range of line widths in pixels, log-uniform; a pixel's samples miss parts of thinner ones."""
CURVE_POINTS = 24

Polylines = list[Float[np.ndarray, "n 2"]]


def line_layer(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """A layer of a few groups of lines; all lines of a group look alike."""
    count = int(generator.integers(GROUPS[0], GROUPS[1] + 1))
    center = generator.uniform(0.0, size, (count, 2))
    radius = size * log_uniform(generator, 0.15, 0.8, count)
    canvas, pen = label_canvas(size)
    kinds = generator.integers(len(_GROUP_KINDS), size=count)
    for label, kind in enumerate(kinds.tolist(), start=1):
        polylines = _GROUP_KINDS[kind](generator, float(radius[label - 1]))
        width = round(SUPERSAMPLE * log_uniform(generator, *WIDTHS))
        for polyline in polylines:
            pen.line(to_corners(polyline + center[label - 1]), fill=label, width=width)
    fills = sample_fills(generator, materials, center, radius)
    return render(sampled(canvas), fills, materials.textures)


def _hatching(generator: np.random.Generator, radius: float) -> Polylines:
    """Parallel strokes of uneven lengths, in half of the groups crossed by others."""
    strokes: Polylines = []
    for _ in range(int(generator.integers(1, 3))):
        spacing = log_uniform(generator, 2.5, 16.0)
        across = np.arange(-radius, radius, spacing)
        ends = radius * generator.uniform(0.6, 1.0, (2, len(across)))
        straight = np.stack([-ends[0], across, ends[1], across], axis=1).reshape(-1, 2, 2)
        strokes += list(straight @ _rotation(sample_angle(generator)))
    return strokes


def _grid(generator: np.random.Generator, radius: float) -> Polylines:
    ticks = np.arange(-radius, radius, log_uniform(generator, 4.0, 40.0))
    ends = np.full_like(ticks, radius)
    along = np.stack([-ends, ticks, ends, ticks], axis=1).reshape(-1, 2, 2)
    rotation = _rotation(sample_angle(generator))
    return [*(along @ rotation), *(along[..., ::-1] @ rotation)]


def _curves(generator: np.random.Generator, radius: float) -> Polylines:
    """Cubic Bezier curves, each drawn a few times side by side as cables and hair are."""
    t = np.linspace(0.0, 1.0, CURVE_POINTS)[:, None]
    basis = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    curves: Polylines = []
    for _ in range(int(generator.integers(2, 6))):
        control = generator.normal(0.0, radius, (4, 2))
        drift = generator.normal(0.0, log_uniform(generator, 1.0, 12.0), (4, 2))
        repeats = int(generator.integers(1, 9))
        curves += [basis @ (control + step * drift) for step in range(repeats)]
    return curves


def _rings(generator: np.random.Generator, radius: float) -> Polylines:
    """Concentric ellipses."""
    theta = np.linspace(0.0, 2.0 * math.pi, 3 * CURVE_POINTS)[:, None]
    aspect = generator.uniform(0.3, 1.0)
    ellipse = np.hstack([np.cos(theta), aspect * np.sin(theta)])
    ellipse = ellipse @ _rotation(generator.uniform(0.0, math.pi))
    spacing = log_uniform(generator, 3.0, 24.0)
    return [r * ellipse for r in np.arange(spacing, radius, spacing)]


def _twigs(generator: np.random.Generator, radius: float) -> Polylines:
    """A tree of ever shorter branches."""
    start, heading = np.zeros((1, 2)), generator.uniform(0.0, 2.0 * math.pi, 1)
    length, branches = 0.5 * radius, []
    for _ in range(7):
        step = length * generator.uniform(0.6, 1.2, (len(heading), 1))
        end = start + step * np.column_stack([np.cos(heading), np.sin(heading)])
        branches += list(np.stack([start, end], axis=1))
        start, length = np.repeat(end, 2, axis=0), 0.72 * length
        fork = generator.normal(0.0, 0.12, 2 * len(heading))
        heading = np.repeat(heading, 2) + np.tile([-0.4, 0.4], len(heading)) + fork
    return branches


_GROUP_KINDS = (_hatching, _grid, _curves, _rings, _twigs)


def _rotation(angle: float) -> Float[np.ndarray, "2 2"]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, sine], [-sine, cosine]])
