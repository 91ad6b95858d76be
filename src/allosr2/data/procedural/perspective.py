"""Homographies: planes seen at an angle."""

import numpy as np
from jaxtyping import Float

UNIT_SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def homography(corners: Float[np.ndarray, "4 2"]) -> Float[np.ndarray, "3 3"]:
    """The matrix that takes UNIT_SQUARE's corners to `corners`, which are a convex quadrangle.

    Closed form of Heckbert, Fundamentals of Texture Mapping (1989), section 2.2.3.
    """
    p00, p10, p11, p01 = corners
    excess = p00 - p10 + p11 - p01
    g, h = np.linalg.solve(np.column_stack([p10 - p11, p01 - p11]), excess)
    across, down = p10 - p00 + g * p10, p01 - p00 + h * p01
    return np.array([[across[0], down[0], p00[0]], [across[1], down[1], p00[1]], [g, h, 1.0]])


def project(
    points: Float[np.ndarray, "*n 2"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "*n 2"]:
    """Points under a homography."""
    image = points @ matrix[:, :2].T + matrix[:, 2]
    return image[..., :2] / image[..., 2:]
