"""Operators against scipy, Pillow, scikit-image and the moments of the noise."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color
from torch import Tensor

from allosr2.data.degradation import operators
from allosr2.data.degradation.kernels import gaussian_kernel, sinc_kernel


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def as_array(image: Tensor) -> np.ndarray:
    return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def noise_generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("size", [(40, 57), (128, 96), (11, 11), (8, 30), (1, 5)])
def test_blur_is_a_mirrored_convolution(size: tuple[int, int]) -> None:
    images = random_images(2, 3, *size)
    kernels = random_images(2, 21, 21, seed=1)  # asymmetric: a correlation would differ
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    blurred = operators.blur(images, kernels)
    assert blurred.shape == images.shape
    for image, kernel, result in zip(images, kernels, blurred, strict=True):
        for channel in range(3):
            expected = ndimage.convolve(
                image[channel].double().numpy(), kernel.double().numpy(), mode="mirror"
            )
            np.testing.assert_allclose(result[channel].numpy(), expected, atol=2e-6)


def test_blur_by_a_gaussian_is_scipys_filter() -> None:
    image = random_images(1, 3, 64, 64)
    blurred = operators.blur(image, gaussian_kernel(21, 1.5, 1.5, 0.0)[None])
    expected = ndimage.gaussian_filter(image[0].numpy(), (0, 1.5, 1.5), mode="mirror", radius=10)
    np.testing.assert_allclose(blurred[0].numpy(), expected, atol=2e-6)


def test_blur_keeps_a_flat_image() -> None:
    flat = torch.full((1, 3, 30, 30), 0.4)
    torch.testing.assert_close(operators.blur(flat, sinc_kernel(15, 1.1)[None]), flat)


def test_resize_by_area_is_pillows_box() -> None:
    image = random_images(1, 3, 60, 48)
    resized = operators.resize(image, (20, 12), "area")
    for channel in range(3):
        expected = Image.fromarray(image[0, channel].numpy()).resize((12, 20), Image.Resampling.BOX)
        np.testing.assert_allclose(resized[0, channel].numpy(), np.asarray(expected), atol=1e-6)


def area_matrix(outputs: int, inputs: int) -> np.ndarray:
    """Each output is the mean of the whole pixels that its span touches."""
    matrix = np.zeros((outputs, inputs))
    for i in range(outputs):
        first, last = math.floor(i * inputs / outputs), math.ceil((i + 1) * inputs / outputs)
        matrix[i, first:last] = 1 / (last - first)
    return matrix


def cubic_matrix(outputs: int, inputs: int) -> np.ndarray:
    """Keys's cubic convolution with a = -0.75 at pixel centers, edges repeated."""

    def keys(x: float) -> float:
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((outputs, inputs))
    for i in range(outputs):
        center = (i + 0.5) * inputs / outputs - 0.5
        for j in range(math.floor(center) - 1, math.floor(center) + 3):
            matrix[i, min(max(j, 0), inputs - 1)] += keys(center - j)
    return matrix


@pytest.mark.parametrize("size", [(13, 41), (33, 7), (21, 30), (50, 61)])
@pytest.mark.parametrize(("mode", "matrix"), [("area", area_matrix), ("bicubic", cubic_matrix)])
def test_resize_is_a_product_of_matrices(size, mode, matrix) -> None:
    image = random_images(1, 3, 21, 30)
    resized = operators.resize(image, size, mode)
    rows, columns = matrix(size[0], 21), matrix(size[1], 30)
    expected = np.einsum("yh,chw,xw->cyx", rows, image[0].double().numpy(), columns)
    np.testing.assert_allclose(resized[0].numpy(), expected, atol=1e-5)


def test_resize_bilinear_samples_at_pixel_centers() -> None:
    image = random_images(1, 3, 21, 30)
    resized = operators.resize(image, (13, 41), "bilinear")
    rows = ((np.arange(13) + 0.5) * 21 / 13 - 0.5).clip(0)
    columns = ((np.arange(41) + 0.5) * 30 / 41 - 0.5).clip(0)
    points = np.meshgrid(rows, columns, indexing="ij")
    for channel in range(3):
        expected = ndimage.map_coordinates(
            image[0, channel].double().numpy(), points, order=1, mode="nearest"
        )
        np.testing.assert_allclose(resized[0, channel].numpy(), expected, atol=1e-5)


def test_resize_bicubic_reproduces_a_ramp_inside() -> None:
    ramp = torch.linspace(0, 1, 40).expand(1, 3, 40, 40)
    resized = operators.resize(ramp, (40, 52), "bicubic")
    position = (np.arange(52) + 0.5) * 40 / 52 - 0.5
    # With a = -0.75 a ramp is not exact (with -0.5 it would be): up to a tenth of its step remains.
    np.testing.assert_allclose(resized[0, 0, 5, 4:-4].numpy(), (position / 39)[4:-4], atol=0.1 / 39)
    step = torch.cat([torch.zeros(20), torch.ones(20)]).expand(1, 3, 40, 40)
    assert operators.resize(step, (52, 52), "bicubic").max() > 1.02  # it overshoots, unclamped


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_moments(gray: bool) -> None:
    images = torch.full((2, 3, 200, 200), 0.5)
    noise = (
        operators.add_gaussian_noise(images, 12.0, gray=gray, generator=noise_generator()) - images
    ) * 255
    count = 40_000 if gray else 120_000
    for sample in noise:
        assert abs(sample.mean().item()) < 5 * 12 / math.sqrt(count)
        assert sample.std().item() == pytest.approx(12, rel=5 / math.sqrt(2 * count))
        correlation = np.corrcoef(sample.flatten(1).numpy())
        assert np.allclose(correlation, 1, atol=1e-4) == gray
        if gray:
            assert torch.equal(sample[0], sample[1])
            assert torch.equal(sample[0], sample[2])
        else:
            assert abs(correlation[0, 1]) < 5 / 200
    assert not torch.equal(noise[0], noise[1])
    if not gray:
        kurtosis = ((noise / noise.std()) ** 4).mean().item()
        assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(24 / noise.numel()))


