"""ATM (Eq. 11 and 12): its direction in closed form, and its gradient by hand and by differences."""

import pytest
import torch
from gaussian_world import GaussianWorld

from allosr2.losses.atm import SMALLEST_ERROR, atm, path_discrepancy

SHAPE = (2, 3, 4)
TIMES = torch.tensor([0.05, 0.2, 0.35], dtype=torch.float64)


def normal(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)


def test_no_discrepancy_where_both_clean_predictions_agree():
    # Powers of two leave no rounding: both paths start at the same z_0 exactly.
    z_0, v_sr, v_gen = (normal(seed).mul(8).round() / 8 for seed in range(3))
    t = torch.tensor([0.25, 0.5, 0.125], dtype=torch.float64)
    s = t.view(-1, 1, 1, 1)
    delta = path_discrepancy(z_0 + s * v_sr, v_sr, z_0 + s * v_gen, v_gen, t)
    assert torch.equal(delta, torch.zeros_like(delta))


def test_the_discrepancy_is_the_paper_s_bracket():
    z_sr, v_sr, z_gen, v_gen = (normal(seed) for seed in range(4))
    position = z_sr - z_gen
    direction = TIMES.view(-1, 1, 1, 1) * (v_sr - v_gen)
    torch.testing.assert_close(
        path_discrepancy(z_sr, v_sr, z_gen, v_gen, TIMES), position - direction, rtol=0, atol=1e-13
    )


def test_the_discrepancy_is_the_difference_of_posterior_means():
    generator = torch.Generator().manual_seed(5)
    world = GaussianWorld.draw(generator, SHAPE)
    z_sr, z_gen = world.hr(3, generator), world.hr(3, generator)
    delta = path_discrepancy(
        z_sr,
        world.generative_velocity(z_sr, TIMES),
        z_gen,
        world.generative_velocity(z_gen, TIMES),
        TIMES,
    )
    expected = world.posterior_mean(z_sr, TIMES) - world.posterior_mean(z_gen, TIMES)
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-13)


def test_a_fitted_sr_path_points_from_the_generative_posterior_mean_to_hr():
    """The straight field predicts z_hr itself, so that delta is what the posterior mean smooths away."""
    generator = torch.Generator().manual_seed(6)
    world = GaussianWorld.draw(generator, SHAPE)
    z_hr = world.hr(3, generator)
    z_lr = world.lr(z_hr, generator)
    s = TIMES.view(-1, 1, 1, 1)
    z_t_sr = z_hr + s / world.t_star * (z_lr - z_hr)
    z_t_gen = (1 - s) * z_hr + s * normal(7)
    v_gen = world.generative_velocity(z_t_gen, TIMES)
    delta = path_discrepancy(z_t_sr, (z_lr - z_hr) / world.t_star, z_t_gen, v_gen, TIMES)
    expected = z_hr - world.posterior_mean(z_t_gen, TIMES)
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-13)


def eq_12(z_sr, z_hr, delta):
    """w delta dz_sr/dtheta, averaged over samples and elements, at theta = z_sr."""
    gradient = torch.empty_like(z_sr)
    for sample in range(z_sr.shape[0]):
        w = 1 / (z_sr[sample] - z_hr[sample]).abs().mean()
        gradient[sample] = w * delta[sample] / z_sr.numel()
    return gradient


def test_the_gradient_is_eq_12():
    z_sr, z_hr, delta = normal(0).requires_grad_(True), normal(1), normal(2)
    result = atm(z_sr, z_hr, delta)
    (gradient,) = torch.autograd.grad(result.loss, z_sr)
    expected = eq_12(z_sr.detach(), z_hr, delta)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    assert float(result.size.detach()) == pytest.approx(float(expected.abs().sum()), rel=1e-12)


def test_the_gradient_through_a_model_by_finite_differences():
    """d/dtheta of mean(w delta z_sr(theta)) with w and delta held, for z_sr = tanh(theta) z_lr."""
    z_lr, z_hr, delta, theta = normal(0), normal(1), normal(2), torch.tensor(0.7).double()
    theta.requires_grad_(True)
    (gradient,) = torch.autograd.grad(atm(theta.tanh() * z_lr, z_hr, delta).loss, theta)
    held = eq_12(theta.detach().tanh() * z_lr, z_hr, delta)
    step = 1e-6

    def pairing(at: torch.Tensor) -> float:
        return float((held * at.tanh() * z_lr).sum())

    difference = (pairing(theta.detach() + step) - pairing(theta.detach() - step)) / (2 * step)
    assert float(gradient) == pytest.approx(difference, rel=1e-7)


def test_the_gradient_reaches_z_sr_alone():
    leaves = [normal(seed).requires_grad_(True) for seed in range(6)]
    z_sr, z_hr, z_t_sr, v_sr, z_t_gen, v_gen = leaves
    delta = path_discrepancy(z_t_sr, v_sr, z_t_gen, v_gen, TIMES)
    atm(z_sr, z_hr, delta).loss.backward()
    assert z_sr.grad is not None
    assert [leaf.grad for leaf in leaves[1:]] == [None] * 5


def test_descent_moves_the_sample_toward_the_generative_prediction():
    generative = normal(1)
    z_sr = normal(0).requires_grad_(True)
    (gradient,) = torch.autograd.grad(atm(z_sr, normal(2), z_sr.detach() - generative).loss, z_sr)
    before = (z_sr.detach() - generative).square().sum()
    assert float((z_sr.detach() - gradient - generative).square().sum()) < float(before)


def test_a_perfect_sample_has_a_finite_weight():
    z_sr, delta = normal(0).requires_grad_(True), normal(1)
    (gradient,) = torch.autograd.grad(atm(z_sr, z_sr.detach(), delta).loss, z_sr)
    torch.testing.assert_close(gradient, delta / SMALLEST_ERROR / z_sr.numel(), rtol=1e-12, atol=0)
