"""What is measured on validation images, against skimage, closed forms and gradients worked out by hand."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from allosr2.data.pairs import Batch
from allosr2.losses.perceptual import LPIPS
from allosr2.training.diagnostics import (
    gradient_norms,
    inspect_results,
    panels,
    snr_match,
    straightness,
)


def levels(size: int, side: int, seed: int) -> torch.Tensor:
    """Random images of 8-bit values, b 3 h w in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size, 3, side, side), generator=generator) / 255


def array(image: torch.Tensor) -> np.ndarray:
    return (255 * image).round().to(torch.uint8).permute(1, 2, 0).numpy()


def skimage_psnr(image: np.ndarray, hr: np.ndarray) -> float:
    y, y_hr = (rgb2ycbcr(picture)[..., 0] for picture in (image, hr))
    return peak_signal_noise_ratio(y_hr, y, data_range=255)


def test_results_and_bicubic_are_measured_over_all_images():
    batches = [
        Batch(hr=levels(2, 32, 0), lr=levels(2, 8, 1)),
        Batch(hr=levels(1, 32, 2), lr=levels(1, 8, 3)),
    ]
    results = [0.7123 * batch.hr + 0.2877 * levels(len(batch.hr), 32, 4) for batch in batches]
    numbers = inspect_results(batches, iter(results), scale=4, lpips=None).numbers
    assert numbers.keys() == {
        f"validation/{name}"
        for name in ("psnr_y", "ssim_y", "color_shift", "psnr_y_of_bicubic", "ssim_y_of_bicubic")
    }
    psnr, psnr_of_bicubic, shift = [], [], []
    for batch, result in zip(batches, results, strict=True):
        for hr, lr, sr in zip(batch.hr, batch.lr, result, strict=True):
            psnr.append(skimage_psnr(array(sr), array(hr)))
            bicubic = Image.fromarray(array(lr)).resize((32, 32), Image.Resampling.BICUBIC)
            psnr_of_bicubic.append(skimage_psnr(np.array(bicubic), array(hr)))
            difference = 255 * (sr - hr).double().numpy()
            shift.append(np.abs(difference.mean((1, 2))).mean())
    assert numbers["validation/psnr_y"] == pytest.approx(np.mean(psnr), abs=1e-3)
    # Pillow rounds between its two passes
    assert numbers["validation/psnr_y_of_bicubic"] == pytest.approx(
        np.mean(psnr_of_bicubic), abs=0.02
    )
    assert numbers["validation/color_shift"] == pytest.approx(np.mean(shift), rel=1e-4)


def test_equal_images_count_as_100_db_and_hide_no_others():
    hr = levels(2, 32, 0)
    result = torch.stack([hr[0], levels(1, 32, 5)[0]])
    numbers = inspect_results([Batch(hr=hr, lr=None)], [result], scale=1, lpips=None).numbers
    other = skimage_psnr(array(result[1]), array(hr[1]))
    assert numbers["validation/psnr_y"] == pytest.approx((100 + other) / 2, abs=1e-3)


def test_a_grid_shows_in_results_and_not_in_hr_images():
    hr = levels(1, 256, 0)
    result = hr.clone()
    result[..., ::8] = 1.0
    numbers = inspect_results([Batch(hr=hr, lr=None)], [result], scale=1, lpips=None).numbers
    assert numbers["validation/periodicity_8"] > 5
    for name in ("periodicity_8_of_hr", "periodicity_16_of_hr"):
        assert numbers[f"validation/{name}"] == pytest.approx(1, abs=0.3)


def test_lpips_is_measured_where_there_is_one(random_lpips):
    lpips = LPIPS.from_file(random_lpips)
    batch, result = Batch(hr=levels(2, 64, 0), lr=levels(2, 16, 1)), levels(2, 64, 2)
    numbers = inspect_results([batch], [result], scale=4, lpips=lpips).numbers
    assert numbers["validation/lpips"] == pytest.approx(float(lpips(result, batch.hr).mean()))
    assert numbers["validation/lpips_of_bicubic"] > 0


@pytest.mark.parametrize(("size", "rows"), [(1, 1), (7, 4)])
def test_the_sheet_shows_the_first_images_before_and_after(size, rows):
    batch, result = Batch(hr=levels(size, 32, 0), lr=levels(size, 8, 1)), levels(size, 32, 2)
    sheet = inspect_results([batch], [result], scale=4, lpips=None).sheet
    assert rows * 32 < sheet.shape[0] < rows * 32 + (rows + 1) * 40
    assert 32 + 2 * 100 < sheet.shape[1] < 32 + 2 * 180  # two captions with PSNR, and HR
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (32, 32), axis=(0, 1))
    for images in (result, batch.hr):
        for number, image in enumerate(images):
            picture = np.moveaxis(array(image), -1, 0)
            shown = (windows[..., 0, 0] == picture[:, 0, 0]).all(-1)
            found = [p for p in np.argwhere(shown) if np.array_equal(windows[tuple(p)], picture)]
            assert len(found) == (number < rows)


def test_of_a_large_picture_the_middle_is_shown_as_it_is():
    image = torch.zeros(1, 3, 600, 520)
    image[..., 44, 4], image[..., 555, 515] = 1, 1
    ((caption, picture),) = panels("HR", image, torch.tensor([31.237]))
    assert caption == "HR, 31.24 dB"
    assert picture.shape == (512, 512, 3)
    assert picture[0, 0].tolist() == picture[-1, -1].tolist() == [255] * 3
    assert int(picture.sum()) == 2 * 3 * 255


