"""What a lens does: what is out of focus becomes a disk, and what is in focus not quite a point."""

import math

import numpy as np
from jaxtyping import Float32

SMALLEST_DISK = 0.6
"""Radius in pixels below which a point stays within its pixel."""


def defocus(layer: Float32[np.ndarray, "c s s"], radius: float) -> Float32[np.ndarray, "c s s"]:
    """Every point spread evenly over a disk of `radius` pixels; beyond the border is the border.

    Premultiplied layers keep their meaning: what is blurred becomes transparent along its edges.
    """
    if radius < SMALLEST_DISK:
        return layer
    return np.stack([_disk_mean(plane, radius) for plane in layer])


def _disk_mean(plane: Float32[np.ndarray, "s s"], radius: float) -> Float32[np.ndarray, "s s"]:
    """The mean over a disk around each pixel, by columns that end in fractions of a pixel.

    From the outermost in, each column is as high as the one before or higher: it is summed on.
    """
    size, reach = len(plane), math.ceil(radius - 0.5)
    pad = reach + 1
    padded = np.pad(plane, pad, mode="edge")

    def rows(offset: int) -> Float32[np.ndarray, "s s+2*pad"]:
        return padded[pad + offset : pad + offset + size]

    column, height = rows(0).copy(), 0
    part, mean = np.empty_like(column), np.zeros_like(plane)
    for across in range(reach, -1, -1):
        half = _strip(radius, across) / 2.0
        whole = max(0, math.floor(half - 0.5))
        while height < whole:
            height += 1
            column += rows(-height)
            column += rows(height)
        np.add(rows(-whole - 1), rows(whole + 1), out=part)
        part *= np.float32(max(0.0, half - 0.5 - whole))
        part += column
        part *= np.float32(min(1.0, 2.0 * half) / (math.pi * radius**2))
        for left in {pad - across, pad + across}:
            mean += part[:, left : left + size]
    return mean


def _strip(radius: float, across: int) -> float:
    """The area of a disk between `across` - 0.5 and `across` + 0.5."""

    def up_to(x: float) -> float:
        x = min(x, radius)
        return x * math.sqrt(radius**2 - x**2) + radius**2 * math.asin(x / radius)

    return up_to(across + 0.5) - up_to(abs(across - 0.5)) if across else 2.0 * up_to(0.5)


def defocus_beyond(
    image: Float32[np.ndarray, "c s s"],
    share: Float32[np.ndarray, "s s"],
    radius: float,
) -> Float32[np.ndarray, "c s s"]:
    """Blurred by `share` (0 to 1) of `radius` pixels, pixel by pixel.

    Between sharp, half and full blur it is interpolated.
    """
    half, full = defocus(image, radius / 2), defocus(image, radius)
    near, far = (2.0 * share).clip(0.0, 1.0), (2.0 * share - 1.0).clip(0.0, 1.0)
    return image + near * (half - image) + far * (full - half)


def point_spread(
    image: Float32[np.ndarray, "c s s"], spread: float
) -> Float32[np.ndarray, "c s s"]:
    """Each pixel gives `spread` of its light to either neighbor, along both axes."""
    keep, give = np.float32(1.0 - 2.0 * spread), np.float32(spread)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = keep * padded[:, 1:-1] + give * (padded[:, :-2] + padded[:, 2:])
    return keep * rows[..., 1:-1] + give * (rows[..., :-2] + rows[..., 2:])
