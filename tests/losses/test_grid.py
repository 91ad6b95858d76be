"""The losses against grids and hatches: against a plain DFT, a closed form, and what a descent on it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from allosr2.imaging.quality import FEWEST_PERIODS, periodicity
from allosr2.losses.grid import GRID_PERIOD, grid, hatch
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


def test_it_is_the_mean_absolute_difference_of_contrasts() -> None:
    image, hr = noise(3, 3, 128, 144).double(), noise(3, 3, 128, 144, seed=1).double()
    expected = np.mean(
        [
            np.abs(np.array(plain_contrasts(a.numpy())) - plain_contrasts(b.numpy()))
            for i in range(3)
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
    assert loss == pytest.approx(contrast / 16, rel=0.1)


def test_a_pattern_below_rounding_costs_little_and_one_above_it_much() -> None:
    flat = torch.full((1, 3, 128, 128), 0.5)
    assert grid(flat, flat) == 0
    faint, visible = (grid(flat + a / 255 * wave(128, 8), flat).item() for a in (0.02, 2))
    # 0.02 and 2 levels in 1 of 8 harmonics along 1 of 2 axes, over the noise of rounding
    rounding = np.sum((np.array([65.481, 128.553, 24.966]) / 255) ** 2) / 12 * 3 / 8 * 128
    for amplitude, found in ((0.02, faint), (2, visible)):
        power = (amplitude * 219 / 255 * 128 / 4) ** 2
        assert found == pytest.approx(np.log(1 + power / rounding) / 16, rel=0.02)
    assert visible > 30 * faint


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


def plain_spectra(image: np.ndarray) -> np.ndarray:
    """Of one image `3 h w`: log power of Y, R - G, B - G in each window, written out."""
    red, green, blue = 255 * image
    y = (65.481 * red + 128.553 * green + 24.966 * blue) / 255
    hann = np.sin(np.pi * np.arange(32) / 32) ** 2
    spectra = []
    for plane, squares in (
        (y, 65.481**2 + 128.553**2 + 24.966**2),
        (red - green, 2),
        (blue - green, 2),
    ):
        powers = []
        for top in range(0, plane.shape[0] - 31, 16):
            for left in range(0, plane.shape[1] - 31, 16):
                window = plane[top : top + 32, left : left + 32]
                window = (window - window.mean()) * np.outer(hann, hann)
                powers.append(np.abs(np.fft.fft2(window)) ** 2)
        rounding = (squares if squares == 2 else squares / 255**2) / 12 * np.sum(hann**2) ** 2
        spectra.append(np.log(np.mean(powers, axis=0) + rounding))
    return np.array(spectra)


def test_hatch_is_the_excess_over_the_local_spectra() -> None:
    image, hr = noise(2, 3, 64, 80).double(), noise(2, 3, 64, 80, seed=1).double()
    terms = []
    for a, b in zip(image.numpy(), hr.numpy(), strict=True):
        excess = np.maximum(plain_spectra(a) - plain_spectra(b), 0) ** 2
        # above 4 cycles in 32 px along either axis; negative frequencies across are conjugates
        terms += [
            excess[:, u, v] for u in range(32) for v in range(17) if max(min(u, 32 - u), v) > 4
        ]
    assert hatch(image, hr).item() == pytest.approx(np.mean(terms), rel=1e-9)


@pytest.mark.parametrize("loss", [grid, hatch])
def test_autocast_changes_nothing(loss) -> None:
    image, hr = noise(1, 3, 128, 128, level=0.005), noise(1, 3, 128, 128, level=0.005, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(image, hr)
    assert torch.equal(found, loss(image, hr))


def test_missing_detail_is_no_hatch() -> None:
    hr = noise(1, 3, 128, 128, level=0.1)
    blurred = torch.nn.functional.avg_pool2d(hr, 5, stride=1, padding=2, count_include_pad=False)
    assert hatch(blurred, hr) == 0
    assert hatch(hr, hr) == 0
    assert hatch(hr, blurred) > 1


def test_a_hatch_in_color_whose_sign_changes_is_seen() -> None:
    """A checkerboard that leaves Y alone, turned over every 32 px: no grid finds it."""
    hr = noise(1, 3, 256, 256, level=0.01)
    rows = torch.arange(256)
    sign = 1.0 - 2.0 * ((rows[:, None] + rows + rows[:, None] // 32 + rows // 32) % 2)
    color = torch.tensor([65.481, -(65.481**2) / 128.553 - 24.966**2 / 128.553, 24.966]) / 65.481
    hatched = hr + 0.01 * color[:, None, None] * sign
    assert periodicity(hatched)[0] == pytest.approx(periodicity(hr)[0], rel=0.02)
    assert grid(hatched, hr) < 1e-3
    assert hatch(hatched, hr) > 0.02

    image = hatched.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        hatch(image, hr).backward()
        optimizer.step()
    found = ((image.detach() - hr) * sign * color[:, None, None]).mean()
    assert found < 0.3 * 0.01 * color.square().mean()


def test_the_gradient_of_hatch_is_finite_on_flat_ground() -> None:
    image = torch.full((1, 3, 64, 64), 0.5, requires_grad=True)
    hatch(image, torch.full((1, 3, 64, 64), 0.2)).backward()
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())