def pairs(sigmas: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents whose residuals have an RMS of exactly sigma: every element is off by sigma, up or down."""
    generator = torch.Generator().manual_seed(0)
    z_hr = torch.randn(len(sigmas), 4, 6, 6, generator=generator, dtype=torch.float64)
    sign = torch.randn(z_hr.shape, generator=generator).sign()
    return z_hr + torch.tensor(sigmas).view(-1, 1, 1, 1) * sign, z_hr


def test_the_time_of_latents_is_measured_with_the_encoder_as_it_is():
    numbers = snr_match([pairs([0.5, 0.5]), pairs([0.5])], 0.4)
    assert numbers == {
        "snr/t_star": 0.4,
        "snr/t_measured": pytest.approx(0.5 / 1.5),
        "snr/residual": pytest.approx(0.5),
        "snr/residual_at_t_star": pytest.approx(0.4 / 0.6),
    }


def test_pairs_without_noise_or_of_no_numbers_are_left_out_of_the_time():
    z_lr, z_hr = pairs([0.8, 0.0, 0.8])
    z_lr[2, 0, 0, 0] = math.nan
    numbers = snr_match([(z_lr, z_hr), (z_hr, z_hr)], 0.4)
    assert numbers["snr/t_measured"] == pytest.approx(0.8 / 1.8)
    assert numbers["snr/residual"] == pytest.approx(0.8)
    nothing = snr_match([(z_hr, z_hr)], 0.4)
    assert math.isnan(nothing["snr/t_measured"])
    assert math.isnan(nothing["snr/residual"])
    assert nothing["snr/t_star"] == 0.4


def test_a_straight_path_is_straight():
    z_lr, z_hr = pairs([0.5, 0.7])
    t_star = 0.4
    # one batch, whose field leads to z_hr in one step from t*: constant along the path
    numbers = straightness(lambda *_: (z_lr - z_hr) / t_star, [(z_lr, z_hr)], t_star)
    assert numbers == {
        f"straightness/{name}": pytest.approx(0, abs=1e-12)
        for name in (
            "off_4_steps",
            "off_16_steps",
            "error_1_step",
            "error_4_steps",
            "error_16_steps",
        )
    }


def test_a_bent_path_is_off_by_what_its_factors_say():
    z_lr, z_hr = pairs([0.5, 0.7])
    t_star = 0.4
    # dz/dt = z: n steps multiply by (1 - t*/n)^n
    batches = [(z_lr[:1], z_hr[:1]), (z_lr[1:], z_hr[1:])]
    numbers = straightness(lambda z, _: z, batches, t_star)
    for steps in (4, 16):
        expected = abs((1 - t_star) - (1 - t_star / steps) ** steps) / t_star
        assert numbers[f"straightness/off_{steps}_steps"] == pytest.approx(expected)
    for steps, name in ((1, "1_step"), (4, "4_steps"), (16, "16_steps")):
        end = (1 - t_star / steps) ** steps * z_lr.numpy()
        expected = np.square(end - z_hr.numpy()).mean()
        assert numbers[f"straightness/error_{name}"] == pytest.approx(expected)


def test_a_field_that_stands_still_is_straight():
    z_lr, z_hr = pairs([0.5])
    numbers = straightness(lambda z, _: torch.zeros_like(z), [(z_lr, z_hr)], 0.4)
    assert numbers["straightness/off_4_steps"] == 0.0


def test_gradient_norms_are_those_of_each_loss_in_each_part():
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(2, 2)
    second.bias.requires_grad_(False)
    x = torch.tensor([3.0, 4.0])
    first.weight.grad = torch.full((1, 2), 7.0)
    losses = {
        "a": 2 * first(x).sum(),  # 2 x
        "b": second(x)[0] - first(x).sum(),  # x in one row; -x
        "c": 5 * second(x).sum(),  # 5 x in both rows
    }
    norms = gradient_norms(losses, {"codec": first, "velocity": second})
    assert norms == {
        "gradient_norm_codec/a": pytest.approx(10),
        "gradient_norm_velocity/a": 0.0,
        "gradient_norm_codec/b": pytest.approx(5),
        "gradient_norm_velocity/b": pytest.approx(5),
        "gradient_norm_codec/c": 0.0,
        "gradient_norm_velocity/c": pytest.approx(25 * math.sqrt(2)),
    }
    assert torch.equal(first.weight.grad, torch.full((1, 2), 7.0))
    assert second.weight.grad is None


def test_one_loss_s_gradients_are_gone_before_the_next_one_s():
    module = nn.Linear(4, 4, bias=False)
    alive: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []

    class Noted(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, gradient):
            counts.append(sum(ref() is not None for ref in alive))
            fresh = gradient.clone()
            alive.append(weakref.ref(fresh))
            return fresh

    weight = Noted.apply(module.weight)
    losses = {name: (weight * factor).sum() for name, factor in (("a", 1.0), ("b", 2.0))}
    norms = gradient_norms(losses, {"all": module})
    assert list(norms.values()) == [pytest.approx(4), pytest.approx(8)]
    assert counts == [0, 0]
    with pytest.raises(RuntimeError, match="second time"):  # nothing is kept after the last one
        (losses["b"] + 0 * module.weight.sum()).backward()
