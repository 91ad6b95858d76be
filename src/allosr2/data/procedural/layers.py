"""Layers: label maps painted with fills, antialiased by coverage, and laid over one another."""

from dataclasses import dataclass

import numpy as np
from einops import rearrange
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageFilter

SUPERSAMPLE = 2
"""Label maps are drawn this many times larger; a pixel's color is the mean over its samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fills:
    """What each label of a map is painted with; row 0 is transparent in a layer.

    The color at pixel (x, y) is `color + tint * (plane . (1, x, y) + amplitude * texture(x, y))`.
    """

    color: Float32[np.ndarray, "n 4"]
    """Premultiplied RGBA in [0, 1]; all zero is transparent."""
    tint: Float32[np.ndarray, "n 4"]
    """RGBA direction along which gradient and texture vary; its alpha is 0."""
    plane: Float32[np.ndarray, "n 3"]
    """Constant, x and y coefficient of the linear gradient, in pixels of the final image."""
    texture: Int32[np.ndarray, " n"]
    """Index into the texture stack."""
    amplitude: Float32[np.ndarray, " n"]
    """Weight of the texture; 0 leaves a plain color or gradient."""


def render(
    label_map: Int32[np.ndarray, "S S"], fills: Fills, textures: Float32[np.ndarray, "k s s"]
) -> Float32[np.ndarray, "s s 4"]:
    """Paint a label map of side S = SUPERSAMPLE s into a premultiplied RGBA layer.

    Textures and gradients are evaluated once per pixel and edges by coverage, so a boundary is
    antialiased while a texture keeps its full bandwidth. Values may leave [0, 1] a little.
    """
    size = textures.shape[-1]
    samples = rearrange(
        label_map, "(y i) (x j) -> (i j) (y x)", i=SUPERSAMPLE, j=SUPERSAMPLE
    )  # SUPERSAMPLE^2 s*s
    layer = _paint(samples[0], np.arange(size * size, dtype=np.int32), fills, textures)  # s*s 4
    # Only pixels on a boundary see several labels: the rest need a single evaluation.
    boundary = np.flatnonzero((samples[1:] != samples[0]).any(axis=0)).astype(np.int32)
    covered = samples[:, boundary]
    colors = _paint(covered.ravel(), np.tile(boundary, len(samples)), fills, textures)
    layer[boundary] = colors.reshape(*covered.shape, 4).mean(axis=0)
    return layer.reshape(size, size, 4)


def _paint(
    label: Int32[np.ndarray, " m"],
    pixel: Int32[np.ndarray, " m"],
    fills: Fills,
    textures: Float32[np.ndarray, "k s s"],
) -> Float32[np.ndarray, "m 4"]:
    size = textures.shape[-1]
    row = pixel // np.int32(size)
    y, x = row.astype(np.float32), (pixel - row * np.int32(size)).astype(np.float32)
    plane = fills.plane.take(label, axis=0)
    weight = plane[:, 0] + plane[:, 1] * x + plane[:, 2] * y
    texture = textures.ravel().take(fills.texture.take(label) * np.int32(size * size) + pixel)
    weight += fills.amplitude.take(label) * texture
    layer = fills.tint.take(label, axis=0)
    layer *= weight[:, None]
    layer += fills.color.take(label, axis=0)
    return layer


def render_whole(
    fills: Fills, textures: Float32[np.ndarray, "k s s"]
) -> Float32[np.ndarray, "s s 4"]:
    """Paint the whole image with fill 1, as `render` does where every label is 1."""
    size = textures.shape[-1]
    axis = np.arange(size, dtype=np.float32)
    constant, across, down = fills.plane[1]
    weight = constant + across * axis[None] + down * axis[:, None]
    weight = weight + fills.amplitude[1] * textures[fills.texture[1]]
    return fills.color[1] + fills.tint[1] * weight[..., None]


def over(
    front: Float32[np.ndarray, "s s 4"], back: Float32[np.ndarray, "s s 4"]
) -> Float32[np.ndarray, "s s 4"]:
    """The premultiplied `front` laid over `back` (Porter and Duff, 1984)."""
    return front + (1.0 - front[..., 3:]) * back


def soften(layer: Float32[np.ndarray, "s s *c"], sigma: float) -> Float32[np.ndarray, "s s *c"]:
    """A mask, an image (c = 3) or a premultiplied layer (c = 4), blurred by `sigma` pixels.

    Stands for a lens out of focus; the result is rounded to 8 bits.
    """
    blurred = Image.fromarray(to_bytes(layer)).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(blurred, dtype=np.float32) / np.float32(255)


def cast_shadow(
    back: Float32[np.ndarray, "s s 4"],
    front: Float32[np.ndarray, "s s 4"],
    offset: tuple[int, int],
    sigma: float,
    strength: float,
) -> Float32[np.ndarray, "s s 4"]:
    """`back` darkened by a soft shadow of `front`, displaced by `offset` (y, x) pixels."""
    occlusion = soften(np.roll(front[..., 3], offset, axis=(0, 1)), sigma)
    darkened = back.copy()
    darkened[..., :3] *= 1.0 - strength * occlusion[..., None]
    return darkened


def to_bytes(image: Float32[np.ndarray, "s s *c"]) -> UInt8[np.ndarray, "s s *c"]:
    """Rounded to 8 bits, clipped to the range [0, 1] first."""
    return (image.clip(0.0, 1.0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
