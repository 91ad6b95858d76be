"""The published figures of the three published presets, and what a config refuses."""

from dataclasses import replace

import pytest

from allosr2.data.degradation import (
    PRESET_NAMES,
    DegradationMix,
    mixture,
    preset,
    sample_degradation,
)
from allosr2.data.degradation.presets import (
    BlurConfig,
    KernelProbabilities,
    NoiseConfig,
    ResizeConfig,
)
from allosr2.errors import ConfigError

# Resize 1 and 2; sigma, Poisson scale of noise 1 and 2; JPEG 1 and 2; second blur; sigma of blur 1
# and 2; beta of the generalized Gaussian and of the plateau; undegraded.
PUBLISHED = {
    "real-esrgan": (
        ((0.15, 1.5), (0.3, 1.2)),
        ((1, 30), (0.05, 3), (1, 25), (0.05, 2.5)),
        ((30, 95), (30, 95)),
        0.8,
        ((0.2, 3), (0.2, 1.5)),
        ((0.5, 4), (1, 2)),
        0.0,
    ),
    "mild": (
        ((0.3, 1.5), (0.6, 1.2)),
        ((1, 15), (0.05, 2), (1, 12), (0.05, 1)),
        ((60, 95), (60, 100)),
        0.5,
        ((0.2, 3), (0.2, 1.5)),
        ((0.5, 4), (1, 2)),
        0.0,
    ),
    "stablesr": (
        ((0.3, 1.5), (0.6, 1.2)),
        ((1, 15), (0.05, 2), (1, 12), (0.05, 1)),
        ((60, 95), (60, 100)),
        0.5,
        ((0.2, 1.5), (0.2, 1)),
        ((0.5, 2), (1, 1.5)),
        0.01,
    ),
}


def test_every_name_has_published_figures() -> None:
    assert set(PRESET_NAMES) == {*PUBLISHED, "camera", "bicubic"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures(name: str) -> None:
    config = preset(name)
    first, second = config.first, config.second
    resizes, noises, qualities, second_blur, sigmas, betas, undegraded = PUBLISHED[name]
    assert (first.resize.factor, second.resize.factor) == resizes
    assert (
        first.noise.gaussian_sigma,
        first.noise.poisson_scale,
        second.noise.gaussian_sigma,
        second.noise.poisson_scale,
    ) == noises
    assert (first.jpeg_quality, second.jpeg_quality) == qualities
    assert (first.blur.probability, second.blur.probability) == (1.0, second_blur)
    assert (first.blur.sigma, second.blur.sigma) == sigmas
    for stage in (first, second):
        assert (stage.blur.generalized_beta, stage.blur.plateau_beta) == betas
        assert stage.blur.sinc_probability == 0.1
        assert (stage.noise.gaussian_probability, stage.noise.gray_probability) == (0.5, 0.4)
        assert stage.blur.kernels == KernelProbabilities(
            isotropic=0.45,
            anisotropic=0.25,
            generalized_isotropic=0.12,
            generalized_anisotropic=0.03,
            plateau_isotropic=0.12,
            plateau_anisotropic=0.03,
        )
    assert (first.resize.up, first.resize.down, first.resize.keep) == (0.2, 0.7, 0.1)
    assert (second.resize.up, second.resize.down, second.resize.keep) == (0.3, 0.4, 0.3)
    assert config.final_sinc_probability == 0.8
    assert config.undegraded_probability == undegraded


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("milde", "mild"), ("realesrgan", "real-esrgan"), ("StableSR", "stablesr")],
)
def test_unknown_name_lists_the_nearest_first(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preset(name)
    message = str(caught.value)
    assert message.startswith(f"degradation preset {name!r} is unknown: choose {nearest}")
    assert all(known in message for known in PRESET_NAMES)


def test_values_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match=r"NoiseConfig\.gray_probability is 1\.4.*from 0 to 1"):
        NoiseConfig(gaussian_sigma=(1, 2), poisson_scale=(1, 2), gray_probability=1.4)
    with pytest.raises(ConfigError, match=r"NoiseConfig\.gaussian_sigma is \(3, 2\).*rising"):
        NoiseConfig(gaussian_sigma=(3, 2), poisson_scale=(1, 2))
    with pytest.raises(ConfigError, match=r"up, down, keep sum to 1\.1"):
        ResizeConfig(up=0.5, down=0.5, keep=0.1, factor=(0.5, 1.5))
    with pytest.raises(ConfigError, match=r"ResizeConfig\.factor is \(0\.2, 0\.5\).*holds 1"):
        ResizeConfig(up=0.5, down=0.5, keep=0, factor=(0.2, 0.5))
    with pytest.raises(ConfigError, match=r"BlurConfig\.sigma"):
        BlurConfig(sigma=(0.0, 1.0))
    with pytest.raises(ConfigError, match=r"BlurConfig\.plateau_beta is \(1\.5, 2\).*holds 1"):
        BlurConfig(sigma=(0.2, 1.0), plateau_beta=(1.5, 2))
    with pytest.raises(ConfigError, match="KernelProbabilities"):
        KernelProbabilities(isotropic=0.5)
    mild = preset("mild")
    with pytest.raises(ConfigError, match=r"StageConfig\.jpeg_quality is \(60, 101\)"):
        replace(mild.first, jpeg_quality=(60, 101))
    with pytest.raises(ConfigError, match=r"DegradationConfig\.undegraded_probability"):
        replace(mild, undegraded_probability=float("nan"))


def test_camera_leaves_blur_and_size() -> None:
    config, calm = preset("stablesr"), preset("camera")
    for stage, calmer in ((config.first, calm.first), (config.second, calm.second)):
        assert (calmer.blur, calmer.resize) == (stage.blur, stage.resize)
        assert calmer.noise.gray_probability == stage.noise.gray_probability
        assert calmer.noise.gaussian_sigma[1] < 2 <= stage.noise.gaussian_sigma[1]
        assert calmer.noise.poisson_scale[1] <= 0.1 < stage.noise.poisson_scale[1]
        assert calmer.jpeg_quality == (95, 100)
    assert calm.final_sinc_probability == config.final_sinc_probability


def test_one_name_is_no_mix() -> None:
    assert mixture("mild") == preset("mild")


def test_a_mix_draws_each_as_often_as_it_is_named() -> None:
    mix = mixture("camera+mild+camera")
    assert mix == DegradationMix(parts=(preset("camera"), preset("mild"), preset("camera")))
    drawn = [sample_degradation(mix, 3, index) for index in range(600)]
    assert drawn[:5] == [sample_degradation(mix, 3, index) for index in range(5)]
    calm = sum(one.first.jpeg_quality >= 95 and one.second.jpeg_quality >= 95 for one in drawn)
    # 2/3 of 600, and of `mild` what happens to be as calm: 1/36 * 6/41
    assert 400 - 3 * 11.6 < calm < 401 + 3 * 11.6


def test_an_unknown_part_of_a_mix() -> None:
    with pytest.raises(ConfigError, match="preset 'camra' is unknown: choose camera"):
        mixture("mild+camra")
