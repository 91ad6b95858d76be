"""Procedural images: families of scenes, laid out in layers, lit and focused."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from allosr2.data.procedural.facades import facade_layer
from allosr2.data.procedural.layers import cast_shadow, over, render_whole, soften, to_bytes
from allosr2.data.procedural.leaves import leaf_layer
from allosr2.data.procedural.lettering import text_layer
from allosr2.data.procedural.lines import line_layer
from allosr2.data.procedural.materials import Materials, sample_fills, sample_materials
from allosr2.data.procedural.terrain import terrain_layer
from allosr2.errors import ConfigError

MIN_SIZE = 16

P_FRONT = 0.35
"""Probability of a second, nearer layer of leaves before the first."""
P_DEFOCUS = 0.5
"""Probability that one of two layers of leaves is out of focus."""
P_SHADING = 0.7
"""Probability of uneven illumination."""
P_FOCAL_PLANE = 0.12
"""Probability that sharpness falls off toward one side of the image."""
BLUR_SIGMAS = (0.8, 4.0)
"""Range of the blur of what is out of focus, pixels."""
COVERING_DENSITY = 3.0
"""Greatest leaf area over image area of a layer: 5% of the ground shows through."""
P_TERRAIN = 0.3
"""Probability that the ground of leaves is terrain instead of one fill."""

Layer = Float32[np.ndarray, "size size 4"]


def procedural_image(seed: int, index: int, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Image `index` of the endless sequence `seed`: RGB, 0 to 255, `size` pixels a side.

    A function of the three arguments alone (and of which fonts and which versions of NumPy and
    Pillow are installed), so images can be made in any order and by any number of processes.
    One of the families in `FAMILIES` is drawn with its probability.

    Raises ConfigError where size < 16 or where seed or index is negative.
    """
    if size < MIN_SIZE:
        raise ConfigError(f"size = {size}: a procedural image needs {MIN_SIZE} pixels or more")
    if seed < 0 or index < 0:
        raise ConfigError(f"seed = {seed}, index = {index}: both must be 0 or greater")
    generator = np.random.default_rng(np.random.SeedSequence((seed, index)))
    families, probabilities = zip(*FAMILIES.items(), strict=True)
    family = families[generator.choice(len(families), p=probabilities)]
    materials = sample_materials(generator, size)
    image = family(generator, size, materials)[..., :3]
    if generator.random() < P_SHADING:
        image = image * _illumination(generator, size)
    if generator.random() < P_FOCAL_PLANE:
        image = _focal_plane(generator, image)
    return to_bytes(image)


def leaves_scene(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """Dead leaves, in part with a nearer layer; either layer may be out of focus."""
    ground = _ground(generator, size, materials)
    if generator.random() < P_TERRAIN:
        ground = terrain_layer(generator, size, materials)
    density = COVERING_DENSITY * generator.random() ** 0.5
    back = over(leaf_layer(generator, size, materials, density), ground)
    if generator.random() >= P_FRONT:
        return back
    front = leaf_layer(generator, size, materials, generator.uniform(0.3, 1.0))
    if generator.random() < P_DEFOCUS:
        sigma = generator.uniform(*BLUR_SIGMAS)
        if generator.random() < 0.7:
            back = soften(back, sigma)
        else:
            front = soften(front, sigma)
    return _stack(generator, front, back)


def text_scene(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """Text on a plain, graded, textured or leafy ground."""
    if generator.random() < 0.7:
        ground = _ground(generator, size, materials)
    else:
        ground = leaves_scene(generator, size, materials)
    return over(text_layer(generator, size, materials, float(ground[..., :3].mean())), ground)


def lines_scene(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """Line art on a plain, graded or textured ground."""
    return over(line_layer(generator, size, materials), _ground(generator, size, materials))


def facade_scene(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """A built surface, in part behind a few leaves."""
    back = over(facade_layer(generator, size, materials), _ground(generator, size, materials))
    if generator.random() < 0.5:
        return back
    front = leaf_layer(generator, size, materials, generator.uniform(0.1, 0.6))
    return _stack(generator, front, back)


def composite_scene(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """A scene of leaves or a facade with lines, text, or both upon it."""
    back_scene = leaves_scene if generator.random() < 0.6 else facade_scene
    image = back_scene(generator, size, materials)
    parts = generator.integers(1, 4)
    if parts & 1:
        image = _stack(generator, line_layer(generator, size, materials), image)
    if parts & 2:
        lightness = float(image[..., :3].mean())
        image = over(text_layer(generator, size, materials, lightness), image)
    return image


def terrain_scene(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """Terrain, in part behind a few leaves."""
    back = terrain_layer(generator, size, materials)
    if generator.random() < 0.5:
        return back
    front = leaf_layer(generator, size, materials, generator.uniform(0.1, 0.6))
    return _stack(generator, front, back)


FAMILIES: dict[Callable[[np.random.Generator, int, Materials], Layer], float] = {
    leaves_scene: 0.42,
    facade_scene: 0.15,
    composite_scene: 0.15,
    text_scene: 0.12,
    terrain_scene: 0.1,
    lines_scene: 0.06,
}
"""The families of images and their probabilities."""


def _ground(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """One opaque fill over the whole image."""
    center, radius = np.full((1, 2), size / 2.0), np.full(1, 0.7 * size)
    return render_whole(sample_fills(generator, materials, center, radius), materials.textures)


def _stack(generator: np.random.Generator, front: Layer, back: Layer) -> Layer:
    """`front` over `back`, in half of the cases with the shadow that it casts."""
    if generator.random() < 0.5:
        dy, dx = generator.integers(-6, 7, size=2).tolist()
        sigma, strength = generator.uniform(0.5, 5.0), generator.uniform(0.2, 0.7)
        back = cast_shadow(back, front, (dy, dx), sigma, strength)
    return over(front, back)


def _illumination(generator: np.random.Generator, size: int) -> Float32[np.ndarray, "s s 1"]:
    """A smooth positive field around 1: curved surfaces and light that falls off."""
    count = int(generator.integers(2, 5))
    nodes = generator.normal(0.0, generator.uniform(0.05, 0.3), (count, count)).astype(np.float32)
    field = Image.fromarray(nodes).resize((size, size), Image.Resampling.BICUBIC)
    return np.exp(np.asarray(field))[..., None]


def _focal_plane(
    generator: np.random.Generator, image: Float32[np.ndarray, "s s 3"]
) -> Float32[np.ndarray, "s s 3"]:
    """Sharp on one side of a line, out of focus beyond it."""
    size = len(image)
    angle = generator.uniform(0.0, 2.0 * math.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    distance = math.cos(angle) * axis[None] + math.sin(angle) * axis[:, None]
    share = ((distance - generator.uniform(0.0, 0.3)) / 0.3).clip(0.0, 1.0)[..., None]
    return image + share * (soften(image, generator.uniform(*BLUR_SIGMAS)) - image)
