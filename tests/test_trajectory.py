"""t* (Eq. 6): closed forms, brute force in numpy, and the paper's grid search."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian_world import GaussianWorld
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from allosr2.errors import DataError
from allosr2.trajectory import (
    LatentPower,
    latent_power,
    optimal_time,
    optimal_time_on_grid,
    snr_discrepancy,
)

SHAPE = (4, 3, 5)
STEPS = 1000


def power_of(signal: list[float], residual: list[float]) -> LatentPower:
    return LatentPower(
        signal=torch.tensor(signal, dtype=torch.float64),
        residual=torch.tensor(residual, dtype=torch.float64),
    )


def eq_6(power: LatentPower, time: float) -> float:
    """Eq. 6's mean, term by term as the paper prints it."""
    terms = [
        abs((1 - time) ** 2 * s / time**2 - s / r)
        for s, r in zip(power.signal.tolist(), power.residual.tolist(), strict=True)
    ]
    return sum(terms) / len(terms)


def brute_force(power: LatentPower) -> float:
    """A convex, piecewise linear function of the SNR is least at one of its kinks, the measured SNRs."""
    times = [1 / (1 + r**-0.5) for r in power.residual.tolist()]
    return min(times, key=lambda time: eq_6(power, time))


powers = st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.01, 10)), min_size=1, max_size=12).map(
    lambda pairs: power_of([s for s, _ in pairs], [r for _, r in pairs])
)


@pytest.mark.parametrize("sigma", [0.1, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_equal_noise_on_every_pair_gives_its_own_time(sigma, size):
    generator = torch.Generator().manual_seed(size)
    z_hr = torch.randn(size, *SHAPE, generator=generator, dtype=torch.float64)
    # Signs have a mean square of exactly 1, so that sigma is exactly the RMS residual.
    signs = torch.randint(0, 2, z_hr.shape, generator=generator).double() * 2 - 1
    power = latent_power([(z_hr + sigma * signs, z_hr)])
    assert optimal_time(power) == pytest.approx(sigma / (1 + sigma), rel=1e-12)
    expected = torch.full((size,), sigma / (1 + sigma), dtype=torch.float64)
    torch.testing.assert_close(power.pair_times, expected, rtol=1e-12, atol=0)


def test_gaussian_world():
    generator = torch.Generator().manual_seed(0)
    world = GaussianWorld.draw(generator, (16, 16, 16))
    z_hr = world.hr(32, generator)
    power = latent_power([(world.lr(z_hr, generator), z_hr)])
    # sigma / (1 + sigma); a residual power of 4096 elements has a relative deviation of 2 percent
    assert optimal_time(power) == pytest.approx(world.t_star, rel=0.01)
    signal = float((world.mu.square() + world.s.square()).mean())
    assert float(power.signal.mean()) == pytest.approx(signal, rel=0.01)


def test_strong_latents_weigh_more():
    # Two of three pairs say sigma = 1, the third says 2 with more than half of all signal power.
    assert optimal_time(power_of([1, 1, 1], [1, 1, 4])) == pytest.approx(1 / 2)
    assert optimal_time(power_of([1, 1, 3], [1, 1, 4])) == pytest.approx(2 / 3)


@given(powers)
def test_exact_time_is_the_brute_force_one(power):
    time = optimal_time(power)
    best = brute_force(power)
    assert eq_6(power, time) == pytest.approx(eq_6(power, best), rel=1e-9, abs=1e-12)
    assert float(
        snr_discrepancy(power, torch.tensor([time], dtype=torch.float64))
    ) == pytest.approx(eq_6(power, time), rel=1e-9, abs=1e-9)


@given(powers)
def test_exact_time_agrees_with_the_paper_s_grid_to_one_step(power):
    # Where half of the signal lies on either side exactly, Eq. 6 is flat between two pairs and has
    # many minimizers; the equality of its values is then what the test above asserts.
    weights = power.signal[power.residual.argsort(descending=True)].cumsum(0)
    assume(float((weights / weights[-1] - 0.5).abs().min()) > 1e-6)
    exact, grid = optimal_time(power), optimal_time_on_grid(power, STEPS)
    assert abs(exact - grid) <= 1 / STEPS + 1e-9


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_batch_size_does_not_matter(batch_size):
    generator = torch.Generator().manual_seed(1)
    z_hr = torch.randn(17, *SHAPE, generator=generator)
    z_lr = z_hr + torch.linspace(0.1, 2, 17).view(-1, 1, 1, 1) * torch.randn(
        z_hr.shape, generator=generator
    )
    power = latent_power(zip(z_lr.split(batch_size), z_hr.split(batch_size), strict=True))
    residual = (z_lr.double() - z_hr.double()).numpy() ** 2
    np.testing.assert_allclose(power.residual.numpy(), residual.mean((1, 2, 3)), rtol=1e-12)
    expected = brute_force(power)
    assert optimal_time(power) == pytest.approx(expected, rel=1e-12)
    assert abs(optimal_time_on_grid(power, STEPS) - expected) <= 1 / STEPS


def test_latents_without_a_residual_are_refused():
    z = torch.ones(2, *SHAPE)
    other = z.clone()
    other[0] += 1
    with pytest.raises(DataError, match="pair 1 has equal or non-finite"):
        latent_power([(other, z)])
    with pytest.raises(DataError, match="pair 2 has equal or non-finite"):
        latent_power([(other[:1], z[:1]), (other[:1], z[:1]), (z[:1] * torch.nan, z[:1])])
    with pytest.raises(DataError, match="no pair"):
        latent_power([])


def test_real_pairs(shared_data: Path, tiny_base: Path):
    from allosr2.backbones.base import load_vae
    from allosr2.backbones.codec import Codec

    codec = Codec(load_vae(str(tiny_base)))

    def center(image: Image.Image) -> torch.Tensor:
        pixels = np.asarray(image.convert("RGB").crop((192, 192, 320, 320)), dtype=np.float32)
        return torch.from_numpy(pixels).movedim(2, 0) / 255

    lr, hr = [], []
    for path in sorted((shared_data / "realsr" / "hr").glob("*.png"))[:12]:
        small = Image.open(path.parent.parent / "lr" / path.name)
        lr.append(center(small.resize((512, 512), Image.Resampling.BICUBIC)))
        hr.append(center(Image.open(path)))
    with torch.no_grad():
        z_lr, z_hr = codec.encode(torch.stack(lr)), codec.encode(torch.stack(hr))
    times = [
        optimal_time(latent_power(zip(z_lr.split(size), z_hr.split(size), strict=True)))
        for size in (1, 8)
    ]
    power = latent_power([(z_lr, z_hr)])
    assert times == pytest.approx([brute_force(power)] * 2, rel=1e-9)
    assert abs(optimal_time_on_grid(power, STEPS) - times[0]) <= 1 / STEPS
    assert 0 < times[0] < 0.5  # bicubic enlargements resemble their HR images
