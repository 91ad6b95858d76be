"""Procedural images: determinism, and statistics beside photographs'."""

import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from allosr2.data.procedural import procedural_image
from allosr2.data.procedural.lens import defocus
from allosr2.data.procedural.palette import OPPONENT_AXES
from allosr2.data.procedural.scene import FAMILIES
from allosr2.errors import ConfigError

SIZE = 128


def radial_power(field):
    """Power spectrum of a square field, windowed, averaged over rings of one frequency step."""
    size = len(field)
    window = np.hanning(size)
    power = np.abs(np.fft.fft2((field - field.mean()) * np.outer(window, window))) ** 2
    frequency = np.fft.fftfreq(size) * size
    ring = np.hypot(frequency[:, None], frequency[None]).round().astype(int).ravel()
    return (np.bincount(ring, power.ravel()) / np.bincount(ring))[: size // 2]


def mean_slope(images):
    """Exponent of a power law through the images' mean spectrum, from 4 cycles an image on."""
    lightness = [image.mean(axis=-1) for image in images]
    power = np.mean([radial_power(x) / max(x.var(), 1.0) for x in lightness], axis=0)
    frequency = np.arange(4, round(0.9 * len(power)))
    return stats.linregress(np.log(frequency), np.log(power[frequency])).slope


def gradient_kurtosis(image):
    """Excess kurtosis of differences along rows: 0 for noise, large where edges part plain surfaces."""
    return float(stats.kurtosis(np.diff(image.mean(axis=-1), axis=1).ravel()))


def color_statistics(images):
    """Mean and deviation of the two color coordinates of each image, RGB in [0, 1]."""
    chroma = [(image.reshape(-1, 3) / 255.0) @ OPPONENT_AXES[1:].T for image in images]
    return np.array([[*c.mean(axis=0), *c.std(axis=0)] for c in chroma])


@pytest.fixture(scope="module")
def images():
    return [procedural_image(11, index, SIZE) for index in range(240)]


def crops(shared_data, size):
    """Three crops of each of the photographs beside the checkout."""
    generator = np.random.default_rng(0)
    cropped = []
    for path in sorted((shared_data / "photos").glob("*.jpg")):
        with Image.open(path) as photo:
            for _ in range(3):
                left, top = (int(generator.integers(side - size + 1)) for side in photo.size)
                box = (left, top, left + size, top + size)
                cropped.append(np.asarray(photo.crop(box).convert("RGB")))
    if not cropped:
        pytest.skip(f"no photographs in {shared_data / 'photos'}")
    return cropped


def test_an_image_depends_on_seed_index_and_size_alone(images):
    for index in (70, 3, 41):
        np.testing.assert_array_equal(procedural_image(11, index, SIZE), images[index])
    assert not np.array_equal(procedural_image(12, 3, SIZE), images[3])


def test_another_process_makes_the_same_image_and_imports_neither_matplotlib_nor_torch(images):
    code = (
        "import sys, zlib; from allosr2.data.procedural import procedural_image\n"
        f"crc = [zlib.crc32(procedural_image(11, i, {SIZE}).tobytes()) for i in range(8)]\n"
        "print(crc, {'matplotlib', 'torch'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{[zlib.crc32(i.tobytes()) for i in images[:8]]} set()"


def test_no_image_comes_twice():
    drawn = [procedural_image(seed, index, 32) for seed in (0, 1, 10) for index in range(100)]
    assert len({image.tobytes() for image in drawn}) == len(drawn)
    # Nor with the colors of another, mirrored or turned: next to equal up to a factor and a constant.
    shapes = []
    for image in drawn:
        lightness = image.mean(axis=-1) - image.mean()
        shapes.append(lightness / (np.linalg.norm(lightness) + 1e-9))
    flat = np.reshape(shapes, (len(shapes), -1))
    for turned in (
        shapes,
        [s.T for s in shapes],
        [s[::-1] for s in shapes],
        [s[:, ::-1] for s in shapes],
    ):
        likeness = np.abs(flat @ np.reshape(turned, (len(shapes), -1)).T)
        np.fill_diagonal(likeness, 0.0)
        assert likeness.max() < 0.99


@pytest.mark.parametrize("size", [16, 17, 96, 200])
def test_type_shape_and_content_at_any_size(size):
    for index in range(12):
        image = procedural_image(0, index, size)
        assert image.dtype == np.uint8
        assert image.shape == (size, size, 3)
        assert image.flags.c_contiguous
        assert len(np.unique(image)) > 4


def test_the_range_of_8_bits_is_used(images):
    lightness = np.stack(images).mean(axis=-1)
    low, middle, high = np.percentile(lightness, [1, 50, 99])
    assert low < 25
    assert 80 < middle < 150
    assert high > 225
    clipped = np.mean((np.stack(images) == 0) | (np.stack(images) == 255))
    assert clipped < 0.08


def test_the_power_spectrum_falls_as_photographs_do(images):
    # Photographs: power about 1/f^2 (Ruderman and Bialek 1994; exponents from 1.5 to 3).
    assert -2.7 < mean_slope(images) < -1.9


def test_the_power_spectrum_is_that_of_photographs_at_hand(images, shared_data):
    assert mean_slope(images) == pytest.approx(mean_slope(crops(shared_data, SIZE)), abs=0.3)


def test_gradients_are_heavy_tailed(images):
    # Huang and Mumford (1999): derivatives of photographs have a kurtosis far above noise's.
    kurtoses = [gradient_kurtosis(image) for image in images]
    assert np.median(kurtoses) > 6.0
    assert np.mean(np.array(kurtoses) > 1.0) > 0.95
    noise = np.random.default_rng(0).normal(128.0, 20.0, (SIZE, SIZE, 3))
    assert abs(gradient_kurtosis(noise)) < 0.2


def test_colors_are_those_of_photographs_at_hand(shared_data):
    # On larger crops: in small ones, photographs have less of their scene's colors.
    drawn = [procedural_image(11, index, 2 * SIZE) for index in range(100)]
    ours, theirs = color_statistics(drawn), color_statistics(crops(shared_data, 2 * SIZE))
    # How much the images' mean colors differ, and how much color there is within one.
    np.testing.assert_allclose(ours[:, :2].std(axis=0), theirs[:, :2].std(axis=0), rtol=0.35)
    ratio = np.median(ours[:, 2:], axis=0) / np.median(theirs[:, 2:], axis=0)
    assert ((ratio > 0.6) & (ratio < 2.0)).all()


def test_channels_are_correlated_as_in_photographs(images):
    correlations = [np.corrcoef(image.reshape(-1, 3).T)[np.triu_indices(3, 1)] for image in images]
    assert 0.8 < np.mean(correlations) < 0.98


def test_images_are_sharp_to_the_pixel(images):
    # An image that was enlarged x2 has next to nothing above half of the Nyquist frequency.
    def high_share(image):
        power = radial_power(image.mean(axis=-1))
        return power[SIZE // 3 :].mean() / power[SIZE // 16 : SIZE // 8].mean()

    def enlarged(image):
        half = Image.fromarray(image).reduce(2)
        return np.asarray(half.resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    ratios = [high_share(image) / high_share(enlarged(image)) for image in images]
    assert np.median(ratios) > 5.0


def test_some_images_are_in_part_out_of_focus(images):
    # Blurred once more, what is out of focus hardly changes.
    def change(image):
        planes = image.transpose(2, 0, 1).astype(np.float32)
        difference = np.abs(defocus(planes, 1.0) - planes).mean(axis=0)
        tiles = difference.reshape(8, SIZE // 8, 8, SIZE // 8).mean(axis=(1, 3))
        return np.percentile(tiles, 10) / np.percentile(tiles, 90)

    assert np.mean([change(image) < 0.1 for image in images]) > 0.1


@pytest.mark.parametrize("size", [15, 1, 0, -4])
def test_too_small_a_size_is_a_config_error(size):
    with pytest.raises(ConfigError, match=f"size = {size}"):
        procedural_image(0, 0, size)


def test_negative_seed_or_index_is_a_config_error():
    with pytest.raises(ConfigError, match="seed = -1"):
        procedural_image(-1, 0, 32)
    with pytest.raises(ConfigError, match="index = -2"):
        procedural_image(0, -2, 32)


def test_family_probabilities_sum_to_one():
    assert math.isclose(sum(FAMILIES.values()), 1.0)
