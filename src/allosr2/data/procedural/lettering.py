"""Text: pages and scattered signs in several fonts, sizes and angles."""

import functools
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

from allosr2.data.procedural.materials import Materials
from allosr2.data.procedural.sampling import log_uniform

FONT_SIZES = (8.0, 60.0)
"""Range of the font size in pixels, log-uniform; at most half of the image's side."""
SIGNS = (2, 6)
"""Least and greatest number of scattered text blocks."""
P_PAGE = 0.4
"""Probability that one block of running text fills the image instead of scattered signs."""
P_PLATE = 0.35
"""Probability that a sign has a plate of its own color."""
P_UPRIGHT = 0.5
"""Probability that a block is not rotated."""
ANGLE_DEVIATION = 25.0
"""Standard deviation of a rotated block's angle, degrees."""
MIN_CONTRAST = 0.25
"""Least difference in lightness between letters and plate or ground."""
LETTERS = "etaoinshrdlcumwfgypbvk" * 3 + "etaoinetaoinxjqz"
MARKS = ".,;:!?-&%#@()/+*='\"$"


def text_layer(
    generator: np.random.Generator, size: int, materials: Materials, ground: float
) -> Float32[np.ndarray, "size size 4"]:
    """A premultiplied RGBA layer of text, legible on a ground of mean lightness `ground`."""
    layer = np.zeros((size, size, 4), np.float32)
    if generator.random() < P_PAGE:
        font_size = min(log_uniform(generator, FONT_SIZES[0], FONT_SIZES[1] / 2.0), size / 2.0)
        columns = max(4, round(2.4 * size / font_size))
        rows = max(2, round(1.1 * size / font_size))
        block = _set_block(generator, font_size, columns, rows, has_plate=False)
        _place(generator, layer, block, materials, ground)
        return layer
    for _ in range(int(generator.integers(SIGNS[0], SIGNS[1] + 1))):
        font_size = min(log_uniform(generator, *FONT_SIZES), size / 2.0)
        columns, rows = int(generator.integers(3, 16)), int(generator.integers(1, 4))
        has_plate = generator.random() < P_PLATE
        block = _set_block(generator, font_size, columns, rows, has_plate=has_plate)
        _place(generator, layer, block, materials, ground)
    return layer


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Coverage masks of a block of text."""

    letters: Float32[np.ndarray, "h w"]
    """Coverage of the letters, in [0, 1]."""
    plate: Float32[np.ndarray, "h w"] | None
    """Coverage of the rectangle around them, in [0, 1]; None where they stand on the ground."""


def _set_block(
    generator: np.random.Generator, font_size: float, columns: int, rows: int, *, has_plate: bool
) -> _Block:
    """Random words, set in a random font and in part rotated."""
    upright = generator.random() < P_UPRIGHT
    # Rotation resamples: a rotated block is set twice as large and reduced after.
    scale = 1 if upright else 2
    font = _font(int(generator.integers(len(font_paths()) + 1)), round(scale * font_size))
    text = "\n".join(_line(generator, columns) for _ in range(rows))
    leading = scale * font_size * generator.uniform(0.0, 0.5)
    measuring = ImageDraw.Draw(Image.new("L", (1, 1)))
    box = measuring.multiline_textbbox((0, 0), text, font=font, spacing=leading)
    margin = 2 * scale + round(0.3 * scale * font_size)
    width, height = (math.ceil(box[i + 2] - box[i]) + 2 * margin for i in (0, 1))
    letters = Image.new("L", (width, height), 0)
    origin = (margin - box[0], margin - box[1])
    ImageDraw.Draw(letters).multiline_text(origin, text, fill=255, font=font, spacing=leading)
    masks = [letters, Image.new("L", (width, height), 255)] if has_plate else [letters]
    if not upright:
        angle = generator.normal(0.0, ANGLE_DEVIATION)
        masks = [
            mask.rotate(angle, Image.Resampling.BILINEAR, expand=True).reduce(scale)
            for mask in masks
        ]
    return _Block(letters=_coverage(masks[0]), plate=_coverage(masks[1]) if has_plate else None)


def _coverage(mask: Image.Image) -> Float32[np.ndarray, "h w"]:
    return np.asarray(mask, dtype=np.float32) / np.float32(255)


def _place(
    generator: np.random.Generator,
    layer: Float32[np.ndarray, "s s 4"],
    block: _Block,
    materials: Materials,
    ground: float,
) -> None:
    """Lay a block over the layer, in place, at random; a larger one is cropped."""
    extent = block.letters.shape
    in_layer, in_block = zip(
        *(_overlap(generator, len(layer), side) for side in extent), strict=True
    )
    region = layer[in_layer]
    texture = materials.textures[generator.integers(len(materials.textures))][in_layer]
    wear = generator.choice([0.0, 0.0, 0.04]).astype(np.float32) * texture[..., None]
    beneath = ground
    if block.plate is not None:
        plate_color = materials.colors[generator.integers(len(materials.colors))]
        beneath = float(plate_color.mean())
        _blend(region, plate_color + wear, block.plate[in_block])
    letter_color = _contrasting(generator, materials, beneath)
    _blend(region, letter_color + wear, block.letters[in_block])


def _overlap(generator: np.random.Generator, size: int, side: int) -> tuple[slice, slice]:
    """Along one axis: the part of the layer that a block covers, and the part of the block."""
    shift = int(generator.integers(abs(size - side) + 1))
    extent = min(size, side)
    moved, whole = slice(shift, shift + extent), slice(0, extent)
    return (moved, whole) if side <= size else (whole, moved)


def _blend(
    region: Float32[np.ndarray, "h w 4"],
    color: Float32[np.ndarray, "h w 3"],
    coverage: Float32[np.ndarray, "h w"],
) -> None:
    """Lay a color over a premultiplied region, in place."""
    region *= 1.0 - coverage[..., None]
    region[..., :3] += coverage[..., None] * color
    region[..., 3] += coverage


def _contrasting(
    generator: np.random.Generator, materials: Materials, beneath: float
) -> Float32[np.ndarray, " 3"]:
    """A palette color far enough in lightness from what is beneath, else black or white."""
    lightness = materials.colors.mean(axis=1)
    legible = np.flatnonzero(np.abs(lightness - beneath) >= MIN_CONTRAST)
    if len(legible) == 0:
        return np.full(3, 0.04 if beneath > 0.5 else 0.96, np.float32)
    return materials.colors[generator.choice(legible)]


def _line(generator: np.random.Generator, columns: int) -> str:
    line = ""
    while len(line) < columns:
        line += _word(generator) + " "
    return line.rstrip()


def _word(generator: np.random.Generator) -> str:
    kind = generator.random()
    length = 1 + int(generator.poisson(4.0))
    if kind < 0.15:
        return "".join(map(str, generator.integers(0, 10, length)))
    word = "".join(LETTERS[i] for i in generator.integers(len(LETTERS), size=length))
    word = word.upper() if kind < 0.3 else word.capitalize() if kind < 0.5 else word
    return word + (MARKS[generator.integers(len(MARKS))] if generator.random() < 0.25 else "")


@functools.cache
def font_paths() -> tuple[Path, ...]:
    """The DejaVu text fonts that come with matplotlib, where it is installed; else none."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return ()
    folder = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    # The Display variants hold mathematical symbols only.
    return tuple(p for p in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in p.stem)


@functools.lru_cache(maxsize=128)  # an open font costs a file handle
def _font(index: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Font 0 is Pillow's own, the others are `font_paths`."""
    if index == 0:
        return ImageFont.load_default(size)
    # Basic layout, so that an image does not depend on whether libraqm is installed.
    return ImageFont.truetype(font_paths()[index - 1], size, layout_engine=ImageFont.Layout.BASIC)
