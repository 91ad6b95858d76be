"""PSNR and SSIM against scikit-image and published figures; the grid detector on both kinds."""

import csv
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage import color, metrics
from skimage import data as photographs
from torch import Tensor

from allosr2.errors import ImageError
from allosr2.imaging.io import image_from_any, read_rgb
from allosr2.imaging.quality import luma, periodicity, psnr_y, sharpness, ssim_y
from allosr2.imaging.resize import enlarge, resize


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    hr = photographs.astronaut()[:160, :200]
    noise = np.random.default_rng(0).normal(0, 4, hr.shape)
    return (hr + noise).round().clip(0, 255).astype(np.uint8), hr


def test_luma_is_skimages(pair):
    y = luma(image_from_any(pair[0]))[0, 0]
    np.testing.assert_allclose(y.numpy(), color.rgb2ycbcr(pair[0])[..., 0], atol=1e-9)
    ends = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    torch.testing.assert_close(luma(ends).flatten(), torch.tensor([16.0, 235.0]).double())


def test_psnr_is_skimages(pair):
    sr, hr = pair
    expected = metrics.peak_signal_noise_ratio(
        color.rgb2ycbcr(hr)[..., 0], color.rgb2ycbcr(sr)[..., 0], data_range=255
    )
    actual = psnr_y(image_from_any(sr), image_from_any(hr))
    assert actual.shape == (1,)
    assert actual.item() == pytest.approx(expected, abs=1e-6)


def test_psnr_of_a_known_error():
    hr = torch.full((1, 3, 8, 8), 100 / 255)
    # One level of RGB is 219/255 of a level of Y.
    expected = 20 * np.log10(255 / (3 * 219 / 255))
    assert psnr_y(hr + 3 / 255, hr).item() == pytest.approx(expected, abs=1e-3)
    assert psnr_y(hr, hr).item() == torch.inf
    # Rounded to 8 bits first: a third of a level is no error.
    assert psnr_y(hr + 0.3 / 255, hr).item() == torch.inf


def test_ssim_is_skimages_inside(pair):
    sr, hr = pair
    planes = [color.rgb2ycbcr(image)[..., 0].round() for image in (sr, hr)]
    _, similarity = metrics.structural_similarity(
        *planes,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    actual = ssim_y(image_from_any(sr), image_from_any(hr)).item()
    assert actual == pytest.approx(similarity[5:-5, 5:-5].mean(), abs=1e-6)
    assert ssim_y(image_from_any(hr), image_from_any(hr)).item() == pytest.approx(1)


def test_opposed_structure_counts_as_none():
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    board = ((x + y) % 2).double().expand(1, 3, 32, 32)
    assert ssim_y(board, 1 - board).item() == 0


def test_each_image_of_a_batch_counts_alone(pair):
    sr, hr = (image_from_any(image) for image in pair)
    batch_sr, batch_hr = torch.cat([sr, hr, hr]), torch.cat([hr, hr, sr])
    psnr, ssim = psnr_y(batch_sr, batch_hr), ssim_y(batch_sr, batch_hr)
    assert psnr[1] == torch.inf
    assert psnr[0] == psnr[2] == psnr_y(sr, hr)[0]
    torch.testing.assert_close(ssim[[0, 2]], ssim_y(sr, hr).expand(2))


def test_published_figures(shared_data):
    folder = shared_data / "realsr"
    compared = 0
    for row in csv.DictReader((folder / "osediff_published.csv").open()):
        if not (folder / "osediff" / row["image"]).exists():
            continue
        sr, hr = (
            image_from_any(read_rgb(folder / side / row["image"])) for side in ("osediff", "hr")
        )
        assert psnr_y(sr, hr).item() == pytest.approx(float(row["psnr_y"]), abs=1e-4)
        assert ssim_y(sr, hr).item() == pytest.approx(float(row["ssim_y"]), abs=2e-6)
        compared += 1
    assert compared == 20


def test_pairs_that_cannot_be_compared():
    with pytest.raises(ImageError, match="give pairs of one size"):
        psnr_y(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))
    with pytest.raises(ImageError, match="too small for SSIM"):
        ssim_y(torch.rand(1, 3, 10, 50), torch.rand(1, 3, 10, 50))
    with pytest.raises(ImageError, match="too small"):
        periodicity(torch.rand(1, 3, 127, 500))


# ------------------------------------------------------------------------------- periodic grids


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.5 + 0.04 * torch.randn(1, 3, height, width, generator=generator)


def grid(height: int, width: int, period: int) -> torch.Tensor:
    lines = torch.zeros(height, width)
    lines[::period] = 1
    lines[:, ::period] = 1
    return lines


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket", "camera", "gravel"])
def test_photographs_show_no_grid(name):
    ratios = periodicity(image_from_any(getattr(photographs, name)()))
    assert ratios.shape == (1, 2)
    assert ratios.min() > 0.9
    assert ratios.max() < 1.1