def steps_image(levels: int, low: int = 80, side: int = 240) -> tuple[Tensor, np.ndarray]:
    """A gray image of `levels` equally frequent 8-bit levels, and those levels in [0, 1]."""
    values = low + np.arange(levels)
    rows = np.repeat(values, side // levels)[:, None] / 255
    return torch.from_numpy(rows).float().expand(1, 3, -1, side), values / 255


@pytest.mark.parametrize(("levels", "peak"), [(1, 1), (2, 2), (3, 4), (40, 64), (60, 64)])
def test_poisson_noise_variance(levels: int, peak: int) -> None:
    images, values = steps_image(levels)
    scale = 0.1  # small, so that nothing is clamped
    noisy = operators.add_poisson_noise(images, scale, gray=False, generator=noise_generator())
    assert noisy.max() < 1
    noise = (noisy - images)[0].double()
    expected = (values * scale**2 / peak).mean()
    assert noise.var().item() == pytest.approx(expected, rel=0.04)
    assert noise.mean().item() == pytest.approx(0, abs=5 * math.sqrt(expected / noise.numel()))
    if levels == 1:  # counts are integers: noise = scale * (n - rate)
        counts = noise / scale + values[0]
        np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
        assert (counts.round() == 0).double().mean().item() == pytest.approx(
            math.exp(-values[0]), abs=0.01
        )


def test_poisson_variance_is_proportional_to_brightness() -> None:
    images, values = steps_image(4, low=40)
    noise = (
        operators.add_poisson_noise(images, 0.2, gray=False, generator=noise_generator()) - images
    )
    strips = noise[0].unfold(1, 60, 60).double().var(dim=(0, 2, 3))
    np.testing.assert_allclose(strips.numpy(), values * 0.2**2 / 4, rtol=0.06)


def test_gray_poisson_noise_is_that_of_the_luma() -> None:
    images = torch.tensor([0.6, 0.4, 0.2]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    noise = (
        operators.add_poisson_noise(images, 0.05, gray=True, generator=noise_generator()) - images
    )[0]
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(noise[0], noise[2], rtol=0, atol=1e-6)
    luma = color.rgb2yuv(images[0].permute(1, 2, 0).numpy())[0, 0, 0]
    assert noise.double().var().item() == pytest.approx(luma * 0.05**2, rel=0.03)


def test_poisson_counts_the_levels_of_each_sample() -> None:
    one, two = torch.full((3, 200, 200), 0.4), torch.full((3, 200, 200), 0.4)
    two[:, 0, 0] = 0.5
    noise = operators.add_poisson_noise(
        torch.stack([one, two]), 0.1, gray=False, generator=noise_generator()
    ) - torch.stack([one, two])
    ratio = noise[0].var() / noise[1].var()
    assert ratio.item() == pytest.approx(2, rel=0.03)


def test_noise_is_clamped() -> None:
    images = random_images(1, 3, 50, 50)
    for add_noise in (operators.add_gaussian_noise, operators.add_poisson_noise):
        noisy = add_noise(images, 30.0, gray=False, generator=noise_generator())
        assert noisy.min() == 0
        assert noisy.max() == 1


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
@pytest.mark.parametrize("size", [(64, 48), (17, 31), (1, 1)])
def test_jpeg_is_pillows_to_the_bit(quality: int, size: tuple[int, int]) -> None:
    images = random_images(2, 3, *size)
    coded = operators.jpeg(images, quality)
    for image, result in zip(images, coded, strict=True):
        stream = io.BytesIO()
        # 4:2:0 is Pillow's default, as it is OpenCV's.
        Image.fromarray(as_array(image)).save(stream, "JPEG", quality=quality)
        expected = np.asarray(Image.open(stream))
        assert np.array_equal((result * 255).round().permute(1, 2, 0).numpy(), expected)
        np.testing.assert_allclose(result.permute(1, 2, 0).numpy(), expected / 255, atol=1e-7)


def test_jpeg_clamps_first() -> None:
    images = random_images(1, 3, 32, 32) * 3 - 1
    assert torch.equal(operators.jpeg(images, 80), operators.jpeg(images.clamp(0, 1), 80))


def test_round_to_8_bits() -> None:
    values = torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 254.6 / 255, 1.3])
    expected = torch.tensor([0, 0, 0, 1, 128, 255, 255]) / 255
    images = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert torch.equal(operators.round_to_8_bits(images)[0, 0, 0], expected)
