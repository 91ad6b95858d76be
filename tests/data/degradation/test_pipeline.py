"""What is drawn and how often, and that a sample comes out the same wherever it is processed."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from allosr2.data.degradation import (
    PRESET_NAMES,
    Degradation,
    degrade,
    operators,
    preset,
    sample_degradation,
)
from allosr2.data.degradation.kernels import EllipticalKernel, SincKernel, build_kernel
from allosr2.data.degradation.presets import StageConfig
from allosr2.errors import ConfigError

DRAWS = 4000


def drawn(name: str, count: int = DRAWS) -> list[Degradation]:
    config = preset(name)
    return [sample_degradation(config, 11, index) for index in range(count)]


def photo(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images that are smooth in part, as photographs are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 8, 8, generator=generator)
    fine = torch.rand(batch, 3, height, width, generator=generator)
    return (0.8 * F.interpolate(coarse, (height, width), mode="bilinear") + 0.2 * fine).clamp(0, 1)


def assert_frequency(events: list[bool], probability: float) -> None:
    """Within the two-sided binomial bound of one false alarm in a million."""
    low, high = stats.binom.interval(1 - 1e-6, len(events), probability)
    assert low <= sum(events) <= high, (sum(events) / len(events), probability)


def assert_uniform(values: list[float], limits: tuple[float, float]) -> None:
    low, high = limits
    assert min(values) >= low
    assert max(values) <= high
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-5


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_frequencies_and_ranges_of_the_stages(name: str) -> None:
    config, samples = preset(name), drawn(name)
    for stages, stage_config, resize, blur in (
        ([sample.first for sample in samples], config.first, (0.2, 0.7, 0.1), 1.0),
        (
            [sample.second for sample in samples],
            config.second,
            (0.3, 0.4, 0.3),
            0.8 if name == "real-esrgan" else 0.5,
        ),
    ):
        assert_frequency([stage.blur is not None for stage in stages], blur)
        check_kernels([stage.blur for stage in stages if stage.blur], stage_config)

        factors = [stage.resize.factor for stage in stages]
        low, high = stage_config.resize.factor
        for side, probability, limits in (
            ([f for f in factors if f > 1], resize[0], (1.0, high)),
            ([f for f in factors if f < 1], resize[1], (low, 1.0)),
        ):
            assert_frequency([True] * len(side) + [False] * (DRAWS - len(side)), probability)
            assert_uniform(side, limits)
        assert_frequency([f == 1 for f in factors], resize[2])
        for mode in ("area", "bilinear", "bicubic"):
            assert_frequency([stage.resize.mode == mode for stage in stages], 1 / 3)

        noises = [stage.noise for stage in stages]
        assert_frequency([noise.kind == "gaussian" for noise in noises], 0.5)
        assert_frequency([noise.gray for noise in noises], 0.4)
        for kind, limits in (
            ("gaussian", stage_config.noise.gaussian_sigma),
            ("poisson", stage_config.noise.poisson_scale),
        ):
            assert_uniform([noise.strength for noise in noises if noise.kind == kind], limits)

        qualities = Counter(stage.jpeg_quality for stage in stages)
        lowest, highest = stage_config.jpeg_quality
        assert set(qualities) == set(range(lowest, highest + 1))
        assert stats.chisquare(list(qualities.values())).pvalue > 1e-5


def check_kernels(kernels: list[EllipticalKernel | SincKernel], config: StageConfig) -> None:
    assert_frequency([isinstance(kernel, SincKernel) for kernel in kernels], 0.1)
    for size in range(7, 22, 2):
        assert_frequency([kernel.size == size for kernel in kernels], 1 / 8)
    sincs = [kernel for kernel in kernels if isinstance(kernel, SincKernel)]
    assert_uniform([k.cutoff for k in sincs if k.size < 13], (math.pi / 3, math.pi))
    assert_uniform([k.cutoff for k in sincs if k.size >= 13], (math.pi / 5, math.pi))

    bells = [kernel for kernel in kernels if isinstance(kernel, EllipticalKernel)]
    for family, isotropic, probability in (
        ("gaussian", True, 0.45),
        ("gaussian", False, 0.25),
        ("generalized", True, 0.12),
        ("generalized", False, 0.03),
        ("plateau", True, 0.12),
        ("plateau", False, 0.03),
    ):
        kind = [k.family == family and (k.sigma_x == k.sigma_y) == isotropic for k in bells]
        assert_frequency(kind, probability)
    assert_uniform([kernel.sigma_x for kernel in bells], config.blur.sigma)
    anisotropic = [kernel for kernel in bells if kernel.sigma_x != kernel.sigma_y]
    assert_uniform([kernel.sigma_y for kernel in anisotropic], config.blur.sigma)
    assert_uniform([kernel.rotation for kernel in anisotropic], (-math.pi, math.pi))
    assert {k.rotation for k in bells if k.sigma_x == k.sigma_y} == {0.0}
    for family, (low, high) in (
        ("generalized", config.blur.generalized_beta),
        ("plateau", config.blur.plateau_beta),
    ):
        betas = [kernel.beta for kernel in bells if kernel.family == family]
        assert_frequency([beta > 1 for beta in betas], 0.5)
        assert_uniform([beta for beta in betas if beta > 1], (1.0, high))
        if low < 1:
            assert_uniform([beta for beta in betas if beta < 1], (low, 1.0))


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_frequencies_of_the_end(name: str) -> None:
    samples = drawn(name)
    assert_frequency([sample.final_sinc is not None for sample in samples], 0.8)
    assert_frequency([sample.jpeg_last for sample in samples], 0.5)
    assert_frequency(
        [sample.undegraded for sample in samples],
        {"stablesr": 0.01, "camera": 0.01, "bicubic": 1.0}.get(name, 0.0),
    )
    cutoffs = [sample.final_sinc.cutoff for sample in samples if sample.final_sinc]
    assert_uniform(cutoffs, (math.pi / 3, math.pi))
    for mode in ("area", "bilinear", "bicubic"):
        assert_frequency([sample.final_mode == mode for sample in samples], 1 / 3)
    assert len({sample.noise_seed for sample in samples}) == DRAWS


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    config = preset("mild")
    later = sample_degradation(config, 5, 1_000_000)
    sample_degradation(config, 5, 3)
    assert sample_degradation(config, 5, 1_000_000) == later
    assert sample_degradation(config, 6, 1_000_000) != later
    assert sample_degradation(config, 5, 1_000_001) != later
    assert sample_degradation(config, 1, 2) != sample_degradation(config, 2, 1)


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_a_sample_is_the_same_alone_and_in_any_batch(name: str) -> None:
    hr, samples = photo(8, 80, 96), drawn(name, 8)
    before = hr.clone()
    together = degrade(hr, samples)
    order = [3, 0, 7, 5, 1, 6, 2, 4]
    shuffled = degrade(hr[order], [samples[index] for index in order])
    for position, index in enumerate(order):
        alone = degrade(hr[index : index + 1].clone(), [samples[index]])
        assert torch.equal(together[index], alone[0])
        assert torch.equal(together[index], shuffled[position])
    assert torch.equal(hr, before)


@pytest.mark.parametrize("name", PRESET_NAMES)
@pytest.mark.parametrize(("size", "scale"), [((64, 64), 4), ((36, 100), 2), ((8, 12), 4)])
def test_size_range_and_8_bit_grid(name: str, size: tuple[int, int], scale: int) -> None:
    lr = degrade(photo(20, *size), drawn(name, 20), scale)
    assert lr.shape == (20, 3, size[0] // scale, size[1] // scale)
    assert lr.dtype == torch.float32
    levels = (lr.double() * 255).round()
    assert levels.min() >= 0
    assert levels.max() <= 255
    torch.testing.assert_close(lr, (levels / 255).float(), rtol=0, atol=1e-7)


def without_noise(sample: Degradation) -> Degradation:
    first = replace(sample.first, noise=replace(sample.first.noise, strength=0.0))
    second = replace(sample.second, noise=replace(sample.second.noise, strength=0.0))
    return replace(sample, undegraded=False, first=first, second=second)


@pytest.mark.parametrize("jpeg_last", [True, False])
def test_the_order_of_the_steps(jpeg_last: bool) -> None:
    hr = photo(1, 64, 80)
    candidates = [without_noise(s) for s in drawn("real-esrgan", 80) if s.jpeg_last == jpeg_last]
    sample = next(s for s in candidates if s.second.blur and s.final_sinc)

    def kernel(of: EllipticalKernel | SincKernel | None) -> Tensor:
        assert of is not None
        return build_kernel(of)[None]

    def scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
        return math.floor(size[0] * factor), math.floor(size[1] * factor)

    first, second = sample.first, sample.second
    x = operators.blur(hr, kernel(first.blur))
    x = operators.resize(x, scaled((64, 80), first.resize.factor), first.resize.mode).clamp(0, 1)
    x = operators.jpeg(x, first.jpeg_quality)
    x = operators.blur(x, kernel(second.blur))
    x = operators.resize(x, scaled((16, 20), second.resize.factor), second.resize.mode).clamp(0, 1)
    if not jpeg_last:
        x = operators.jpeg(x, second.jpeg_quality)
    x = operators.blur(operators.resize(x, (16, 20), sample.final_mode), kernel(sample.final_sinc))
    if jpeg_last:
        x = operators.jpeg(x, second.jpeg_quality)
    assert torch.equal(degrade(hr, [sample]), (x * 255).round().clamp(0, 255) / 255)


def test_the_noise_follows_its_seed() -> None:
    hr = photo(1, 64, 64)
    sample = next(s for s in drawn("real-esrgan", 20) if s.first.noise.strength > 20)
    assert not torch.equal(degrade(hr, [sample]), degrade(hr, [replace(sample, noise_seed=1)]))
    state = torch.get_rng_state()
    degrade(hr, [sample])
    assert torch.equal(torch.get_rng_state(), state)


def test_undegraded_is_pillows_bicubic() -> None:
    hr = operators.round_to_8_bits(photo(1, 64, 48))
    lr = degrade(hr, [replace(drawn("stablesr", 1)[0], undegraded=True)])
    pixels = (hr[0].permute(1, 2, 0) * 255).round().byte().numpy()
    expected = np.asarray(Image.fromarray(pixels).resize((12, 16), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(lr[0].permute(1, 2, 0).numpy() * 255, expected, atol=1.01)


def test_no_gradient_is_kept() -> None:
    hr = photo(1, 64, 64).requires_grad_()
    assert not degrade(hr, drawn("mild", 1)).requires_grad


def test_empty_batch() -> None:
    assert degrade(torch.empty(0, 3, 64, 64), []).shape == (0, 3, 16, 16)


def test_presets_are_ordered_by_strength() -> None:
    hr = photo(24, 128, 128)
    clean = F.interpolate(hr, (32, 32), mode="bicubic", antialias=True)
    errors = [(degrade(hr, drawn(name, 24)) - clean).square().mean() for name in PRESET_NAMES]
    assert errors[0] > errors[1]
    assert errors[0] > errors[2]
    assert errors[PRESET_NAMES.index("bicubic")] < (0.5 / 255) ** 2  # rounded to 8 bits


def test_errors_name_the_remedy() -> None:
    samples = drawn("mild", 2)
    with pytest.raises(ConfigError, match=r"HR size 62x64 is no multiple of scale 4: crop"):
        degrade(photo(2, 64, 62), samples)
    with pytest.raises(ConfigError, match="3 HR images came with 2 degradations: draw one"):
        degrade(photo(3, 64, 64), samples)
    with pytest.raises(ConfigError, match="seed is -1"):
        sample_degradation(preset("mild"), -1, 0)


def test_description() -> None:
    sample = drawn("mild", 1)[0]
    restored = json.loads(json.dumps(asdict(sample)))
    assert restored == asdict(sample)
    line = sample.describe()
    assert "\n" not in line
    assert f"jpeg {sample.first.jpeg_quality}" in line
    assert f"x{sample.first.resize.factor:.2f}" in line
    last = replace(sample, jpeg_last=True).describe()
    assert last.endswith(f"jpeg {sample.second.jpeg_quality}")
    assert not replace(sample, jpeg_last=False).describe().endswith(str(sample.second.jpeg_quality))
    assert replace(sample, undegraded=True).describe().startswith("undegraded")
