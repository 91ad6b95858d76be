"""How a flow runs, against fields whose paths are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gaussian_world import GaussianWorld

from allosr2.evaluation.trajectories import angle, fatc_residual, follow, one_step_errors, rms
from allosr2.flow import euler

T_STAR = 0.4
SHAPE = (4, 6, 6)


def latents(size: int = 2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)


def lengths(z: torch.Tensor) -> np.ndarray:
    return np.sqrt(np.square(z.numpy()).mean((1, 2, 3)))


@pytest.mark.parametrize("steps", [1, 5])
def test_a_constant_field_is_straight(steps: int) -> None:
    z_lr, v = latents(), latents(seed=1)
    path = follow(lambda *_: v, z_lr, T_STAR, steps)
    expected = T_STAR * lengths(v)
    np.testing.assert_allclose(path.arc, expected)
    np.testing.assert_allclose(path.chord, expected)
    np.testing.assert_allclose(path.detour, 1)
    np.testing.assert_allclose(path.end, z_lr - T_STAR * v)
    assert path.times.tolist() == pytest.approx([T_STAR * (1 - k / steps) for k in range(steps)])
    assert path.turning.shape == (2, steps - 1)
    assert float(path.turning.abs().sum()) == 0
    assert float(path.change.abs().sum()) == 0


def test_a_rotating_field_turns_by_the_same_angle_at_each_step() -> None:
    """dz/dt = omega J z. In the complex plane a step of h multiplies by q = 1 - i omega h."""
    omega, steps, z_lr = 3.0, 8, latents()

    def rotate(z: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        real, imaginary = z.chunk(2, 1)
        return omega * torch.cat([-imaginary, real], 1)

    path = follow(rotate, z_lr, T_STAR, steps)
    h = T_STAR / steps
    q = complex(1, -omega * h)
    np.testing.assert_allclose(path.turning, math.degrees(math.atan(omega * h)))
    arc = omega * h * sum(abs(q) ** k for k in range(steps))
    np.testing.assert_allclose(path.arc, arc * lengths(z_lr))
    np.testing.assert_allclose(path.chord, abs(q**steps - 1) * lengths(z_lr))
    np.testing.assert_allclose(path.detour, arc / abs(q**steps - 1))
    change = [abs(q**k - 1) for k in range(steps)]
    np.testing.assert_allclose(path.change, [change, change], atol=1e-12)


def test_it_ends_where_euler_does_and_asks_for_the_same_times() -> None:
    world = GaussianWorld.draw(torch.Generator().manual_seed(0), SHAPE)
    z_lr = latents()
    path = follow(world.generative_velocity, z_lr, T_STAR, 16)
    t = torch.full((2,), T_STAR, dtype=torch.float64)
    np.testing.assert_allclose(path.end, euler(world.generative_velocity, z_lr, t, 16))
    assert bool((path.detour > 1).all())


def test_a_field_that_stands_still_is_straight() -> None:
    path = follow(lambda z, _: torch.zeros_like(z), latents(), T_STAR, 4)
    assert path.detour.tolist() == [1, 1]
    assert path.turning.tolist() == [[0] * 3] * 2
    assert path.change.tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 30.0, 90.0, 180.0])
def test_angles(degrees: float) -> None:
    a = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    b = a.clone()
    a[0, 0, 0, 0] = 7.0
    b[0, 0, 0] = 0.1 * torch.tensor(
        [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]
    )
    found = float(angle(a, b))
    assert found == pytest.approx(degrees, rel=1e-6, abs=1e-12 if degrees < 1 else None)


def test_lengths_do_not_depend_on_the_size() -> None:
    for side in (2, 8):
        assert rms(torch.full((3, 4, side, side), -2.0)).tolist() == [2, 2, 2]


def test_the_residual_of_fields_whose_distance_is_known() -> None:
    z_lr, z_hr = latents(), latents(seed=1)
    target = (z_lr - z_hr) / T_STAR
    times = [0.0, 0.1, T_STAR]
    for factor in (0.0, 0.75, 1.0, 3.0):
        found = fatc_residual(lambda *_, f=factor: f * target, z_lr, z_hr, T_STAR, times)
        np.testing.assert_allclose(found, abs(factor - 1), atol=1e-12)


def test_the_residual_is_taken_on_the_line_from_hr_to_lr() -> None:
    z_lr, z_hr = latents(), latents(seed=1)
    states: list[tuple[torch.Tensor, float]] = []

    def field(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        states.append((z, float(t[0])))
        return z

    fatc_residual(field, z_lr, z_hr, T_STAR, [0.0, 0.1, T_STAR])
    for (z, _), expected in zip(states, (z_hr, 0.75 * z_hr + 0.25 * z_lr, z_lr), strict=True):
        np.testing.assert_allclose(z, expected)
    assert [t for _, t in states] == pytest.approx([0, 0.1, T_STAR])


def test_the_best_field_has_the_least_residual_and_errs_least_from_t_star() -> None:
    generator = torch.Generator().manual_seed(0)
    world = GaussianWorld.draw(generator, SHAPE)
    z_hr = world.hr(2000, generator)
    z_lr = world.lr(z_hr, generator)
    t_star = world.t_star
    times = [0.2 * t_star, 0.7 * t_star, t_star]
    residual = fatc_residual(world.sr_velocity, z_lr, z_hr, t_star, times)
    distance = residual.numpy() * lengths(z_lr - z_hr)[:, None] / t_star
    for column, t in zip(distance.T, times, strict=True):
        least = float(world.least_fatc(torch.tensor([t], dtype=torch.float64)))
        assert np.square(column).mean() == pytest.approx(least, rel=0.02)

    factors = (0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)
    times = [factor * t_star for factor in factors]
    errors = one_step_errors(world.sr_velocity, z_lr, z_hr, times).square().mean(0)
    assert int(errors.argmin()) == factors.index(1.0)
    # there it is the posterior's variance: s^2 sigma^2 / (s^2 + sigma^2)
    s, sigma = world.s.numpy(), world.sigma
    variance = (s**2 * sigma**2 / (s**2 + sigma**2)).mean()
    assert float(errors.min()) == pytest.approx(variance, rel=0.02)


def test_one_step_from_any_time_on_a_straight_path() -> None:
    """A field v = z with mean error |(1 - t) z_lr - z_hr|."""
    z_lr, z_hr = latents(), latents(seed=1)
    times = (0.1, 0.9)
    found = one_step_errors(lambda z, _: z, z_lr, z_hr, times)
    expected = [lengths((1 - t) * z_lr - z_hr) for t in times]
    np.testing.assert_allclose(found.T, expected)
