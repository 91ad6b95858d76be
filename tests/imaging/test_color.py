"""Color correction against a transcription with scipy.ndimage, skimage's CIELAB and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.color import lab2rgb, rgb2lab

from allosr2.errors import ConfigError
from allosr2.imaging import color
from allosr2.imaging.color import (
    RADIUS,
    check_color_fix,
    from_lab,
    match_color,
    match_low_frequencies,
    to_lab,
)
from allosr2.imaging.tiling import Rows

FIXES = ("wavelet", "adain", "lab", "none")


def low_frequencies(plane: np.ndarray) -> np.ndarray:
    for level in range(5):
        kernel = np.zeros(2 * 2**level + 1)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (0, 1):
            plane = ndimage.correlate1d(plane, kernel, axis=axis, mode="nearest")
    return plane


def matched(sr: torch.Tensor, reference: torch.Tensor, *settings) -> torch.Tensor:
    """All rows; both pictures pass by once, so that rows asked for out of order would be an error."""
    passing = (Rows(iter(image.split(7, dim=-2))).take for image in (sr, reference))
    bands = list(match_color(*passing, sr.shape[-2], *settings))
    return torch.cat(bands, dim=-2)


def pictures(height: int, width: int, low: float = 0, high: float = 1) -> tuple:
    """Two in [low, high], float32, and different of mean and contrast."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    sr, reference = torch.rand(2, 1, 3, height, width, generator=generator)
    contrast = torch.tensor([0.3, 0.5, 0.9]).view(1, 3, 1, 1)
    return low + (high - low) * sr, low + (high - low) * (0.1 + contrast * reference)


def as_skimage(image: torch.Tensor) -> np.ndarray:
    return image[0].permute(1, 2, 0).double().numpy()


# ---------------------------------------------------------------------------------- low frequencies


@pytest.mark.parametrize("shape", [(70, 90), (1100, 9), (20, 25), (1, 60), (40, 1), (1, 1)])
def test_equals_scipy(shape):
    generator = np.random.default_rng(0)
    sr, reference = generator.random((2, 2, 3, *shape))
    expected = np.stack(
        [
            [s - low_frequencies(s) + low_frequencies(r) for s, r in zip(*planes, strict=True)]
            for planes in zip(sr, reference, strict=True)
        ]
    )
    whole = match_low_frequencies(torch.tensor(sr), torch.tensor(reference))
    np.testing.assert_allclose(whole.numpy(), expected, atol=1e-12)
    in_bands = matched(torch.tensor(sr), torch.tensor(reference))
    np.testing.assert_allclose(in_bands.numpy(), expected.clip(0, 1), atol=1e-12)


