"""Materials: an image's colors and textures, and the random fills made of them."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from allosr2.data.procedural.layers import Fills
from allosr2.data.procedural.sampling import log_uniform
from allosr2.data.procedural.textures import texture_stack

OPPONENT_AXES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
"""Principal axes of RGB in photographs (Ruderman 1998): light, blue-yellow, green-magenta."""
CAST_SCALE = (0.085, 0.03)
"""Laplace scale of an image's mean along the two color axes; photographs: std 0.15, 0.05."""
HUE_SCALE = (0.07, 0.03)
"""Laplace scale of a hue around its image's mean; photographs: std 0.07, 0.03 within a crop."""
WARM_TILT = 0.12
"""Turn of the color plane, radians: warm colors lean to magenta and cold ones to green."""
HUES = 4
"""Greatest number of hues in a palette."""
PALETTE_SIZE = 24
P_GRADIENT, P_TEXTURE = 0.3, 0.5
"""Probabilities that a fill is a gradient, or textured upon a gradient; the rest is plain."""
TINT_STRENGTHS = (0.03, 0.15)
"""Range of the lightness by which a gradient or a texture departs from the fill's color."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Materials:
    """What the objects of one image are made of; shared by all of its layers."""

    colors: Float32[np.ndarray, "n 3"]
    """The palette, RGB in [0, 1]."""
    textures: Float32[np.ndarray, "k s s"]
    """Zero-mean, unit-deviation fields of the image's size."""


def sample_materials(generator: np.random.Generator, size: int) -> Materials:
    """A palette and a texture stack for an image of side `size`."""
    return Materials(
        colors=natural_colors(generator, PALETTE_SIZE), textures=texture_stack(generator, size)
    )


def natural_colors(generator: np.random.Generator, count: int) -> Float32[np.ndarray, "count 3"]:
    """`count` colors of one scene, RGB in [0, 1].

    Lightness varies widely and color little, in a few hues around a common cast, along the
    principal axes of photographs; the color fades toward black and white.
    """
    middle, spread = generator.uniform(0.2, 0.7), generator.uniform(0.05, 0.25)
    light = np.abs(generator.normal(middle, spread, count))
    light = (1.0 - np.abs(1.0 - light)).clip(0.02, 0.98)  # folded at 0 and 1
    cast = generator.laplace(0.0, CAST_SCALE)
    hues = cast + generator.laplace(0.0, HUE_SCALE, (int(generator.integers(1, HUES + 1)), 2))
    chroma = hues[generator.integers(len(hues), size=count)]
    chroma = chroma + generator.normal(0.0, 0.3, (count, 2)) * HUE_SCALE
    turn = [[math.cos(WARM_TILT), math.sin(WARM_TILT)], [-math.sin(WARM_TILT), math.cos(WARM_TILT)]]
    chroma = chroma @ turn
    chroma *= np.sqrt(4.0 * light * (1.0 - light))[:, None]
    opponent = np.column_stack([math.sqrt(3.0) * light, chroma])
    return (opponent @ OPPONENT_AXES).clip(0.0, 1.0).astype(np.float32)


def sample_fills(
    generator: np.random.Generator,
    materials: Materials,
    center: Float[np.ndarray, "n 2"],
    radius: Float[np.ndarray, " n"],
) -> Fills:
    """Fills for n objects at `center` (x, y) of size `radius`, pixels; row i + 1 is object i's.

    Row 0 is transparent. A gradient spans its object: its weight is -1 to 1 over the diameter.
    """
    count = len(radius)
    chosen = generator.integers(len(materials.colors), size=(2, count))
    base, other = materials.colors[chosen[0]], materials.colors[chosen[1]]
    kind = generator.random(count)
    textured = kind < P_TEXTURE
    graded = kind < P_TEXTURE + P_GRADIENT

    strength = log_uniform(generator, *TINT_STRENGTHS, count)
    tint = strength[:, None] * generator.choice([-1.0, 1.0], (count, 1)) + 0.2 * (other - base)
    angle = generator.uniform(0.0, 2.0 * math.pi, count)
    steepness = graded * generator.uniform(0.0, 1.0, count) / radius
    slope = steepness[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    offset = -(slope * center).sum(axis=1)
    amplitude = textured * generator.uniform(0.3, 1.0, count)
    texture = generator.integers(len(materials.textures), size=count)
    return Fills(
        color=_with_transparent_row(np.column_stack([base, np.ones(count)])),
        tint=_with_transparent_row(np.column_stack([tint, np.zeros(count)])),
        plane=_with_transparent_row(np.column_stack([offset, slope])),
        texture=np.concatenate([[0], texture]).astype(np.int32),
        amplitude=np.concatenate([[0.0], amplitude]).astype(np.float32),
    )


def _with_transparent_row(rows: np.ndarray) -> Float32[np.ndarray, "n c"]:
    return np.concatenate([np.zeros_like(rows[:1]), rows]).astype(np.float32)
