"""Patterns: gratings, weaves, meshes, cells and strokes, in part bent or seen in perspective."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from allosr2.data.procedural.sampling import log_uniform, sample_angle, sample_radii

PERIODS = (3.0, 24.0)
"""Range of a pattern's period in pixels; below 3 a square wave is not resolved."""
P_PERSPECTIVE, P_BENT = 0.35, 0.3
TILT = (0.3, 2.0)
"""Range of how many times larger, less one, the near side of a plane is than the far side."""
TILE = 192
"""Greatest side of what is drawn stroke by stroke; beyond it repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coordinates:
    """A surface's own coordinates at an image's pixels."""

    u: Float32[np.ndarray, "s s"]
    v: Float32[np.ndarray, "s s"]
    du: Float32[np.ndarray, "s s"] | float
    """How far u moves from a pixel to the next, at most 1."""
    dv: Float32[np.ndarray, "s s"] | float


def sample_coordinates(
    generator: np.random.Generator, size: int, bend: Float32[np.ndarray, "s s"]
) -> Coordinates:
    """A surface turned in its plane, and in part tilted in space or bent by a field."""
    angle = sample_angle(generator)
    axis = np.arange(size, dtype=np.float32) - np.float32(size / 2)
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u = cosine * axis[None] + sine * axis[:, None]
    v = cosine * axis[:, None] - sine * axis[None]
    kind = generator.random()
    if kind < P_PERSPECTIVE:
        return _tilted(generator, u, v)
    if kind < P_PERSPECTIVE + P_BENT:
        # The smooth part alone: a bend with pixel noise in it would tear the pattern.
        smooth = Image.fromarray(bend).reduce(8).resize((size, size), Image.Resampling.BICUBIC)
        u = u + np.float32(generator.uniform(1.0, 6.0)) * np.asarray(smooth)
    return Coordinates(u=u, v=v, du=1.0, dv=1.0)


def _tilted(
    generator: np.random.Generator, u: Float32[np.ndarray, "s s"], v: Float32[np.ndarray, "s s"]
) -> Coordinates:
    """The homography u / w, v / w with w = 1 + g . (u, v)."""
    toward, tilt = generator.uniform(0.0, 2.0 * math.pi), log_uniform(generator, *TILT)
    slope = tilt / (2.0 + tilt) / (0.71 * len(u))  # w is 1 - tilt / (2 + tilt) in the far corner
    gu, gv = np.float32(slope * math.cos(toward)), np.float32(slope * math.sin(toward))
    w = 1.0 / (1.0 + gu * u + gv * v)
    u, v = u * w, v * w
    du = w * np.sqrt((1.0 - gu * u) ** 2 + (gv * u) ** 2)
    dv = w * np.sqrt((1.0 - gv * v) ** 2 + (gu * v) ** 2)
    # Nothing may get finer than it was drawn.
    shrink = np.float32(1.0) / max(du.max(), dv.max())
    return Coordinates(u=u * shrink, v=v * shrink, du=du * shrink, dv=dv * shrink)


def _bars(
    u: Float32[np.ndarray, "s s"], du: Float32[np.ndarray, "s s"] | float, period: float
) -> Float32[np.ndarray, "s s"]:
    """Square wave in {-1, 1} along u with edges one pixel wide: box coverage, no aliasing."""
    phase = u * np.float32(1.0 / period)
    distance = np.abs(phase - np.floor(phase) - np.float32(0.5)) - np.float32(0.25)
    return (distance * (np.float32(2.0 * period) / du)).clip(-1.0, 1.0)


def _grating(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    return np.sin(at.u * np.float32(2 * math.pi / log_uniform(generator, *PERIODS)))


def _stripes(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    """Bars of random widths and levels."""
    count = 256
    edges = np.cumsum(log_uniform(generator, 1.5, 16.0, count)).astype(np.float32)
    levels = generator.standard_normal(count + 1).astype(np.float32)
    axis = np.arange(0.0, float(edges[-1]), 0.25, dtype=np.float32)
    profile = levels[np.searchsorted(edges, axis)]
    profile = np.convolve(profile, np.full(4, 0.25, np.float32), mode="same")
    return profile.take((at.u * np.float32(4.0)).astype(np.intp), mode="wrap")


def _checks(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    period = log_uniform(generator, 4.0, 32.0)
    across = _bars(at.v, at.dv, period * generator.uniform(0.6, 1.6))
    return _bars(at.u, at.du, period) * across


def _plaid(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    period = log_uniform(generator, 4.0, 32.0)
    across = _bars(at.v, at.dv, period) + 0.5 * _bars(at.v, at.dv, max(3.0, period / 4))
    return _bars(at.u, at.du, period) + across


def _weave(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    """Plain weave: rounded threads, warp and weft by turns on top."""
    period = log_uniform(generator, 5.0, 20.0)
    on_top = 0.5 + 0.5 * _bars(at.u, at.du, 2 * period) * _bars(at.v, at.dv, 2 * period)
    scale = np.float32(math.pi / period)
    warp, weft = np.abs(np.cos(at.u * scale)), np.abs(np.cos(at.v * scale)) - np.float32(0.2)
    return weft + on_top * (warp - weft)


def _mesh(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    """Thin lines around cells, as of tiles, nets and graph paper."""
    period, width = log_uniform(generator, 5.0, 32.0), generator.uniform(0.7, 2.0)

    def gap(u: np.ndarray, du: np.ndarray | float) -> np.ndarray:
        phase = u * np.float32(1.0 / period)
        distance = np.abs(phase - np.floor(phase) - np.float32(0.5)) * np.float32(period)
        return (distance - np.float32(width / 2)) / du

    return np.minimum(gap(at.u, at.du), gap(at.v, at.dv)).clip(-0.5, 0.5)


def _cells(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    """Cells around scattered points (Worley 1996): cobbles, scales, cracks in mud."""
    scale, side = np.float32(1.0 / log_uniform(generator, 6.0, 40.0)), 64
    points = generator.uniform(0.1, 0.9, (2, side, side)).astype(np.float32)
    # With its neighbors across the border, so that a step to the next cell is a step in the table.
    px, py = np.pad(points, ((0, 0), (1, 1), (1, 1)), mode="wrap").reshape(2, -1)
    u, v = at.u * scale, at.v * scale
    column, row = np.floor(u), np.floor(v)
    u -= column
    v -= row
    cell = (row.astype(np.intp) & (side - 1)) * (side + 2) + (column.astype(np.intp) & (side - 1))
    first, second = np.full_like(u, 9.0), np.full_like(u, 9.0)
    for dy in range(3):
        below = v - np.float32(dy - 1)
        for dx in range(3):
            neighbor = cell + (dy * (side + 2) + dx)
            across = px.take(neighbor)
            across -= u
            across += np.float32(dx - 1)
            across *= across
            down = py.take(neighbor)
            down -= below
            down *= down
            across += down
            np.minimum(second, np.maximum(first, across, out=down), out=second)
            np.minimum(first, across, out=first)
    first, second = np.sqrt(first), np.sqrt(second)
    joint = np.float32(generator.uniform(0.05, 0.5))
    return np.minimum(second - first, joint) - np.float32(0.4) * first


def _pebbles(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    """Small-scale dead leaves: disks of radius 1.5 to 12 pixels."""
    side, scale = min(len(at.u), TILE), 2
    radii = scale * sample_radii(generator, side * side // 24, 1.5, 12.0)
    left, top = scale * generator.uniform(-6.0, side, size=(2, len(radii))) - radii
    gray = generator.integers(0, 256, len(radii)).tolist()
    image = Image.new("L", (scale * side, scale * side), 128)
    draw = ImageDraw.Draw(image)
    boxes = np.stack([left, top, left + 2 * radii, top + 2 * radii], axis=1).tolist()
    for box, level in zip(boxes, gray, strict=True):
        draw.ellipse(box, fill=level)
    return _repeated(image.reduce(scale), len(at.u))


def _strokes(generator: np.random.Generator, at: Coordinates) -> np.ndarray:
    """Short pointed strokes that lie much the same way: grass, fur, straw, bark."""
    side, scale = min(len(at.u), TILE), 2
    length = log_uniform(generator, 6.0, 40.0)
    count = min(side * side // 24, round(3.0 * side * side / length))
    base = scale * generator.uniform(-0.1 * side, 1.1 * side, (count, 2))
    spread = generator.uniform(0.05, 0.5)
    heading = generator.uniform(0.0, 2.0 * math.pi) + generator.normal(0.0, spread, count)
    along = np.column_stack([np.cos(heading), np.sin(heading)])
    half = 0.5 * scale * generator.uniform(1.0, 3.0) * along[:, ::-1] * [-1.0, 1.0]
    point = base + scale * length * generator.uniform(0.5, 1.5, (count, 1)) * along
    gray = generator.integers(0, 256, count).tolist()
    image = Image.new("L", (scale * side, scale * side), 64)
    draw = ImageDraw.Draw(image)
    triangles = np.hstack([base - half, base + half, point]).tolist()
    for triangle, level in zip(triangles, gray, strict=True):
        draw.polygon(triangle, fill=level)
    return _repeated(image.reduce(scale), len(at.u))


def _repeated(tile: Image.Image, size: int) -> Float32[np.ndarray, "size size"]:
    """A gray image as a field of side `size`, next to itself where it is too small."""
    field = np.asarray(tile, dtype=np.float32)
    repeats = -(-size // len(field))
    return np.tile(field, (repeats, repeats))[:size, :size]


PATTERNS: tuple[Callable[[np.random.Generator, Coordinates], np.ndarray], ...] = (
    _grating,
    _stripes,
    _checks,
    _plaid,
    _weave,
    _mesh,
    _cells,
    _pebbles,
    _strokes,
)
"""Fields in a surface's coordinates, of any mean and scale."""