def test_constant_shift_is_removed():
    reference = 0.25 + 0.5 * torch.rand(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([0.1, -0.07, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(matched(reference + shift, reference), reference, rtol=0, atol=1e-6)


def test_slow_tint_goes_and_detail_stays():
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    detail = 0.1 * torch.sin(2 * torch.pi * x / 4)  # the first levels annul this period exactly
    tint = 0.1 * torch.cos(torch.pi * y / 256)
    reference = torch.full((1, 3, 256, 256), 0.5)
    result = matched(reference + detail + tint, reference)
    inside = (..., slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
    error = (result - reference - detail)[inside].abs().max()
    # A cosine of frequency f passes the blur with the product of cos^2(pi f 2^i).
    frequency = 1 / 512
    passed = np.prod([np.cos(np.pi * frequency * 2**level) ** 2 for level in range(5)])
    assert error <= 0.1 * (1 - passed) + 1e-6
    assert error < 0.002


def test_low_frequencies_are_not_clamped():
    sr, reference = torch.full((1, 3, 9, 9), 0.95), torch.ones(1, 3, 9, 9)
    sr[..., 4, 4] = 1
    assert match_low_frequencies(sr, reference).max() > 1.04


def test_influence_ends_at_the_radius():
    generator = torch.Generator().manual_seed(0)
    sr, reference = torch.rand(2, 1, 3, 200, 150, generator=generator)
    changed = sr.clone()
    changed[..., 100, 70] += 0.5
    for match in (matched, match_low_frequencies):
        rows, columns = (
            (match(sr, reference) != match(changed, reference)).any(1)[0].nonzero(as_tuple=True)
        )
        assert rows.min() >= 100 - RADIUS
        assert rows.max() <= 100 + RADIUS
        assert columns.min() >= 70 - RADIUS
        assert columns.max() <= 70 + RADIUS
        part = match(sr[..., 40:160, 20:130], reference[..., 40:160, 20:130])
        whole = match(sr, reference)[..., 40:160, 20:130]
        inside = (..., slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
        torch.testing.assert_close(part[inside], whole[inside], rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("fix", ["wavelet", "none"])
def test_equal_inputs_stay(fix):
    image = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    assert torch.equal(matched(image, image, fix), image)


@pytest.mark.parametrize(("fix", "error"), [("adain", 1e-5), ("lab", 1e-4)])
def test_equal_inputs_stay_up_to_rounding(fix, error):
    """To 16 bits, and there and back between color spaces."""
    image = torch.rand(1, 3, 33, 47, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matched(image, image, fix), image, rtol=0, atol=error)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_inputs_are_not_written_to_and_the_result_is_clamped(fix, strength):
    generator = torch.Generator().manual_seed(0)
    sr = torch.rand(1, 3, 60, 20, generator=generator) * 1.4 - 0.2
    reference = torch.rand(1, 3, 60, 20, generator=generator)
    before = sr.clone(), reference.clone()
    result = matched(sr, reference, fix, strength)
    assert result.shape == sr.shape
    assert result.min() >= 0
    assert result.max() <= 1
    assert torch.equal(sr, before[0])
    assert torch.equal(reference, before[1])


@pytest.mark.parametrize("fix", FIXES)
def test_none_of_a_correction_is_the_input(fix):
    sr, reference = pictures(70, 30)
    sr = sr * 1.2 - 0.1
    rounding = 0.5 / 65535 + 1e-6 if fix == "adain" else 0
    torch.testing.assert_close(
        matched(sr, reference, fix, 0.0), sr.clamp(0, 1), rtol=0, atol=rounding
    )
    assert torch.equal(matched(sr, reference, "none", 1.0), sr.clamp(0, 1))


@given(st.sampled_from(FIXES), st.floats(0, 1))
@settings(deadline=None, max_examples=30)
def test_strength_is_linear(fix, strength):
    sr, reference = pictures(40, 30, 0.35, 0.65)  # nothing is clamped
    whole = matched(sr, reference, fix, 1.0)
    assert whole.min() > 0
    assert whole.max() < 1
    expected = (1 - strength) * sr + strength * whole
    result = matched(sr, reference, fix, strength)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5 if fix == "adain" else 1e-6)


def test_strength_comes_before_the_clamp():
    sr, reference = torch.full((1, 3, 40, 40), 0.95), torch.ones(1, 3, 40, 40)
    sr[..., 20, 20] = 0.98
    unclamped = match_low_frequencies(sr, reference)
    expected = (sr + 0.5 * (unclamped - sr)).clamp(0, 1)
    wrong = sr + 0.5 * (unclamped.clamp(0, 1) - sr)
    assert (expected - wrong).abs().max() > 0.005
    torch.testing.assert_close(matched(sr, reference, "wavelet", 0.5), expected)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("band", [1, 17, 64])
def test_bands_of_any_height_give_the_same(fix, band, monkeypatch):
    sr, reference = pictures(150, 40)
    monkeypatch.setattr(color, "_BAND", 1000)
    whole = matched(sr, reference, fix, 0.8)
    monkeypatch.setattr(color, "_BAND", band)
    in_bands = matched(sr, reference, fix, 0.8)
    torch.testing.assert_close(in_bands, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("shape", [(1, 60), (40, 1), (1, 1)])
def test_thin_pictures(fix, shape):
    result = matched(*pictures(*shape), fix)
    assert result.shape == (1, 3, *shape)
    assert bool(result.isfinite().all())


# -------------------------------------------------------------------------------------------- adain


def test_mean_and_deviation_become_the_reference_s():
    sr, reference = pictures(300, 50, 0.3, 0.7)
    result = matched(sr, reference, "adain").double().numpy()
    expected = reference.double().numpy()
    axes = (0, 2, 3)
    np.testing.assert_allclose(result.mean(axes), expected.mean(axes), rtol=0, atol=1 / 65535)
    np.testing.assert_allclose(result.std(axes), expected.std(axes), rtol=0, atol=1 / 65535)
    # each channel is scaled and shifted, nothing else
    source = sr.double().numpy()
    for channel in range(3):
        line = np.polyfit(source[0, channel].ravel(), result[0, channel].ravel(), 1)
        np.testing.assert_allclose(
            np.polyval(line, source[0, channel]), result[0, channel], rtol=0, atol=3 / 65535
        )


def test_a_flat_channel_is_moved_and_not_scaled():
    sr, reference = pictures(30, 20, 0.3, 0.7)
    sr[:, 1] = 0.4
    result = matched(sr, reference, "adain")
    mean = float(reference[:, 1].double().mean())
    torch.testing.assert_close(
        result[:, 1], torch.full_like(result[:, 1], mean), rtol=0, atol=2 / 65535
    )
    flat = torch.full_like(reference, 0.6)
    torch.testing.assert_close(matched(sr, flat, "adain"), flat, rtol=0, atol=2 / 65535)


# --------------------------------------------------------------------------------------------- lab


def test_cielab_is_skimage_s():
    rgb = torch.rand(1, 3, 60, 70, generator=torch.Generator().manual_seed(0)).double()
    rgb[..., :5, :5] *= 0.05  # the linear pieces near black
    expected = rgb2lab(as_skimage(rgb), illuminant="D65", observer="2")
    np.testing.assert_allclose(as_skimage(to_lab(rgb)), expected, rtol=0, atol=2e-3)
    back = lab2rgb(as_skimage(to_lab(rgb)), illuminant="D65", observer="2")
    np.testing.assert_allclose(as_skimage(from_lab(to_lab(rgb))), back, rtol=0, atol=2e-5)


def test_known_colors():
    """White, black and mid-gray by closed form; red as tabulated (Lindbloom, D65)."""
    rgb = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0]]).double()
    lab = to_lab(rgb.T[None, :, None])[0, :, 0].T
    gray = 116 * (((0.5 + 0.055) / 1.055) ** 2.4) ** (1 / 3) - 16
    expected = torch.tensor([[100, 0, 0], [0, 0, 0], [gray, 0, 0], [53.2408, 80.0925, 67.2032]])
    torch.testing.assert_close(lab, expected.double(), rtol=0, atol=2e-2)


@given(st.integers(0, 2**32 - 1), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None, max_examples=30)
def test_cielab_goes_round(seed, dtype):
    rgb = torch.rand(1, 3, 8, 9, generator=torch.Generator().manual_seed(seed)).to(dtype)
    rgb[..., 0, :3] = torch.tensor([[0.0, 1, 0.002], [0, 1, 0.04], [0, 1, 0.05]])
    error = 1e-9 if dtype == torch.float64 else 5e-5
    torch.testing.assert_close(from_lab(to_lab(rgb)), rgb, rtol=0, atol=error)
    assert to_lab(rgb).dtype == dtype


def test_lab_takes_the_tint_and_keeps_the_lightness():
    sr, reference = pictures(90, 80, 0.35, 0.65)
    result = matched(sr, reference, "lab")
    before, after, other = (rgb2lab(as_skimage(image)) for image in (sr, result, reference))
    np.testing.assert_allclose(after[..., 0], before[..., 0], rtol=0, atol=2e-3)
    for channel in (1, 2):
        planes = before[..., channel], other[..., channel]
        expected = planes[0] - low_frequencies(planes[0]) + low_frequencies(planes[1])
        np.testing.assert_allclose(after[..., channel], expected, rtol=0, atol=1e-2)


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("fix", "strength", "match"),
    [
        ("lanczos", 1.0, "^color_fix is lanczos: use wavelet, adain, lab, none$"),
        ("wavelet", -0.1, r"^color_strength is -0\.1: use a number from 0 to 1$"),
        ("adain", 1.5, r"^color_strength is 1\.5: "),
        ("lab", float("nan"), "^color_strength is nan: "),
    ],
)
def test_a_wrong_setting_is_one_line(fix, strength, match):
    with pytest.raises(ConfigError, match=match):
        check_color_fix(fix, strength)


@pytest.mark.parametrize("fix", FIXES)
def test_right_settings_pass(fix):
    for strength in (0, 0.5, 1):
        check_color_fix(fix, strength)
