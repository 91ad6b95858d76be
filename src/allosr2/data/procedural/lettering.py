"""Text: pages and scattered signs in several fonts, sizes, angles and perspectives."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from allosr2.data.procedural.fonts import font, font_paths, random_words
from allosr2.data.procedural.layers import Layer
from allosr2.data.procedural.materials import Materials
from allosr2.data.procedural.perspective import UNIT_SQUARE, homography
from allosr2.data.procedural.sampling import log_uniform

FONT_SIZES = (8.0, 60.0)
"""Range of the font size in pixels, log-uniform; at most half of the image's side."""
SIGNS = (2, 6)
"""Least and greatest number of scattered text blocks."""
P_PAGE = 0.4
"""Probability that one block of running text fills the image instead of scattered signs."""
LONGEST_LINE, MOST_LINES = 80, 30
"""Most characters in a line and lines on a page: fine print does not fill a large image."""
P_PLATE = 0.35
"""Probability that a sign has a plate of its own color."""
P_FLAT = 0.5
"""Probability that a block is set as its font has it; else it is turned, stretched and tilted."""
P_BOLD, SMALLEST_BOLD = 0.2, 24
"""Probability that letters are drawn heavier by a pixel all around, and of which size on, pixels."""
ANGLE_DEVIATION = 20.0
"""Standard deviation of a turned block's angle, degrees."""
STRETCH = (0.7, 1.5)
"""Range of a turned block's width over its font's: from condensed to extended."""
TILT = 0.12
"""Greatest displacement of a turned block's corners, over its height and width."""
VOCABULARY = 60
"""Most different words in a block."""
MIN_CONTRAST = 0.25
"""Least difference in lightness between letters and plate or ground."""


