"""Kernels against scipy's densities and Bessel function, and against closed-form moments."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor

from allosr2.data.degradation.kernels import (
    KERNEL_SIZES,
    PADDED_SIZE,
    EllipticalKernel,
    SincKernel,
    build_kernel,
    gaussian_kernel,
    generalized_gaussian_kernel,
    plateau_kernel,
    sinc_kernel,
)
from allosr2.errors import ConfigError

SHAPES = [(1.3, 1.3, 0.0), (2.4, 0.7, 0.6), (0.5, 2.9, -2.5)]


def grid(size: int) -> np.ndarray:
    """Positions (x, y) of the taps, x along the last axis."""
    axis = np.arange(size) - size // 2
    return np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1).astype(float)


def covariance(sigma_x: float, sigma_y: float, rotation: float) -> np.ndarray:
    turn = np.array(
        [[math.cos(rotation), -math.sin(rotation)], [math.sin(rotation), math.cos(rotation)]]
    )
    return turn @ np.diag([sigma_x**2, sigma_y**2]) @ turn.T


def distance(size: int, shape: tuple[float, float, float]) -> np.ndarray:
    inverse = np.linalg.inv(covariance(*shape))
    return np.einsum("hwi,ij,hwj->hw", grid(size), inverse, grid(size))


def padded(taps: np.ndarray) -> np.ndarray:
    return np.pad(taps / taps.sum(), (PADDED_SIZE - len(taps)) // 2)


def assert_taps(kernel: Tensor, expected: np.ndarray) -> None:
    assert kernel.dtype == torch.float32
    np.testing.assert_allclose(kernel.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("size", KERNEL_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_is_the_normal_density(size: int, shape: tuple[float, float, float]) -> None:
    density = stats.multivariate_normal(cov=covariance(*shape)).pdf(grid(size))
    assert_taps(gaussian_kernel(size, *shape), padded(density))


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_generalized_gaussian(shape: tuple[float, float, float], beta: float) -> None:
    if shape[0] == shape[1]:  # on its axes, scipy's generalized normal: exp(-|x / a|^(2 beta))
        axis = stats.gennorm(2 * beta, scale=shape[0] * 2 ** (1 / (2 * beta)))
        radius = np.linalg.norm(grid(15), axis=-1)
        expected = axis.pdf(radius)
    else:
        expected = np.exp(-0.5 * distance(15, shape) ** beta)
    assert_taps(generalized_gaussian_kernel(15, *shape, beta), padded(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_plateau(shape: tuple[float, float, float]) -> None:
    # The squared distance d, recovered from scipy's Student density with 2 degrees of freedom.
    student = stats.multivariate_t(shape=covariance(*shape), df=2.0).pdf(grid(13))
    quadratic = 2 * ((student / student.max()) ** -0.5 - 1)  # it is (1 + d / 2)^-2
    for beta in (1.0, 1.7):
        expected = padded(1 / (1 + np.maximum(quadratic, 0) ** beta))
        assert_taps(plateau_kernel(13, *shape, beta), expected)


@pytest.mark.parametrize("size", KERNEL_SIZES)
@pytest.mark.parametrize("cutoff", [math.pi / 5, math.pi / 3, 3.0])
def test_sinc_is_the_circular_low_pass(size: int, cutoff: float) -> None:
    radius = np.linalg.norm(grid(size), axis=-1)
    radius[size // 2, size // 2] = 1e-6  # scipy at almost 0 instead of the limit
    expected = cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius)
    assert_taps(sinc_kernel(size, cutoff), padded(expected))


def test_sinc_passes_low_and_stops_high_frequencies() -> None:
    response = np.abs(np.fft.fft2(sinc_kernel(21, math.pi / 2).numpy(), s=(64, 64)))[0]
    assert response[:12] == pytest.approx(1, abs=0.15)  # up to 3/8 pi
    assert response[20:33].max() < 0.08  # from 5/8 pi


@pytest.mark.parametrize("rotation", [0.0, 0.9, -2.0])
def test_second_moments_are_the_covariance(rotation: float) -> None:
    kernel = gaussian_kernel(21, 2.2, 1.1, rotation).double().numpy()
    moments = np.einsum("hw,hwi,hwj->ij", kernel, grid(21), grid(21))
    np.testing.assert_allclose(moments, covariance(2.2, 1.1, rotation), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "kernel",
    [
        EllipticalKernel(
            family="gaussian", size=11, sigma_x=2.0, sigma_y=0.4, rotation=1.0, beta=1.0
        ),
        EllipticalKernel(
            family="generalized", size=9, sigma_x=1.0, sigma_y=0.4, rotation=-1.0, beta=0.6
        ),
        EllipticalKernel(
            family="plateau", size=21, sigma_x=2.0, sigma_y=2.0, rotation=0.0, beta=1.5
        ),
        SincKernel(size=7, cutoff=1.2),
    ],
)
def test_sum_symmetry_and_padding(kernel: EllipticalKernel | SincKernel) -> None:
    taps = build_kernel(kernel)
    assert taps.shape == (PADDED_SIZE, PADDED_SIZE)
    assert taps.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(taps, taps.flip(0, 1), rtol=0, atol=1e-9)
    margin = (PADDED_SIZE - kernel.size) // 2
    inner = taps[margin : PADDED_SIZE - margin, margin : PADDED_SIZE - margin]
    assert taps.count_nonzero() == inner.count_nonzero()
    if isinstance(kernel, SincKernel) or kernel.sigma_x == kernel.sigma_y:
        torch.testing.assert_close(taps, taps.T, rtol=0, atol=1e-9)


def test_build_kernel_hands_every_parameter_on() -> None:
    shape = (1.9, 0.8, 0.7)
    fields = dict(zip(("sigma_x", "sigma_y", "rotation"), shape, strict=True))
    for family, expected in (
        ("gaussian", gaussian_kernel(17, *shape)),
        ("generalized", generalized_gaussian_kernel(17, *shape, 1.4)),
        ("plateau", plateau_kernel(17, *shape, 1.4)),
    ):
        kernel = EllipticalKernel(family=family, size=17, beta=1.4, **fields)
        assert torch.equal(build_kernel(kernel), expected)
    assert torch.equal(build_kernel(SincKernel(size=9, cutoff=2.0)), sinc_kernel(9, 2.0))


@pytest.mark.parametrize("size", [0, 8, 23])
def test_size_must_be_odd_and_fit(size: int) -> None:
    with pytest.raises(ConfigError, match=f"kernel size is {size}: choose an odd size"):
        gaussian_kernel(size, 1.0, 1.0, 0.0)


def test_widths_and_cutoff_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="sigma"):
        plateau_kernel(7, 1.0, 0.0, 0.0, 1.0)
    with pytest.raises(ConfigError, match="cutoff"):
        sinc_kernel(7, -1.0)
