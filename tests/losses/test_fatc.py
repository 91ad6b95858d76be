"""FATC (Eq. 9 and 10): its states, its minimizer, and where its gradient goes."""

import numpy as np
import pytest
import torch
from gaussian_world import GaussianWorld

from allosr2.flow import clean_prediction
from allosr2.losses.fatc import fatc, sr_state

SHAPE = (2, 3, 4)


@pytest.fixture
def world() -> GaussianWorld:
    return GaussianWorld.draw(torch.Generator().manual_seed(0), SHAPE)


def test_the_state_runs_from_hr_to_lr(world):
    generator = torch.Generator().manual_seed(1)
    z_hr = world.hr(3, generator)
    z_lr = world.lr(z_hr, generator)
    t_star = 0.4
    t = torch.tensor([0.0, 0.1, 0.4], dtype=torch.float64)
    state = sr_state(z_lr, z_hr, t, t_star)
    torch.testing.assert_close(state[0], z_hr[0], rtol=0, atol=0)
    torch.testing.assert_close(state[1], 0.75 * z_hr[1] + 0.25 * z_lr[1], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(state[2], z_lr[2], rtol=0, atol=0)


def test_the_constant_velocity_has_no_loss_and_one_step_along_it_is_exact(world):
    generator = torch.Generator().manual_seed(2)
    z_hr = world.hr(4, generator)
    z_lr = world.lr(z_hr, generator)
    t_star = world.t_star
    straight = (z_lr - z_hr) / t_star
    assert float(fatc(straight, z_lr, z_hr, t_star)) == 0
    at_t_star = torch.full((4,), t_star, dtype=torch.float64)
    torch.testing.assert_close(
        clean_prediction(z_lr, straight, at_t_star), z_hr, rtol=0, atol=1e-14
    )
    t = torch.linspace(0, t_star, 4, dtype=torch.float64)
    state = sr_state(z_lr, z_hr, t, t_star)
    torch.testing.assert_close(clean_prediction(state, straight, t), z_hr, rtol=0, atol=1e-14)


def test_the_loss_is_quadratic_in_the_velocity_s_error(world):
    generator = torch.Generator().manual_seed(3)
    z_hr = world.hr(4, generator)
    z_lr = world.lr(z_hr, generator)
    wrong = (z_lr - z_hr) / world.t_star + 0.5
    assert float(fatc(wrong, z_lr, z_hr, world.t_star)) == pytest.approx(0.25)


@pytest.mark.parametrize("time", [0.1, 0.25])
def test_the_best_affine_field_is_the_conditional_mean(time):
    """With normal latents: gradient descent's end point, by least squares, is the closed form."""
    generator = torch.Generator().manual_seed(4)
    world = GaussianWorld.draw(generator, (2, 1, 1))
    size = 100_000
    z_hr = world.hr(size, generator)
    z_lr = world.lr(z_hr, generator)
    t = torch.full((size,), time, dtype=torch.float64)
    state = sr_state(z_lr, z_hr, t, world.t_star)
    best = fatc(world.sr_velocity(state, t), z_lr, z_hr, world.t_star)
    assert float(best) == pytest.approx(float(world.least_fatc(t[:1])), rel=0.01)

    fitted = torch.empty_like(state)
    for element in range(2):
        x, y = state[:, element, 0, 0].numpy(), ((z_lr - z_hr) / world.t_star)[:, element, 0, 0]
        design = np.stack([x, np.ones(size)], axis=1)
        coefficients = np.linalg.lstsq(design, y.numpy(), rcond=None)[0]
        fitted[:, element, 0, 0] = torch.from_numpy(design @ coefficients)
    least = float(fatc(fitted, z_lr, z_hr, world.t_star))
    assert least <= float(best)
    assert least == pytest.approx(float(best), rel=1e-4)


def test_the_gradient_reaches_the_encoder_through_z_lr(world):
    generator = torch.Generator().manual_seed(5)
    z_hr = world.hr(2, generator)
    z_lr = world.lr(z_hr, generator).requires_grad_(True)
    v = torch.zeros_like(z_hr, requires_grad=True)
    fatc(v, z_lr, z_hr, 0.4).backward()
    target = (z_lr.detach() - z_hr) / 0.4
    torch.testing.assert_close(v.grad, -2 * target / target.numel())
    torch.testing.assert_close(z_lr.grad, 2 * target / 0.4 / target.numel())
