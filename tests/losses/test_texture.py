"""The loss on local power: closed forms of noise, and what a descent on it does."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from allosr2.losses.texture import texture


def noise(*shape: int, level: float = 0.04, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    gray = torch.randn((shape[0], 1, *shape[2:]), generator=generator, dtype=torch.float64)
    return (0.5 + level * gray).expand(shape)


def test_an_image_has_its_own_texture() -> None:
    image = noise(2, 3, 64, 80)
    assert texture(image, image).item() == 0


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_contrast_times_a_factor_is_that_of_power(factor: float) -> None:
    """All bands alike: 2 ln(factor), but for the rounding's variance, which is added to both."""
    hr, image = noise(1, 3, 256, 256), noise(1, 3, 256, 256, level=0.04 * factor)
    assert texture(image, hr).item() == pytest.approx(2 * abs(math.log(factor)), rel=0.01)


def test_it_is_blind_to_where_detail_lies() -> None:
    """Another draw of the same noise differs by chance alone: the narrowest band holds about 16 frequencies."""
    hr, other = noise(1, 3, 512, 512), noise(1, 3, 512, 512, seed=1)
    blurred = (hr + hr.roll(1, -1) + hr.roll(1, -2) + hr.roll((1, 1), (-2, -1))) / 4
    assert texture(other, hr).item() < 0.4
    assert texture(blurred, hr).item() > 0.8


def test_detail_below_rounding_is_none() -> None:
    flat = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)
    assert texture(noise(1, 3, 64, 64, level=1e-5), flat).item() < 1e-3


def plain_log_power(image: np.ndarray) -> np.ndarray:
    """Of one image `3 h w`: windows, whole spectra and bands written out."""
    y = np.einsum("c,chw->hw", [65.481, 128.553, 24.966], image)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(32) / 32)
    axis = np.minimum(np.arange(32), 32 - np.arange(32))
    radius = np.hypot(axis[:, None], axis[None])
    rounding = ((65.481**2 + 128.553**2 + 24.966**2) / 255**2) / 12
    found = []
    for top in range(0, y.shape[0] - 31, 16):
        for left in range(0, y.shape[1] - 31, 16):
            tile = y[top : top + 32, left : left + 32]
            power = np.abs(np.fft.fft2((tile - tile.mean()) * np.outer(hann, hann))) ** 2 / 12**2
            for low, high in itertools.pairwise([2, 3, 4.5, 6.75, 10, 15, 23]):
                found.append(np.log(power[(radius >= low) & (radius < high)].mean() + rounding))
    return np.array(found)


def test_it_is_the_mean_over_windows_and_bands() -> None:
    generator = torch.Generator().manual_seed(2)
    image, hr = torch.rand(2, 2, 3, 48, 80, generator=generator, dtype=torch.float64)
    expected = [
        plain_log_power(a.numpy()) - plain_log_power(b.numpy())
        for a, b in zip(image, hr, strict=True)
    ]
    assert texture(image, hr).item() == pytest.approx(np.abs(expected).mean(), rel=1e-9)


def test_a_descent_gives_a_blurred_image_its_detail_back() -> None:
    hr = noise(1, 3, 64, 64)
    blurred = (hr + hr.roll(1, -1) + hr.roll(1, -2) + hr.roll((1, 1), (-2, -1))) / 4
    image = blurred.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([image], lr=2e-3)
    first = texture(image, hr).item()
    for _ in range(60):
        optimizer.zero_grad()
        texture(image, hr).backward()
        optimizer.step()
    assert texture(image, hr).item() < 0.1 * first
