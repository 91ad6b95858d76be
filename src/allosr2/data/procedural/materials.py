"""Materials: an image's colors and textures, and the random fills made of them."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int32

from allosr2.data.procedural.layers import Fills, Textures
from allosr2.data.procedural.palette import Palette, sample_palette
from allosr2.data.procedural.sampling import log_uniform
from allosr2.data.procedural.textures import texture_stack

PALETTE_SIZE = 24
P_GRADIENT, P_TEXTURE = 0.2, 0.65
"""Probabilities that a fill is a gradient, or textured upon a gradient; the rest is plain."""
TINT_STRENGTHS = (0.015, 0.16)
"""Range of the lightness by which a texture departs from the fill's color, at typical contrast."""
STEEPNESS = (0.2, 3.0)
"""Range of a gradient's extent over the texture's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Materials:
    """What the objects of one image are made of; shared by all of its layers."""

    palette: Palette
    textures: Textures


def sample_materials(generator: np.random.Generator, size: int) -> Materials:
    """A palette and a texture stack for an image of side `size`."""
    palette = sample_palette(generator, PALETTE_SIZE)
    return Materials(palette=palette, textures=texture_stack(generator, size))


def sample_fills(
    generator: np.random.Generator,
    materials: Materials,
    center: Float[np.ndarray, "n 2"],
    radius: Float[np.ndarray, " n"],
) -> Fills:
    """Fills for n objects at `center` (x, y) of size `radius`, pixels; column i + 1 is object i's.

    Column 0 is transparent. A gradient spans its object: linear, or round and darkest or lightest
    on one side, as a ball is.
    """
    count, colors = len(radius), materials.palette.colors
    base, other = colors[generator.integers(len(colors), size=(2, count))]
    kind = generator.random(count)
    textured, graded = kind < P_TEXTURE, kind < P_TEXTURE + P_GRADIENT

    strength = log_uniform(generator, *TINT_STRENGTHS, count)
    strength *= generator.choice([-1.0, 1.0], count) * materials.palette.contrast**0.7
    # Light and shade leave a thing's hue: they scale its color. Gloss and dust do not: they add.
    pure = 0.5 + 0.5 * base / (base.max(axis=1, keepdims=True) + 1e-3)
    tint = strength[:, None] * pure + 0.2 * (other - base)

    angle = generator.uniform(0.0, 2.0 * math.pi, count)
    steepness = graded * log_uniform(generator, *STEEPNESS, count) / radius
    slope = steepness[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    bend = steepness / radius * generator.choice([-0.7, 0.0, 0.0, 0.7], count)
    offset = bend * (center**2).sum(axis=1) - (slope * center).sum(axis=1)
    slope -= 2.0 * bend[:, None] * center
    amplitude = textured * generator.uniform(0.3, 1.0, count)
    return Fills(
        color=_after_transparent(np.column_stack([base, np.ones(count)])),
        tint=_after_transparent(tint),
        plane=_after_transparent(np.column_stack([offset, slope, bend])),
        texel=_texels(generator, materials.textures, count),
        amplitude=np.concatenate([[0.0], amplitude]).astype(np.float32),
    )


def _after_transparent(rows: Float[np.ndarray, "n c"]) -> Float32[np.ndarray, "c m"]:
    return np.concatenate([np.zeros_like(rows[:1]), rows]).T.astype(np.float32, order="C")


def _texels(
    generator: np.random.Generator, textures: Textures, count: int
) -> Int32[np.ndarray, "3 m"]:
    """A texture for each of `count` fills, in one of the eight poses of a square."""
    number, size = textures.shape[:2]
    chosen = generator.integers(number, size=count + 1) * size * size
    mirror_x, mirror_y, transposed = generator.integers(2, size=(3, count + 1)) == 1
    step_x, step_y = np.where(mirror_x, -1, 1), np.where(mirror_y, -size, size)
    first = chosen + (size - 1) * (mirror_x + size * mirror_y)
    steps = np.where(transposed, [step_y, step_x], [step_x, step_y])
    return np.vstack([first, steps]).astype(np.int32)
