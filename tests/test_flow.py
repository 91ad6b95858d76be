"""The path's algebra: float64 round trips, and the Gaussian world's closed forms against regression."""

import numpy as np
import pytest
import torch
from gaussian_world import GaussianWorld
from hypothesis import given
from hypothesis import strategies as st

from allosr2.flow import (
    clean_prediction,
    euler,
    interpolate,
    noise_prediction,
    path_snr,
    per_sample,
    time_of_snr,
    velocity,
)

SHAPE = (3, 2, 4)


def normal(seed: int, size: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_a_state_and_its_velocity_give_back_both_ends(times):
    z_0, eps, t = normal(0), normal(1), torch.tensor(times, dtype=torch.float64)
    z_t, v = interpolate(z_0, eps, t), velocity(z_0, eps)
    torch.testing.assert_close(clean_prediction(z_t, v, t), z_0, rtol=0, atol=1e-14)
    torch.testing.assert_close(noise_prediction(z_t, v, t), eps, rtol=0, atol=1e-14)


def test_time_zero_is_data_and_time_one_is_noise():
    z_0, eps = normal(0), normal(1)
    assert torch.equal(interpolate(z_0, eps, torch.zeros(5)), z_0)
    assert torch.equal(interpolate(z_0, eps, torch.ones(5)), eps)


def test_the_velocity_is_the_path_s_derivative():
    z_0, eps = normal(0), normal(1)
    _, derivative = torch.autograd.functional.jvp(
        lambda t: interpolate(z_0, eps, t),
        torch.full((5,), 0.3, dtype=torch.float64),
        torch.ones(5, dtype=torch.float64),
    )
    torch.testing.assert_close(velocity(z_0, eps), derivative, rtol=0, atol=1e-14)


def test_each_sample_has_its_own_time():
    z_0, eps, t = normal(0), normal(1), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    expected = np.stack(
        [
            (1 - time) * a + time * b
            for time, a, b in zip(t.numpy(), z_0.numpy(), eps.numpy(), strict=True)
        ]
    )
    np.testing.assert_allclose(interpolate(z_0, eps, t).numpy(), expected, rtol=1e-15)
    assert per_sample(t).shape == (5, 1, 1, 1)


@given(st.floats(1e-4, 1 - 1e-4))
def test_snr_and_time_are_inverses(time):
    t = torch.tensor(time, dtype=torch.float64)
    assert float(time_of_snr(path_snr(t))) == pytest.approx(time, rel=1e-12)


def test_the_path_snr_is_that_of_its_two_terms():
    # For data of unit power: power of (1 - t) z_0 over power of t eps.
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    torch.testing.assert_close(
        path_snr(t), torch.tensor([16.0, 1.0, 1 / 16], dtype=torch.float64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("time", [0.15, 0.4, 0.9])
def test_gaussian_velocities_are_the_regressions_of_their_targets(time):
    """Least squares on drawn paths finds the same affine functions as the closed forms."""
    generator = torch.Generator().manual_seed(3)
    world = GaussianWorld.draw(generator, (2, 1, 1))
    size = 200_000
    z_hr = world.hr(size, generator)
    z_lr = world.lr(z_hr, generator)
    eps = torch.randn(z_hr.shape, generator=generator, dtype=torch.float64)
    z_gen = (1 - time) * z_hr + time * eps
    z_sr = z_hr + time / world.t_star * (z_lr - z_hr)
    probes = torch.tensor([-1.0, 1.5], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 2, 1, 1)
    t = torch.full((2,), time, dtype=torch.float64)
    for states, targets, field in (
        (z_gen, eps - z_hr, world.generative_velocity),
        (z_gen, z_hr, world.posterior_mean),
        (z_sr, (z_lr - z_hr) / world.t_star, world.sr_velocity),
    ):
        for element in range(2):
            x, y = states[:, element, 0, 0].numpy(), targets[:, element, 0, 0].numpy()
            design = np.stack([x, np.ones(size)], axis=1)
            slope, intercept = np.linalg.lstsq(design, y, rcond=None)[0]
            expected = slope * probes[:, element, 0, 0].numpy() + intercept
            found = field(probes, t)[:, element, 0, 0].numpy()
            np.testing.assert_allclose(found, expected, atol=0.03)


def test_the_clean_prediction_of_the_optimal_velocity_is_the_posterior_mean():
    generator = torch.Generator().manual_seed(4)
    world = GaussianWorld.draw(generator, SHAPE)
    z_t = world.hr(5, generator)
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    v = world.generative_velocity(z_t, t)
    torch.testing.assert_close(
        clean_prediction(z_t, v, t), world.posterior_mean(z_t, t), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_euler_on_a_linear_field_multiplies_by_the_same_factor_at_each_step(steps):
    # dz/dt = z, so that one step over t / n multiplies by 1 - t / n
    z, t = normal(0), torch.linspace(0.2, 1, 5, dtype=torch.float64)
    expected = z * ((1 - t / steps) ** steps).view(-1, 1, 1, 1)
    found = euler(lambda z_t, _: z_t, z, t, steps)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_euler_evaluates_at_equal_steps_of_time_down_to_the_last_before_data():
    times = []

    def field(z_t, t):
        times.append(t.tolist())
        return torch.zeros_like(z_t)

    z = normal(0, 2)
    t = torch.tensor([0.4, 0.8], dtype=torch.float64)
    assert torch.equal(euler(field, z, t, 4), z)
    np.testing.assert_allclose(times, [[0.4, 0.8], [0.3, 0.6], [0.2, 0.4], [0.1, 0.2]], rtol=1e-15)


def test_euler_comes_to_the_known_end_of_the_gaussian_world_s_flow():
    """The flow keeps each element's quantile: (z_t - mean) / deviation is the same at t and at 0."""
    generator = torch.Generator().manual_seed(5)
    world = GaussianWorld.draw(generator, SHAPE)
    z_t, time = world.hr(5, generator), 0.5
    t = torch.full((5,), time, dtype=torch.float64)
    deviation = ((1 - time) ** 2 * world.s**2 + time**2).sqrt()
    expected = world.mu + world.s * (z_t - (1 - time) * world.mu) / deviation
    errors = [
        float((euler(world.generative_velocity, z_t, t, steps) - expected).abs().mean())
        for steps in (10, 100, 1000)
    ]
    assert errors[2] < 1e-3
    # of first order: a tenth of the step, a tenth of the error
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 10, rtol=0.1)
