"""Textures: zero-mean scalar fields, sharp to the pixel, that fills are modulated with."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageDraw

from allosr2.data.procedural.sampling import log_uniform, sample_radii

NOISES_PER_IMAGE = 2
PATTERNS_PER_IMAGE = 2
SPECTRAL_EXPONENTS = (0.8, 3.0)
"""Range of alpha in the power spectrum 1/f^alpha of a noise texture; photographs are near 2."""
PERIODS = (3.0, 24.0)
"""Range of a pattern's period in pixels; below 3 a square wave is not resolved."""


def texture_stack(generator: np.random.Generator, size: int) -> Float32[np.ndarray, "k size size"]:
    """The textures of one image: 1/f^alpha noises of several spectra, then patterns.

    Each has mean 0 and standard deviation 1.
    """
    noises = [
        noise(generator, size, generator.uniform(*SPECTRAL_EXPONENTS))
        for _ in range(NOISES_PER_IMAGE)
    ]
    kinds = generator.choice(len(_PATTERNS), size=PATTERNS_PER_IMAGE, replace=False)
    # Some noise on and in a pattern makes it a worn or bent material instead of a test chart.
    patterns = [
        _PATTERNS[kind](generator, _warped_coordinates(generator, size, noises[0]))
        + generator.uniform(0.0, 0.6) * noises[1]
        for kind in kinds
    ]
    return np.stack([_standardized(field) for field in (*noises, *patterns)])


def noise(
    generator: np.random.Generator, size: int, alpha: float
) -> Float32[np.ndarray, "size size"]:
    """Noise of power spectrum 1/f^alpha, mean 0 and deviation 1.

    In part it is stretched along one direction, as wood and water are, or folded into ridges.
    """
    stretch = log_uniform(generator, 1.0, 8.0) if generator.random() < 0.4 else 1.0
    angle = generator.uniform(0.0, math.pi)
    fy = np.fft.fftfreq(size).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(size).astype(np.float32)[None]
    along = math.cos(angle) * fx + math.sin(angle) * fy
    across = math.cos(angle) * fy - math.sin(angle) * fx
    power = (along * stretch) ** 2 + across**2
    power[0, 0] = np.inf
    spectrum = np.fft.rfft2(generator.standard_normal((size, size), dtype=np.float32))
    field = np.fft.irfft2(spectrum * power ** np.float32(-alpha / 4), s=(size, size))
    field = _standardized(field)
    # Folding at 0 gives ridges and veins, the phase structure that Gaussian noise lacks.
    return _standardized(-np.abs(field)) if generator.random() < 0.25 else field


Coordinates = tuple[Float32[np.ndarray, "s s"], Float32[np.ndarray, "s s"]]


def _warped_coordinates(
    generator: np.random.Generator, size: int, bend: Float32[np.ndarray, "s s"]
) -> Coordinates:
    """Pixel coordinates, rotated, in part bent by a field."""
    angle = generator.uniform(0.0, math.pi)
    axis = np.arange(size, dtype=np.float32)
    u = math.cos(angle) * axis[None] + math.sin(angle) * axis[:, None]
    v = math.cos(angle) * axis[:, None] - math.sin(angle) * axis[None]
    if generator.random() < 0.35:
        # The smooth part alone: a bend with pixel noise in it would tear the pattern.
        smooth = Image.fromarray(bend).reduce(8).resize((size, size), Image.Resampling.BICUBIC)
        u = u + np.float32(generator.uniform(1.0, 6.0)) * np.asarray(smooth)
    return u, v


def _bars(u: Float32[np.ndarray, "s s"], period: float) -> Float32[np.ndarray, "s s"]:
    """Square wave in {-1, 1} along u with edges one pixel wide: box coverage, no aliasing."""
    phase = u / np.float32(period)
    distance = (np.abs(phase - np.floor(phase) - 0.5) - 0.25) * np.float32(period)
    return (2.0 * distance).clip(-1.0, 1.0)


def _grating(generator: np.random.Generator, uv: Coordinates) -> np.ndarray:
    return np.sin(uv[0] * np.float32(2 * math.pi / log_uniform(generator, *PERIODS)))


def _stripes(generator: np.random.Generator, uv: Coordinates) -> np.ndarray:
    """Bars of random widths and levels."""
    count = 256
    edges = np.cumsum(log_uniform(generator, 1.5, 16.0, count)).astype(np.float32)
    levels = generator.standard_normal(count + 1).astype(np.float32)
    axis = np.arange(0.0, float(edges[-1]), 0.25, dtype=np.float32)
    profile = levels[np.searchsorted(edges, axis)]
    profile = np.convolve(profile, np.full(4, 0.25, np.float32), mode="same")
    return profile[np.abs(uv[0] * 4.0).astype(np.int32) % len(profile)]


def _checks(generator: np.random.Generator, uv: Coordinates) -> np.ndarray:
    period = log_uniform(generator, 4.0, 32.0)
    return _bars(uv[0], period) * _bars(uv[1], period * generator.uniform(0.6, 1.6))


def _plaid(generator: np.random.Generator, uv: Coordinates) -> np.ndarray:
    period = log_uniform(generator, 4.0, 32.0)
    return _bars(uv[0], period) + _bars(uv[1], period) + 0.5 * _bars(uv[1], period / 4)


def _weave(generator: np.random.Generator, uv: Coordinates) -> np.ndarray:
    """Plain weave: rounded threads, warp and weft by turns on top."""
    period = log_uniform(generator, 5.0, 20.0)
    on_top = _bars(uv[0], 2 * period) * _bars(uv[1], 2 * period) > 0
    scale = np.float32(math.pi / period)
    return np.where(on_top, np.abs(np.cos(uv[0] * scale)), np.abs(np.cos(uv[1] * scale)) - 0.2)


def _mesh(generator: np.random.Generator, uv: Coordinates) -> np.ndarray:
    """Thin lines around cells, as of tiles, nets and graph paper."""
    period, width = log_uniform(generator, 5.0, 32.0), generator.uniform(0.7, 2.0)
    phases = [u / np.float32(period) for u in uv]
    gaps = [np.abs(p - np.floor(p) - 0.5) * np.float32(period) for p in phases]
    return (np.minimum(*gaps) - np.float32(width / 2)).clip(-0.5, 0.5)


def _pebbles(generator: np.random.Generator, uv: Coordinates) -> np.ndarray:
    """Small-scale dead leaves: disks of radius 1 to 12 pixels."""
    size, scale = len(uv[0]), 2
    tile = min(size, 128)
    radii = scale * sample_radii(generator, tile * tile // 16, 1.0, 12.0)
    left, top = scale * generator.uniform(-6.0, tile, size=(2, len(radii))) - radii
    gray = generator.integers(0, 256, len(radii)).tolist()
    image = Image.new("L", (scale * tile, scale * tile), 128)
    draw = ImageDraw.Draw(image)
    boxes = np.stack([left, top, left + 2 * radii, top + 2 * radii], axis=1).tolist()
    for box, level in zip(boxes, gray, strict=True):
        draw.ellipse(box, fill=level)
    field = np.asarray(image.reduce(scale), dtype=np.float32)
    repeats = -(-size // tile)
    return np.tile(field, (repeats, repeats))[:size, :size]


_PATTERNS: tuple[Callable[[np.random.Generator, Coordinates], np.ndarray], ...] = (
    _grating,
    _stripes,
    _checks,
    _plaid,
    _weave,
    _mesh,
    _pebbles,
)


def _standardized(field: np.ndarray) -> Float32[np.ndarray, "s s"]:
    field = field - field.mean()
    return (field / (field.std() + 1e-6)).astype(np.float32)
