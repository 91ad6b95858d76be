"""Built surfaces in perspective or from the front: rows of windows, bricks, tiles and planks."""

import numpy as np
from jaxtyping import Float, Int

from allosr2.data.procedural.labels import draw_polygons
from allosr2.data.procedural.layers import Layer, render
from allosr2.data.procedural.materials import Materials, sample_fills
from allosr2.data.procedural.perspective import UNIT_SQUARE, homography, project
from allosr2.data.procedural.sampling import draw_upright, log_uniform

CELL_SIDES = (6.0, 48.0)
"""Range of a cell's height in pixels before perspective."""
MAX_CELLS = 400
PERSPECTIVE = 0.35
"""Greatest vertical displacement of a corner, as a share of the image's side.

Sideways it is 0.6 of that; both together keep the wall's outline convex.
"""
LOOKS_PER_KIND = 4
"""Cells repeat: each part of a cell has this many different fills."""


def facade_layer(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """A layer of a wall of repeated cells seen in perspective, or from the front."""
    cells = _cells(generator, size)  # n 4 2, in the unit square
    parts = [UNIT_SQUARE[None], cells, *_cell_parts(generator, cells)]
    quads = np.concatenate(parts)  # m 4 2
    corners = size * (1.4 * UNIT_SQUARE - 0.2)
    if not draw_upright(generator):
        corners = corners + size * PERSPECTIVE * generator.uniform(-1.0, 1.0, (4, 2)) * [0.6, 1.0]
    vertices = project(quads, homography(corners)).reshape(-1, 2)

    looks = [
        1 + kind * LOOKS_PER_KIND + _looks(generator, len(part)) for kind, part in enumerate(parts)
    ]
    labels = draw_polygons(size, vertices, np.full(len(quads), 4), np.concatenate(looks))
    count = len(parts) * LOOKS_PER_KIND
    center, radius = np.full((count, 2), size / 2.0), np.full(count, 0.7 * size)
    return render(labels, sample_fills(generator, materials, center, radius), materials.textures)


def _looks(generator: np.random.Generator, count: int) -> Int[np.ndarray, " count"]:
    """Which look each of `count` cells has: mostly the first."""
    return (LOOKS_PER_KIND * generator.random(count) ** 3).astype(np.int64)


def _cells(generator: np.random.Generator, size: int) -> Float[np.ndarray, "n 4 2"]:
    """Quads of a lattice in the unit square, with joints between them."""
    height = log_uniform(generator, *CELL_SIDES)
    aspect = log_uniform(generator, 0.5, 3.5)
    rows, columns = (max(2, round(1.4 * size / side)) for side in (height, height * aspect))
    shrink = max(1.0, (rows * columns / MAX_CELLS) ** 0.5)
    rows, columns = int(rows / shrink), int(columns / shrink)
    bond = float(generator.choice([0.0, 0.5]))  # running bond shifts every other row by half
    row, column = (index.ravel() for index in np.mgrid[:rows, : columns + 1])
    origin = np.stack([(column - bond * (row % 2)) / columns, row / rows], axis=-1)
    joint = generator.uniform(0.04, 0.45) if bond == 0.0 else generator.uniform(0.04, 0.12)
    cell = np.array([1.0 / columns, 1.0 / rows])
    inset = joint * cell.min() / 2.0
    # The wall cuts the half bricks off at its sides.
    return (origin[:, None] + inset + UNIT_SQUARE * (cell - 2.0 * inset)).clip(0.0, 1.0)


def _cell_parts(
    generator: np.random.Generator, cells: Float[np.ndarray, "n 4 2"]
) -> list[Float[np.ndarray, "m 4 2"]]:
    """Panes inside the cells, for windows; empty for bricks and tiles."""
    if generator.random() < 0.4:
        return []
    frame = generator.uniform(0.04, 0.15)
    columns, rows = generator.integers(1, 3, size=2)
    panes = [
        (UNIT_SQUARE * (1.0 - 2.0 * frame) + frame + [column, row]) / [columns, rows]
        for row in range(rows)
        for column in range(columns)
    ]
    origin, extent = cells[:, :1], cells[:, 2:3] - cells[:, :1]
    return [origin + extent * pane for pane in panes]