@pytest.mark.parametrize("size", [(256, 256), (203, 331)])
def test_grid_shows_the_more_the_stronger(size):
    ratios = torch.cat(
        [
            periodicity(noise(*size) + strength * grid(*size, 16))
            for strength in (0, 0.02, 0.05, 0.1)
        ]
    )
    assert ratios[0] == pytest.approx(1, abs=0.1)
    assert (ratios.diff(dim=0) > 0).all()
    assert ratios[2, 1] > 2


def test_period_is_told_apart():
    size = (256, 320)
    ratios = periodicity(noise(*size) + 0.1 * grid(*size, 8))[0]
    assert (ratios > 1.5).all()  # a grid of 8 px repeats after 16 px as well
    wave = 0.2 * torch.cos(2 * torch.pi * torch.arange(320) / 16)
    eight, sixteen = periodicity(noise(*size) + wave)[0]
    assert eight < 1.1
    assert sixteen > 10


def test_known_ratio_of_one_wave():
    """A wave adds to its bin what the Hann window passes, relative to the noise in that bin."""
    height, width, period, amplitude = 512, 512, 8, 0.02
    wave = amplitude * torch.cos(2 * torch.pi * torch.arange(width) / period)
    gray = noise(height, width)[:, :1].expand(1, 3, height, width)
    ratio = periodicity(gray + wave, periods=(8,)).item()
    # Hann: |sum w a/2|^2 = (a n / 4)^2 against s^2 sum w^2 = 3/8 n s^2, in one of the 4 bins of
    # one of the 2 axes.
    expected = 1 + (amplitude * width / 4) ** 2 / (0.04**2 * 3 / 8 * width) / 8
    assert ratio == pytest.approx(expected, rel=0.1)


def test_flat_picture_has_no_grid():
    torch.testing.assert_close(
        periodicity(torch.full((2, 3, 128, 200), 0.5)), torch.ones(2, 2).double()
    )


def stripes(amplitude: float, *, period: int = 4, shift: int = 0) -> Tensor:
    """Gray stripes around level 128; whole levels, so that nothing is rounded."""
    phase = (torch.arange(64) + shift) % period < period / 2
    return (128 / 255 + amplitude * (2.0 * phase - 1)).expand(1, 3, 64, 64)


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_sharpness_is_the_part_of_the_detail_that_is_there(factor):
    """Detail of f times the strength has 2 f / (1 + f^2), whatever the mean level."""
    hr = stripes(20 / 255)
    sr = stripes(20 * factor / 255)
    assert sharpness(sr + 0.1, hr).item() == pytest.approx(2 * factor / (1 + factor**2), rel=0.03)
    assert sharpness(sr, hr).item() == pytest.approx(sharpness(hr, sr).item())


def test_sharpness_knows_the_place_of_detail():
    hr = stripes(20 / 255)
    assert sharpness(stripes(20 / 255, shift=2), hr).item() == pytest.approx(-1, abs=0.03)
    assert sharpness(stripes(20 / 255, shift=1), hr).item() == pytest.approx(0, abs=0.06)
    assert sharpness(torch.full_like(hr, 0.5), hr).item() == pytest.approx(0)
    assert sharpness(torch.full_like(hr, 0.5), torch.full_like(hr, 0.2)).item() == 1


def test_sharpness_does_not_see_what_lr_can_hold():
    """Slow waves, of 32 px, may be wrong or absent."""
    hr = stripes(20 / 255)
    wave = 0.1 * torch.sin(torch.arange(64) * 2 * torch.pi / 32)
    assert sharpness(hr + wave, hr).item() == pytest.approx(1, abs=0.02)


def test_detail_is_what_a_gaussian_takes_that_halves_an_eighth_of_a_cycle():
    """By scipy's filter, on noise; and the filter's own response there."""
    sigma = math.sqrt(math.log(2) / 2) / (math.pi / 8)
    assert math.exp(-2 * (math.pi * sigma / 8) ** 2) == pytest.approx(0.5)
    sr, hr = torch.rand(2, 1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    of_sr, of_hr = (
        y - ndimage.gaussian_filter(y, sigma, mode="mirror", truncate=4.2)
        for y in (luma(image)[0, 0].numpy() for image in (sr, hr))
    )
    expected = 2 * (of_sr * of_hr).sum() / ((of_sr**2).sum() + (of_hr**2).sum())
    assert sharpness(sr, hr).item() == pytest.approx(expected, abs=1e-6)


def test_noise_makes_a_soft_picture_no_sharper():
    """Enlarged from a quarter of the sides, with more and more noise: always worse."""
    hr = image_from_any(photographs.astronaut()[:256, :256])
    soft = enlarge(resize(hr, (64, 64)), 4)
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(0)) / 255
    values = [sharpness((soft + level * noise).clamp(0, 1), hr).item() for level in (0, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1.05 * values[3]
