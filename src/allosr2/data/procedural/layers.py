"""Layers: labels painted with fills, antialiased by coverage, and laid over one another.

Layers are planar, channels first: NumPy is several times faster on long rows than on pixels of four.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from allosr2.data.procedural.labels import Labels

Layer = Float32[np.ndarray, "4 s s"]
"""RGBA, premultiplied, in [0, 1] or a little beyond."""
Textures = Float32[np.ndarray, "k s s"]
"""Zero-mean, unit-deviation fields of an image's size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fills:
    """What each label is painted with; column 0 is transparent in a layer.

    The color at pixel (x, y) is
    `color + tint * (plane . (1, x, y, x^2 + y^2) + amplitude * texture(x, y))`.
    """

    color: Float32[np.ndarray, "4 n"]
    """Premultiplied RGBA in [0, 1]; all zero is transparent."""
    tint: Float32[np.ndarray, "3 n"]
    """RGB direction along which gradient and texture vary."""
    plane: Float32[np.ndarray, "4 n"]
    """Coefficients of the gradient: constant, x, y and x^2 + y^2, in pixels."""
    texel: Int32[np.ndarray, "3 n"]
    """Where in the raveled textures a pixel's value is: at `texel . (1, x, y)`."""
    amplitude: Float32[np.ndarray, " n"]
    """Weight of the texture; 0 leaves a plain color or gradient."""


def render(labels: Labels, fills: Fills, textures: Textures) -> Layer:
    """Paint labels.

    Textures and gradients are evaluated once per pixel and edges by coverage, so a boundary is
    antialiased while a texture keeps its full bandwidth.
    """
    size = textures.shape[-1]
    layer = _paint(labels[0], *_pixels(size), fills, textures)
    # Only pixels on a boundary see several labels: the rest need a single evaluation.
    y, x = np.nonzero((labels[1:] != labels[0]).any(axis=0))
    samples = _paint(labels[:, y, x], x.astype(np.int32), y.astype(np.int32), fills, textures)
    layer[:, y, x] = samples.mean(axis=1)
    return layer


def _pixels(size: int) -> tuple[Int32[np.ndarray, "1 s"], Int32[np.ndarray, "s 1"]]:
    """Coordinates x and y of an image's pixels."""
    axis = np.arange(size, dtype=np.int32)
    return axis[None], axis[:, None]


def _paint(
    label: UInt8[np.ndarray, "*m"],
    x: Int32[np.ndarray, "*#m"],
    y: Int32[np.ndarray, "*#m"],
    fills: Fills,
    textures: Textures,
) -> Float32[np.ndarray, "4 *m"]:
    """Colors at pixels of these labels and coordinates."""
    index = label.astype(np.intp)  # once, or every lookup would

    def product(table: np.ndarray, factor: np.ndarray) -> np.ndarray:
        found = table.take(index)
        found *= factor
        return found

    texel = product(fills.texel[1], x)
    texel += product(fills.texel[2], y)
    texel += fills.texel[0].take(index)
    weight = product(fills.amplitude, textures.ravel().take(texel))
    u, v = x.astype(np.float32), y.astype(np.float32)
    weight += product(fills.plane[1], u)
    weight += product(fills.plane[2], v)
    weight += product(fills.plane[3], u * u + v * v)
    weight += fills.plane[0].take(index)
    layer = np.empty((4, *label.shape), np.float32)
    for channel in range(3):
        np.add(
            product(fills.tint[channel], weight),
            fills.color[channel].take(index),
            out=layer[channel],
        )
    layer[3] = fills.color[3].take(index)
    return layer


def render_whole(fills: Fills, textures: Textures) -> Layer:
    """Paint the whole image with fill 1, as `render` does where every label is 1."""
    size = textures.shape[-1]
    return _paint(np.ones((size, size), np.uint8), *_pixels(size), fills, textures)


def over(front: Layer, back: Layer) -> Layer:
    """The premultiplied `front` laid over `back` (Porter and Duff, 1984)."""
    return front + (1.0 - front[3]) * back


def to_bytes(image: Float32[np.ndarray, "3 s s"]) -> UInt8[np.ndarray, "s s 3"]:
    """Channels last, rounded to 8 bits, clipped to the range [0, 1] first."""
    levels = image * np.float32(255) + np.float32(0.5)
    return np.ascontiguousarray(levels.clip(0.0, 255.0).astype(np.uint8).transpose(1, 2, 0))