def text_layer(
    generator: np.random.Generator, size: int, materials: Materials, ground: float
) -> Layer:
    """A layer of text, legible on a ground of mean lightness `ground`."""
    layer = np.zeros((4, size, size), np.float32)
    if generator.random() < P_PAGE:
        font_size = min(log_uniform(generator, FONT_SIZES[0], FONT_SIZES[1] / 2.0), size / 2.0)
        columns = min(max(4, round(2.2 * size / font_size)), LONGEST_LINE)
        rows = min(max(2, round(0.9 * size / font_size)), MOST_LINES)
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
    """Random words, set in a random font, in part turned in space."""
    is_flat = generator.random() < P_FLAT
    # Turning resamples: a turned block is set twice as large.
    scale = 1 if is_flat else 2
    em = round(scale * font_size)
    face = font(int(generator.integers(len(font_paths()) + 1)), em)
    # Setting a word takes longer than placing it: on a page words recur, as they do in any text.
    words = random_words(generator, min(1 + columns * rows // 6, VOCABULARY))
    is_bold = em >= SMALLEST_BOLD and generator.random() < P_BOLD
    masks = [_word_mask(word, face, em, is_bold=is_bold) for word in words]
    leading, space = em * generator.uniform(1.0, 1.6), max(1, round(0.3 * em))
    longest, margin = round(0.55 * em * columns), 2 * scale + round(0.3 * em)
    lines = [_fill_line(generator, masks, longest, space) for _ in range(rows)]
    width = max(x + mask.width for line in lines for x, mask in line) + 2 * margin
    height = math.ceil(leading * rows + 0.5 * em) + 2 * margin
    letters = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(letters)
    for row, line in enumerate(lines):
        for x, mask in line:
            pen.bitmap((margin + x, margin + round(row * leading)), mask, fill=255)
    plate = Image.new("L", letters.size, 0) if has_plate else None
    if plate:
        # Inside an empty border, with which interpolation softens its edges.
        plate.paste(255, (scale, scale, width - scale, height - scale))
    if not is_flat:
        corners = _turned(generator, width / scale, height / scale)
        letters = _seen_at(letters, corners)
        plate = plate and _seen_at(plate, corners)
    return _Block(letters=_coverage(letters), plate=plate and _coverage(plate))


def _word_mask(
    word: str, face: ImageFont.FreeTypeFont | ImageFont.ImageFont, em: int, *, is_bold: bool
) -> Image.Image:
    """A word's coverage, from the line's top and the word's left on."""
    # Drawn with room to spare and cropped: to measure it first takes as long.
    mask = Image.new("L", (2 * em * (1 + len(word)), 2 * em), 0)
    ImageDraw.Draw(mask).text((1, 1), word, fill=255, font=face)
    _, _, right, bottom = mask.getbbox() or (0, 0, 1, 1)
    mask = mask.crop((0, 0, right + 1, bottom + 1))
    return mask.filter(ImageFilter.MaxFilter(3)) if is_bold else mask


def _fill_line(
    generator: np.random.Generator, masks: list[Image.Image], longest: int, space: int
) -> list[tuple[int, Image.Image]]:
    """Words with their places along a line, up to `longest` pixels or by one word more."""
    line: list[tuple[int, Image.Image]] = []
    x = 0
    for chosen in generator.integers(len(masks), size=1 + longest // (2 * space)).tolist():
        line.append((x, masks[chosen]))
        x += masks[chosen].width + space
        if x > longest:
            break
    return line


def _turned(
    generator: np.random.Generator, width: float, height: float
) -> Float[np.ndarray, "4 2"]:
    """Corners of a rectangle that was stretched, turned in its plane and tilted in space."""
    corners = UNIT_SQUARE + generator.uniform(-TILT, TILT, (4, 2))
    corners *= [width * log_uniform(generator, *STRETCH), height]
    angle = math.radians(generator.normal(0.0, ANGLE_DEVIATION))
    corners @= [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    return corners - corners.min(axis=0)


def _seen_at(mask: Image.Image, corners: Float[np.ndarray, "4 2"]) -> Image.Image:
    """A mask whose corners were moved to these points (x, y), in an image that holds them all.

    The mask is twice as large as it is seen: then interpolation neither blurs it nor aliases.
    """
    width, height = np.ceil(corners.max(axis=0)).astype(int).tolist()
    into = np.diag([*mask.size, 1.0]) @ np.linalg.inv(homography(corners))
    coefficients = (into / into[2, 2]).ravel()[:8].tolist()
    perspective = Image.Transform.PERSPECTIVE
    return mask.transform((width, height), perspective, coefficients, Image.Resampling.BILINEAR)


def _coverage(mask: Image.Image) -> Float32[np.ndarray, "h w"]:
    return np.asarray(mask, dtype=np.float32) * np.float32(1 / 255)


def _place(
    generator: np.random.Generator,
    layer: Layer,
    block: _Block,
    materials: Materials,
    ground: float,
) -> None:
    """Lay a block over the layer, in place, at random; a larger one is cropped."""
    extent = block.letters.shape
    (rows, block_rows), (columns, block_columns) = (
        _overlap(generator, layer.shape[-1], side) for side in extent
    )
    region = layer[:, rows, columns]
    texture = materials.textures[generator.integers(len(materials.textures)), rows, columns]
    wear = generator.choice([0.0, 0.0, 0.04]).astype(np.float32) * texture
    colors, beneath = materials.palette.colors, ground
    if block.plate is not None:
        plate = colors[generator.integers(len(colors))]
        beneath = float(plate.mean())
        _blend(region, plate[:, None, None] + wear, block.plate[block_rows, block_columns])
    ink = _contrasting(generator, colors, beneath)
    _blend(region, ink[:, None, None] + wear, block.letters[block_rows, block_columns])


def _overlap(generator: np.random.Generator, size: int, side: int) -> tuple[slice, slice]:
    """Along one axis: the part of the layer that a block covers, and the part of the block."""
    shift = int(generator.integers(abs(size - side) + 1))
    extent = min(size, side)
    moved, whole = slice(shift, shift + extent), slice(0, extent)
    return (moved, whole) if side <= size else (whole, moved)


def _blend(
    region: Float32[np.ndarray, "4 h w"],
    color: Float32[np.ndarray, "3 h w"],
    coverage: Float32[np.ndarray, "h w"],
) -> None:
    """Lay a color over a premultiplied region, in place."""
    region *= 1.0 - coverage
    region[:3] += coverage * color
    region[3] += coverage


def _contrasting(
    generator: np.random.Generator, colors: Float32[np.ndarray, "n 3"], beneath: float
) -> Float32[np.ndarray, " 3"]:
    """A color far enough in lightness from what is beneath, else black or white."""
    legible = np.flatnonzero(np.abs(colors.mean(axis=1) - beneath) >= MIN_CONTRAST)
    if len(legible) == 0:
        return np.full(3, 0.04 if beneath > 0.5 else 0.96, np.float32)
    return colors[generator.choice(legible)]
