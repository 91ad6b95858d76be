"""Label maps: which of many shapes lies on top, drawn finer than pixels so that edges are smooth."""

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

SUPERSAMPLE = 4
"""Shapes are drawn this many times larger than the image."""
SAMPLES = ((0, 1), (1, 3), (2, 0), (3, 2))
"""Row and column of the samples taken of a pixel: one in each row and one in each column of its
SUPERSAMPLE^2, so that an edge has five levels even where it is nearly level or upright."""
MOST_LABELS = 255
"""Greatest label. Bytes are what Pillow fills fastest, by far."""

Labels = UInt8[np.ndarray, "n s s"]
"""The labels at a pixel's SAMPLES, for every pixel; 0 where there is no shape."""


def label_canvas(size: int) -> tuple[UInt8[np.ndarray, "S S"], ImageDraw.ImageDraw]:
    """Zeros of SUPERSAMPLE times `size`, and a pen that draws into them."""
    side = SUPERSAMPLE * size
    canvas = np.zeros((side, side), np.uint8)
    image = Image.frombuffer("L", (side, side), canvas, "raw", "L", 0, 1)
    # The pen would draw into a copy else.
    image.readonly = 0
    return canvas, ImageDraw.Draw(image)


def sampled(canvas: UInt8[np.ndarray, "S S"]) -> Labels:
    """What a canvas holds at the samples of each pixel."""
    return np.stack([canvas[row::SUPERSAMPLE, column::SUPERSAMPLE] for row, column in SAMPLES])


def draw_polygons(
    size: int,
    vertices: Float[np.ndarray, "v 2"],
    counts: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
) -> Labels:
    """Labels of an image of side `size` where each polygon hides those before it.

    The polygons' `vertices` (x, y), in pixels, lie one after the other, `counts` for each.
    """
    canvas, pen = label_canvas(size)
    corners, ends = to_corners(vertices), (2 * np.cumsum(counts)).tolist()
    for start, end, label in zip([0, *ends[:-1]], ends, labels.tolist(), strict=True):
        pen.polygon(corners[start:end], fill=label)
    return sampled(canvas)


def to_corners(vertices: Float[np.ndarray, "v 2"]) -> list[float]:
    """Points (x, y) in pixels as a pen takes them."""
    return (SUPERSAMPLE * vertices).ravel().tolist()
