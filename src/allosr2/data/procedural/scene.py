"""Procedural images: families of scenes, laid out in layers, lit and photographed."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from allosr2.data.procedural.drawings import drawing_layer
from allosr2.data.procedural.facades import facade_layer
from allosr2.data.procedural.layers import Layer, over, render_whole, to_bytes
from allosr2.data.procedural.leaves import leaf_layer
from allosr2.data.procedural.lens import defocus, defocus_beyond, point_spread
from allosr2.data.procedural.lettering import text_layer
from allosr2.data.procedural.lines import line_layer
from allosr2.data.procedural.materials import Materials, sample_fills, sample_materials
from allosr2.data.procedural.sampling import log_uniform
from allosr2.data.procedural.terrain import terrain_layer
from allosr2.errors import ConfigError

MIN_SIZE = 16

COVERING_DENSITY = 3.0
"""Greatest leaf area over image area of a layer: 5% of the ground shows through."""
P_TERRAIN = 0.3
"""Probability that the ground of leaves is terrain instead of one fill."""
P_FRONT = 0.35
"""Probability of each further, nearer layer of leaves, up to two."""
P_SHADOW = 0.5
"""Probability that a layer casts a shadow on those behind it."""
P_DEFOCUS = 0.35
"""Probability that layers at other depths than that in focus are blurred."""
APERTURES = (1.5, 10.0)
"""Range of the radius in pixels of what is farthest out of focus."""
P_HAZE = 0.2
"""Probability that distant layers fade into the air."""
P_SHADING = 0.7
"""Probability of uneven illumination."""
P_FOCAL_PLANE = 0.12
"""Probability that sharpness falls off toward one side of the image."""
POINT_SPREADS = (0.0, 0.06)
"""Range of the share of light that a pixel gives each neighbor; 0.12 halves what is finest."""

Family = Callable[[np.random.Generator, int, Materials], list[Layer]]


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
    image = photograph(generator, family(generator, size, materials), materials)
    if generator.random() < P_SHADING:
        image = image * _illumination(generator, size)
    if generator.random() < P_FOCAL_PLANE:
        image = _focal_plane(generator, image)
    return to_bytes(point_spread(image, generator.uniform(*POINT_SPREADS)))


def photograph(
    generator: np.random.Generator, scene: list[Layer], materials: Materials
) -> Float32[np.ndarray, "3 s s"]:
    """A scene's layers, from the farthest, which is opaque, to the nearest, as a lens sees them.

    Each stands at its depth: in part those away from the one in focus are blurred, or the
    farther ones hazy. In part they cast shadows.
    """
    nearness = np.sort(generator.random(len(scene)))  # inverse depths
    aperture = log_uniform(generator, *APERTURES) if generator.random() < P_DEFOCUS else 0.0
    focus = nearness[generator.integers(len(scene))]
    haze = generator.uniform(0.2, 0.9) if generator.random() < P_HAZE else 0.0
    colors = materials.palette.colors
    air = (0.5 + 0.5 * colors[generator.integers(len(colors))])[:, None, None]

    image = scene[0]
    for number, (layer, near) in enumerate(zip(scene, nearness.tolist(), strict=True)):
        if haze:
            share = np.float32(haze * (1.0 - near))
            layer = layer.copy()
            layer[:3] += share * (layer[3] * air - layer[:3])
        layer = defocus(layer, aperture * abs(near - focus))
        if number == 0:
            image = layer[:3]
            continue
        if generator.random() < P_SHADOW:
            image = image * _shadow(generator, layer)
        image = layer[:3] + (1.0 - layer[3]) * image
    return image


def leaves_scene(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """Dead leaves on some ground, in part with nearer layers."""
    grounded = terrain_layer if generator.random() < P_TERRAIN else _ground
    density = COVERING_DENSITY * generator.random() ** 0.5
    scene = [grounded(generator, size, materials), leaf_layer(generator, size, materials, density)]
    for _ in range(2):
        if generator.random() < P_FRONT:
            density = generator.uniform(0.1, 0.9)
            scene.append(leaf_layer(generator, size, materials, density))
    return scene


def text_scene(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """Text on a plain, graded, textured or leafy ground."""
    ground = _ground(generator, size, materials)
    if generator.random() < 0.3:
        ground = over(leaf_layer(generator, size, materials, generator.uniform(0.5, 3.0)), ground)
    return [over(text_layer(generator, size, materials, float(ground[:3].mean())), ground)]


def lines_scene(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """Line art on a plain, graded or textured ground."""
    return [over(line_layer(generator, size, materials), _ground(generator, size, materials))]


def drawing_scene(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """Flat shapes within inked lines, in part with text or line art."""
    image = over(drawing_layer(generator, size, materials), _ground(generator, size, materials))
    parts = generator.integers(4)
    if parts == 1:
        image = over(line_layer(generator, size, materials), image)
    if parts == 2:
        image = over(text_layer(generator, size, materials, float(image[:3].mean())), image)
    return [image]


def facade_scene(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """A built surface, in part behind a few leaves."""
    back = over(facade_layer(generator, size, materials), _ground(generator, size, materials))
    return [back, *_few_leaves(generator, size, materials)]


def terrain_scene(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """Terrain, in part behind a few leaves."""
    back = terrain_layer(generator, size, materials)
    return [back, *_few_leaves(generator, size, materials)]


def composite_scene(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """A scene of leaves or a facade with lines, text, or both before it."""
    back_scene = leaves_scene if generator.random() < 0.6 else facade_scene
    scene = back_scene(generator, size, materials)
    parts = generator.integers(1, 4)
    if parts & 1:
        scene.append(line_layer(generator, size, materials))
    if parts & 2:
        lightness = float(materials.palette.colors.mean())
        scene.append(text_layer(generator, size, materials, lightness))
    return scene


FAMILIES: dict[Family, float] = {
    leaves_scene: 0.42,
    facade_scene: 0.14,
    composite_scene: 0.14,
    text_scene: 0.1,
    terrain_scene: 0.1,
    lines_scene: 0.05,
    drawing_scene: 0.05,
}
"""The families of images and their probabilities."""


def _ground(generator: np.random.Generator, size: int, materials: Materials) -> Layer:
    """One opaque fill over the whole image."""
    center, radius = np.full((1, 2), size / 2.0), np.full(1, 0.7 * size)
    return render_whole(sample_fills(generator, materials, center, radius), materials.textures)


def _few_leaves(generator: np.random.Generator, size: int, materials: Materials) -> list[Layer]:
    """In half of the cases a layer of them."""
    if generator.random() < 0.5:
        return []
    return [leaf_layer(generator, size, materials, generator.uniform(0.1, 0.6))]


def _shadow(generator: np.random.Generator, front: Layer) -> Float32[np.ndarray, "s s"]:
    """What is left of the light behind `front`: its soft shadow, displaced."""
    size, farthest = front.shape[-1], 6
    y, x = generator.integers(2 * farthest + 1, size=2).tolist()
    alpha = np.pad(front[3], farthest, mode="edge")[y : y + size, x : x + size]
    radius, strength = generator.uniform(0.6, 8.0), generator.uniform(0.2, 0.7)
    return 1.0 - np.float32(strength) * defocus(alpha[None], radius)[0]


def _illumination(generator: np.random.Generator, size: int) -> Float32[np.ndarray, "s s"]:
    """A smooth positive field around 1: curved surfaces and light that falls off."""
    count = int(generator.integers(2, 5))
    nodes = generator.normal(0.0, generator.uniform(0.05, 0.25), (count, count)).astype(np.float32)
    field = Image.fromarray(nodes).resize((size, size), Image.Resampling.BICUBIC)
    return np.exp(np.asarray(field))


def _focal_plane(
    generator: np.random.Generator, image: Float32[np.ndarray, "3 s s"]
) -> Float32[np.ndarray, "3 s s"]:
    """Sharp on one side of a line, out of focus beyond it: a plane that recedes."""
    size = image.shape[-1]
    angle = generator.uniform(0.0, 2.0 * math.pi)
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    distance = (
        np.float32(math.cos(angle)) * axis[None] + np.float32(math.sin(angle)) * axis[:, None]
    )
    share = (distance - np.float32(generator.uniform(-0.1, 0.3))) / np.float32(0.4)
    return defocus_beyond(image, share.clip(0.0, 1.0), log_uniform(generator, *APERTURES))
