"""Dead leaves: opaque shapes of power-law sizes that hide one another."""

import math

import numpy as np
from jaxtyping import Float, Float32, Int

from allosr2.data.procedural.labels import MOST_LABELS, draw_polygons
from allosr2.data.procedural.layers import Layer, render
from allosr2.data.procedural.materials import Materials, sample_fills
from allosr2.data.procedural.perspective import homography, project
from allosr2.data.procedural.sampling import log_uniform, mean_squared_radius, sample_radii

SMALLEST_RADII = (2.0, 12.0)
"""Range of r_min in pixels, drawn per layer; r_max is a share of the image's side."""
MAX_LEAVES_PER_PIXEL = 0.007
"""Bound on the number of leaves, which is what a layer's time grows with."""
SHARED_LOOKS = 64
"""Where there are more leaves than labels, the smaller ones share this many fills."""
P_PLANE = 0.25
"""Probability that leaves lie on a plane that recedes, instead of facing the viewer."""
SHAPES = {"disk": 0.7, "ellipse": 0.7, "blob": 1.2, "polygon": 0.5, "rectangle": 0.5}
"""Kinds of leaves with the Dirichlet concentrations that a layer's shares are drawn from."""


def leaf_layer(
    generator: np.random.Generator, size: int, materials: Materials, density: float
) -> Layer:
    """A layer of leaves, p(r) ~ r^-3.

    `density` is the leaves' summed area over the image's: exp(-density) stays uncovered.
    """
    r_min = log_uniform(generator, *SMALLEST_RADII)
    center, radius = sample_leaves(generator, size, density, r_min)
    vertices, counts = leaf_outlines(generator, center, radius)
    if generator.random() < P_PLANE:
        matrix = _receding(generator, size)
        vertices, foot = (
            project(vertices, matrix),
            project(center + radius[:, None] * [0, 1], matrix),
        )
        center = project(center, matrix)
        radius = np.linalg.norm(foot - center, axis=1)
    label = _labels(radius)
    first = np.unique(label, return_index=True)[1]  # whose center and radius a fill is made for
    fills = sample_fills(generator, materials, center[first], radius[first])
    # A gradient is its own leaf's alone.
    fills.plane[:, MOST_LABELS - SHARED_LOOKS + 1 :] = 0.0
    labels = draw_polygons(size, vertices, counts, label)
    return render(labels, fills, materials.textures)


def _labels(radius: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """A label for each leaf, 1 and up without gaps: one of its own for each of the largest."""
    label = np.arange(1, len(radius) + 1)
    if len(radius) > MOST_LABELS:
        own = MOST_LABELS - SHARED_LOOKS
        larger = np.argpartition(-radius, own)
        label[larger[:own]] = np.arange(1, own + 1)
        label[larger[own:]] = own + 1 + np.arange(len(radius) - own) % SHARED_LOOKS
    return label


def sample_leaves(
    generator: np.random.Generator, size: int, density: float, r_min: float
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """Centers (x, y) and radii in pixels of leaves of no less than `r_min`."""
    r_max = max(size * generator.uniform(0.25, 0.6), 1.5 * r_min)
    area = math.pi * mean_squared_radius(r_min, r_max)
    # Centers lie up to a radius outside, or large leaves would be missing along the border.
    margin = 0.25 * r_max
    extent = size + 2.0 * margin
    count = min(density * extent**2 / area, MAX_LEAVES_PER_PIXEL * extent**2)
    radius = sample_radii(generator, max(1, round(count)), r_min, r_max)
    return generator.uniform(-margin, size + margin, (len(radius), 2)), radius


def _receding(generator: np.random.Generator, size: int) -> Float[np.ndarray, "3 3"]:
    """A homography of the image that enlarges its near side; its far side stays as it is."""
    wider, longer = generator.uniform(0.2, 0.7), generator.uniform(0.0, 0.3)
    side = np.array([[0.0, 0.0], [1.0, 0.0], [1.0 + wider, 1.0 + longer], [-wider, 1.0 + longer]])
    angle = generator.normal(0.0, 0.3)
    turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    corners = size * ((side - 0.5) @ turn + 0.5)
    return homography(corners) @ np.diag([1.0 / size, 1.0 / size, 1.0])


def leaf_outlines(
    generator: np.random.Generator,
    center: Float[np.ndarray, "n 2"],
    radius: Float[np.ndarray, " n"],
) -> tuple[Float32[np.ndarray, "v 2"], Int[np.ndarray, " n"]]:
    """Outlines (x, y) in pixels, one after the other, and their numbers of vertices.

    Each has one of SHAPES, in shares drawn for the layer: scenes prefer one shape. Where it has
    aspect 1 it lies within 1.4 radii of its center; a thin one reaches further.
    """
    count = len(radius)
    share = generator.dirichlet(list(SHAPES.values()))
    shape = generator.choice(len(SHAPES), size=count, p=share)
    is_disk, _, is_blob, is_polygon, is_rectangle = (shape == kind for kind in range(len(SHAPES)))
    smooth_counts = np.ceil((5.0 * np.sqrt(radius)).clip(8.0, 72.0)).astype(int)
    counts = np.where(is_rectangle, 4, smooth_counts)
    counts = np.where(is_polygon, generator.integers(3, 9, count), counts)

    leaf = np.repeat(np.arange(count), counts)  # v: whose vertex it is
    turn = (np.arange(len(leaf)) - np.repeat(np.cumsum(counts) - counts, counts)).astype(np.float32)
    on_polygon, on_blob = np.flatnonzero(is_polygon[leaf]), np.flatnonzero(is_blob[leaf])
    turn[on_polygon] += generator.uniform(-0.3, 0.3, len(on_polygon))
    theta = turn * (2.0 * math.pi / counts).astype(np.float32)[leaf]
    rho = np.ones(len(leaf), np.float32)
    rho[on_blob] += _bulge(generator, leaf[on_blob], theta[on_blob], count)

    # A square's corners stand at 45 degrees, so its sides meet the axes that get stretched.
    theta += ((math.pi / 4) * is_rectangle).astype(np.float32)[leaf]
    aspect = np.where(is_disk, 1.0, log_uniform(generator, 0.15, 1.0, count))
    # A radius stands for an area: a thin leaf gets longer.
    x = rho * np.cos(theta) * (radius * aspect**-0.25).astype(np.float32)[leaf]
    y = rho * np.sin(theta) * (radius * aspect**0.75).astype(np.float32)[leaf]
    tilt = generator.uniform(0.0, math.pi, count)
    cosine, sine = (f(tilt).astype(np.float32)[leaf] for f in (np.cos, np.sin))
    middle = center.astype(np.float32)[leaf]
    return middle + np.column_stack([x * cosine - y * sine, x * sine + y * cosine]), counts


def _bulge(
    generator: np.random.Generator,
    leaf: Int[np.ndarray, " v"],
    theta: Float32[np.ndarray, " v"],
    count: int,
) -> Float32[np.ndarray, " v"]:
    """Smooth random departure from a circle, relative to its radius: a few angular harmonics."""
    lobes = np.arange(1, 6, dtype=np.float32)
    weight = (generator.normal(0.0, 0.35, (count, len(lobes))) / lobes).astype(np.float32)
    phase = generator.uniform(0.0, 2.0 * math.pi, (count, len(lobes))).astype(np.float32)
    waves = weight[leaf] * np.cos(theta[:, None] * lobes + phase[leaf])  # v 5
    return waves.sum(axis=-1).clip(-0.7, 0.4)
