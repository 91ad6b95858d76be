"""Dead leaves: opaque shapes of power-law sizes that hide one another."""

import math

import numpy as np
from jaxtyping import Float, Float32, Int, Int32
from PIL import Image, ImageDraw

from allosr2.data.procedural.layers import SUPERSAMPLE, render
from allosr2.data.procedural.materials import Materials, sample_fills
from allosr2.data.procedural.sampling import log_uniform, mean_squared_radius, sample_radii

SMALLEST_RADII = (2.0, 12.0)
"""Range of r_min in pixels, drawn per layer; r_max is a share of the image's side."""
MAX_LEAVES_PER_PIXEL = 0.009
"""Bound on the number of leaves, which is what a layer's time grows with."""
SHAPES = {"disk": 0.7, "ellipse": 0.7, "blob": 1.2, "polygon": 0.5, "rectangle": 0.5}
"""Kinds of leaves with the Dirichlet concentrations that a layer's shares are drawn from."""


def leaf_layer(
    generator: np.random.Generator, size: int, materials: Materials, density: float
) -> Float32[np.ndarray, "size size 4"]:
    """A premultiplied RGBA layer of leaves, p(r) ~ r^-3.

    `density` is the leaves' summed area over the image's: exp(-density) stays uncovered.
    """
    r_min = log_uniform(generator, *SMALLEST_RADII)
    r_max = max(size * generator.uniform(0.25, 0.6), 1.5 * r_min)
    area = math.pi * mean_squared_radius(r_min, r_max)
    # Centers lie up to a radius outside, or large leaves would be missing along the border.
    margin = 0.25 * r_max
    extent = size + 2.0 * margin
    count = min(density * extent**2 / area, MAX_LEAVES_PER_PIXEL * extent**2)
    radius = sample_radii(generator, max(1, round(count)), r_min, r_max)
    center = generator.uniform(-margin, size + margin, (len(radius), 2))
    vertices, counts = leaf_outlines(generator, center, radius)
    label_map = draw_polygons(size, vertices, counts)
    fills = sample_fills(generator, materials, center, radius)
    return render(label_map, fills, materials.textures)


def leaf_outlines(
    generator: np.random.Generator,
    center: Float[np.ndarray, "n 2"],
    radius: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "v 2"], Int[np.ndarray, " n"]]:
    """Outlines (x, y) in pixels, one after the other, and their numbers of vertices.

    Each has one of SHAPES, in shares drawn for the layer: scenes prefer one shape. Where it has
    aspect 1 it lies within 1.4 radii of its center; a thin one reaches further.
    """
    count = len(radius)
    share = generator.dirichlet(np.array(list(SHAPES.values())))
    shape = np.array(list(SHAPES))[generator.choice(len(SHAPES), size=count, p=share)]
    is_polygon, is_rectangle = shape == "polygon", shape == "rectangle"
    smooth_counts = np.ceil((6.0 * np.sqrt(radius)).clip(8.0, 72.0)).astype(int)
    polygon_counts = generator.integers(3, 9, count)
    counts = np.where(is_polygon, polygon_counts, np.where(is_rectangle, 4, smooth_counts))

    leaf = np.repeat(np.arange(count), counts)  # v: whose vertex it is
    turn = np.arange(len(leaf)) - np.repeat(np.cumsum(counts) - counts, counts)
    turn = turn + is_polygon[leaf] * generator.uniform(-0.3, 0.3, len(leaf))
    theta = 2.0 * math.pi * turn / counts[leaf]
    rho = np.ones(len(leaf))
    on_blob = np.flatnonzero((shape == "blob")[leaf])
    rho[on_blob] += _bulge(generator, leaf[on_blob], theta[on_blob], count)

    # A square's corners stand at 45 degrees, so its sides meet the axes that get stretched.
    theta = theta + (math.pi / 4) * is_rectangle[leaf]
    aspect = np.where(shape == "disk", 1.0, log_uniform(generator, 0.15, 1.0, count))
    # A radius stands for an area: a thin leaf gets longer.
    x = rho * np.cos(theta) * (radius * aspect**-0.25)[leaf]
    y = rho * np.sin(theta) * (radius * aspect**0.75)[leaf]
    tilt = generator.uniform(0.0, math.pi, count)
    cosine, sine = np.cos(tilt)[leaf], np.sin(tilt)[leaf]
    return center[leaf] + np.column_stack([x * cosine - y * sine, x * sine + y * cosine]), counts


def _bulge(
    generator: np.random.Generator,
    leaf: Int[np.ndarray, " v"],
    theta: Float[np.ndarray, " v"],
    count: int,
) -> Float[np.ndarray, " v"]:
    """Smooth random departure from a circle, relative to its radius: a few angular harmonics."""
    lobes = np.arange(1, 6)
    weight = generator.normal(0.0, 0.35, (count, len(lobes))) / lobes
    phase = generator.uniform(0.0, 2.0 * math.pi, (count, len(lobes)))
    waves = weight[leaf] * np.cos(theta[:, None] * lobes + phase[leaf])  # v 5
    return waves.sum(axis=-1).clip(-0.7, 0.4)


def draw_polygons(
    size: int, vertices: Float[np.ndarray, "v 2"], counts: Int[np.ndarray, " n"]
) -> Int32[np.ndarray, "S S"]:
    """A label map of SUPERSAMPLE times `size`: i + 1 where polygon i is on top, 0 where none is.

    The polygons' `vertices` (x, y), in pixels, lie one after the other, `counts` for each.
    """
    side = SUPERSAMPLE * size
    image = Image.new("I", (side, side), 0)
    draw = ImageDraw.Draw(image)
    corners = (SUPERSAMPLE * vertices).ravel().tolist()
    ends = (2 * np.cumsum(counts)).tolist()
    for label, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True), start=1):
        draw.polygon(corners[start:end], fill=label)
    return np.asarray(image)
