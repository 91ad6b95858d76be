"""The loss against grids: against a plain DFT, a closed form, and what a descent on it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from allosr2.imaging.quality import FEWEST_PERIODS, periodicity
from allosr2.losses.grid import GRID_PERIOD, grid
from allosr2.training.config import GRID_CROP


def noise(*shape: int, level: float = 0.04, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + level * torch.randn(shape, generator=generator)


def wave(width: int, period: int) -> Tensor:
    return torch.cos(2 * torch.pi * torch.arange(width) / period)


def plain_contrasts(image: np.ndarray) -> list[float]:
    """Of one image `3 h w`, along the rows of its Y, each harmonic's DFT written out."""
    weights = np.array([65.481, 128.553, 24.966])
    width = image.shape[-1] // 16 * 16
    x = np.arange(width)
    lines = np.einsum("c,chw->hw", weights, image)[:, :width]
    lines = (lines - lines.mean(1, keepdims=True)) * np.sin(np.pi * x / width) ** 2

    def power(cycles: int) -> float:
        return np.mean(np.abs(lines @ np.exp(-2j * np.pi * cycles * x / width)) ** 2)

    rounding = width * 3 / 8 * np.sum((weights / 255) ** 2) / 12
    contrasts = []
    for k in range(1, 9):
        center = k * width // 16
        neighbors = [center + offset for offset in (-5, -4, -3, -2, 2, 3, 4, 5)]
        background = np.mean([np.log(power(cycles) + rounding) for cycles in neighbors])
        contrasts.append(np.log(power(center) + rounding) - background)
    return contrasts


def test_it_is_the_mean_squared_difference_of_contrasts() -> None:
    image, hr = noise(2, 3, 128, 144).double(), noise(2, 3, 128, 144, seed=1).double()
    expected = np.mean(
        [
            (np.array(plain_contrasts(a.numpy())) - plain_contrasts(b.numpy())) ** 2
            for i in range(2)
            for a, b in ((image[i], hr[i]), (image[i].mT, hr[i].mT))
        ]
    )
    assert grid(image, hr).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("period", [16, 8, 4])
def test_a_wave_has_a_known_contrast(period: int) -> None:
    """A Hann window passes (a n / 4)^2 of a wave and 3/8 n s^2 of noise."""
    size, amplitude, level = 512, 0.02, 0.04
    hr = noise(1, 1, size, size, level=level).expand(1, 3, size, size)
    contrast = np.log(1 + (amplitude * size / 4) ** 2 / (level**2 * 3 / 8 * size))
    # in one of 8 harmonics along one of 2 axes
    loss = grid(hr + amplitude * wave(size, period), hr).item()
    assert loss == pytest.approx(contrast**2 / 16, rel=0.1)


def test_a_pattern_below_rounding_costs_little_and_one_above_it_much() -> None:
    flat = torch.full((1, 3, 128, 128), 0.5)
    assert grid(flat, flat) == 0
    faint, visible = (grid(flat + a / 255 * wave(128, 8), flat).item() for a in (0.02, 2))
    assert faint < 0.01
    assert visible > 1


def test_its_gradient_is_finite_on_flat_ground() -> None:
    image = torch.full((1, 3, 128, 128), 0.5, requires_grad=True)
    grid(image, noise(1, 3, 128, 128)).backward()
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())


def test_descending_on_it_removes_a_grid() -> None:
    hr = noise(1, 3, 256, 256)
    lines = torch.zeros(256, 256)
    lines[::8] = 0.05
    image = (hr + lines).requires_grad_()
    assert periodicity(image.detach())[0, 0] > 3
    optimizer = torch.optim.Adam([image], lr=1e-3)
    for _ in range(100):
        optimizer.zero_grad()
        grid(image, hr).backward()
        optimizer.step()
    assert periodicity(image.detach())[0, 0] < 1.2


def test_the_smallest_crop_holds_enough_periods() -> None:
    assert GRID_CROP == GRID_PERIOD * FEWEST_PERIODS
