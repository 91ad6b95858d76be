"""Procedural images: determinism, and statistics against photographs' and closed forms."""

import math
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import integrate, stats
from skimage.transform import ProjectiveTransform

from allosr2.data.procedural import procedural_image
from allosr2.data.procedural.facades import UNIT_SQUARE, facade_layer, project
from allosr2.data.procedural.layers import Fills, over, render, render_whole, soften, to_bytes
from allosr2.data.procedural.leaves import draw_polygons, leaf_layer, leaf_outlines
from allosr2.data.procedural.lettering import font_paths, text_layer
from allosr2.data.procedural.lines import line_layer
from allosr2.data.procedural.materials import OPPONENT_AXES, natural_colors, sample_materials
from allosr2.data.procedural.sampling import log_uniform, mean_squared_radius, sample_radii
from allosr2.data.procedural.scene import FAMILIES
from allosr2.data.procedural.terrain import terrain_layer
from allosr2.data.procedural.textures import noise, texture_stack
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


def slope(power):
    """Exponent of a power law over 4 cycles an image to 0.9 of the Nyquist frequency."""
    frequency = np.arange(4, round(0.9 * len(power)))
    return stats.linregress(np.log(frequency), np.log(power[frequency])).slope


@pytest.fixture(scope="module")
def images():
    return [procedural_image(11, index, SIZE) for index in range(80)]


def test_an_image_depends_on_seed_index_and_size_alone(images):
    for index in (70, 3, 41):
        np.testing.assert_array_equal(procedural_image(11, index, SIZE), images[index])
    assert not np.array_equal(procedural_image(12, 3, SIZE), images[3])


def test_another_process_makes_the_same_image_and_does_not_import_matplotlib(images):
    code = (
        "import sys, zlib; from allosr2.data.procedural import procedural_image\n"
        f"crc = [zlib.crc32(procedural_image(11, i, {SIZE}).tobytes()) for i in range(8)]\n"
        "print(crc, 'matplotlib' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"{[zlib.crc32(i.tobytes()) for i in images[:8]]} False"


def test_indices_give_different_images(images):
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("size", [16, 17, 96, 200])
def test_type_shape_and_content_at_any_size(size):
    for index in range(12):
        image = procedural_image(0, index, size)
        assert image.dtype == np.uint8
        assert image.shape == (size, size, 3)
        assert image.std() > 1.0


def test_the_range_of_8_bits_is_used(images):
    lightness = np.stack(images).mean(axis=-1)
    low, middle, high = np.percentile(lightness, [1, 50, 99])
    assert low < 25
    assert 90 < middle < 150
    assert high > 225
    clipped = np.mean((np.stack(images) == 0) | (np.stack(images) == 255))
    assert clipped < 0.08


def test_the_power_spectrum_falls_as_photographs_do(images):
    # Photographs: power about 1/f^2 (Ruderman and Bialek 1994; exponents from 1.5 to 3).
    normalized = []
    for image in images:
        lightness = image.mean(axis=-1)
        normalized.append(radial_power(lightness) / lightness.var())
    assert -2.6 < slope(np.mean(normalized, axis=0)) < -1.7


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


def test_radii_follow_a_power_law_of_exponent_3():
    r_min, r_max = 2.0, 100.0
    radii = sample_radii(np.random.default_rng(0), 20_000, r_min, r_max)
    law = stats.truncpareto(b=2.0, c=r_max / r_min, scale=r_min)  # density ~ r^-(b + 1)
    assert stats.kstest(radii, law.cdf).pvalue > 0.01
    # Hill's estimate of the tail's exponent; truncation at r_max adds less than 0.01.
    assert 1.0 + 1.0 / np.log(radii / r_min).mean() == pytest.approx(3.0, abs=0.05)
    assert r_min <= radii.min() < radii.max() <= r_max


def test_mean_squared_radius_is_the_integral():
    mass = integrate.quad(lambda r: r**-3, 2.0, 50.0)[0]
    moment = integrate.quad(lambda r: r**2 * r**-3, 2.0, 50.0)[0]
    assert mean_squared_radius(2.0, 50.0) == pytest.approx(moment / mass, rel=1e-9)


def test_log_uniform_is_scipys():
    drawn = log_uniform(np.random.default_rng(1), 0.5, 8.0, 5000)
    assert stats.kstest(drawn, stats.loguniform(0.5, 8.0).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_noise_has_its_spectrum(alpha):
    fields = [noise(np.random.default_rng(seed), SIZE, alpha) for seed in range(40)]
    # Ridged fields have another spectrum and a skew; those stretched keep the exponent.
    gaussian = [field for field in fields if abs(stats.skew(field.ravel())) < 0.5]
    assert len(gaussian) > 20
    mean_power = np.mean([radial_power(field) for field in gaussian], axis=0)
    assert slope(mean_power) == pytest.approx(-alpha, abs=0.25)


def test_textures_are_standardized():
    textures = texture_stack(np.random.default_rng(2), SIZE)
    assert textures.dtype == np.float32
    np.testing.assert_allclose(textures.mean(axis=(1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose(textures.std(axis=(1, 2)), 1.0, atol=1e-3)


def test_colors_vary_mostly_in_lightness():
    np.testing.assert_allclose(OPPONENT_AXES @ OPPONENT_AXES.T, np.eye(3), atol=1e-12)
    generator = np.random.default_rng(3)
    colors = np.concatenate([natural_colors(generator, 24) for _ in range(400)])
    assert 0.0 <= colors.min() < colors.max() <= 1.0
    variances = np.linalg.eigvalsh(np.cov(colors.T))
    green_magenta, blue_yellow, light = np.sqrt(variances)
    # Photographs: 0.46, 0.16 and 0.06.
    assert 0.3 < light < 0.55
    assert 0.08 < blue_yellow < 0.2
    assert 0.03 < green_magenta < 0.1


def plain_fills(*colors):
    count = len(colors) + 1
    color = np.zeros((count, 4), np.float32)
    color[1:, :3], color[1:, 3] = colors, 1.0
    return Fills(
        color=color,
        tint=np.zeros((count, 4), np.float32),
        plane=np.zeros((count, 3), np.float32),
        texture=np.zeros(count, np.int32),
        amplitude=np.zeros(count, np.float32),
    )


def test_a_rendered_disk_has_its_area_and_soft_edges():
    theta = np.linspace(0.0, 2.0 * np.pi, 200, endpoint=False)
    outline = 32.0 + 20.0 * np.column_stack([np.cos(theta), np.sin(theta)])
    label_map = draw_polygons(64, outline, np.array([200]))
    layer = render(label_map, plain_fills((0.2, 0.4, 0.8)), np.zeros((1, 64, 64), np.float32))
    alpha = layer[..., 3]
    # Pillow's polygons include their outline: half a sample, a quarter of a pixel, all around.
    assert alpha.sum() == pytest.approx(np.pi * 20.25**2, rel=0.02)
    assert set(np.unique(alpha)) == {0.0, 0.25, 0.5, 0.75, 1.0}
    np.testing.assert_allclose(layer[..., :3], alpha[..., None] * [0.2, 0.4, 0.8], atol=1e-6)


def test_gradient_and_texture_of_a_fill_are_where_they_belong():
    texture = np.random.default_rng(0).standard_normal((2, 16, 16)).astype(np.float32)
    fills = plain_fills((0.5, 0.5, 0.5))
    fills.tint[1] = [0.1, 0.2, 0.3, 0.0]
    fills.plane[1] = [0.5, 0.01, -0.02]
    fills.texture[1], fills.amplitude[1] = 1, 0.7
    y, x = np.mgrid[:16, :16]
    weight = 0.5 + 0.01 * x - 0.02 * y + 0.7 * texture[1]
    expected = 0.5 + weight[..., None] * np.array([0.1, 0.2, 0.3])
    for layer in (
        render(np.ones((32, 32), np.int32), fills, texture),
        render_whole(fills, texture),
    ):
        np.testing.assert_allclose(layer[..., :3], expected, atol=1e-5)
        np.testing.assert_array_equal(layer[..., 3], 1.0)


def test_over_is_alpha_compositing():
    generator = np.random.default_rng(4)
    front, back = generator.integers(0, 256, (2, 32, 32, 4), dtype=np.uint8)
    back[..., 3] = 255

    def premultiplied(straight):
        layer = straight.astype(np.float32) / 255
        layer[..., :3] *= layer[..., 3:]
        return layer

    expected = Image.alpha_composite(Image.fromarray(back), Image.fromarray(front))
    ours = to_bytes(over(premultiplied(front), premultiplied(back)))
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 1


def test_soften_keeps_the_mean_and_removes_detail():
    image = np.random.default_rng(5).random((64, 64, 3), dtype=np.float32)
    blurred = soften(image, 2.0)
    assert blurred.mean() == pytest.approx(image.mean(), abs=0.005)
    # A Gaussian of deviation s divides white noise's variance by 4 pi s^2.
    assert image.var() / blurred.var() == pytest.approx(4 * np.pi * 4.0, rel=0.25)


def test_perspective_is_skimages():
    corners = np.array([[-3.0, 2.0], [70.0, -8.0], [55.0, 80.0], [4.0, 60.0]])
    np.testing.assert_allclose(project(UNIT_SQUARE, corners), corners, atol=1e-9)
    points = np.random.default_rng(6).random((50, 2))
    expected = ProjectiveTransform.from_estimate(UNIT_SQUARE, corners)(points)
    np.testing.assert_allclose(project(points, corners), expected, atol=1e-6)


def test_leaf_outlines_lie_around_their_centers():
    generator = np.random.default_rng(7)
    radius = sample_radii(generator, 500, 2.0, 60.0)
    center = generator.uniform(0.0, 100.0, (500, 2))
    vertices, counts = leaf_outlines(generator, center, radius)
    assert len(vertices) == counts.sum()
    leaf = np.repeat(np.arange(500), counts)
    reach = np.linalg.norm(vertices - center[leaf], axis=1) / radius[leaf]
    assert reach.max() <= 1.4 * 0.15**-0.25 + 1e-9
    assert reach.min() > 0.04


def test_density_is_leaf_area_over_image_area():
    # exp(-density) of the ground stays uncovered (Poisson); bounds on the leaf count leave more.
    uncovered = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        layer = leaf_layer(generator, SIZE, sample_materials(generator, SIZE), 0.5)
        uncovered.append(1.0 - layer[..., 3].mean())
    assert np.mean(uncovered) == pytest.approx(math.exp(-0.5), abs=0.1)


@pytest.mark.parametrize("layer_of", [leaf_layer, line_layer, facade_layer, text_layer])
def test_layers_are_premultiplied(layer_of):
    extra = {leaf_layer: (0.5,), text_layer: (0.4,)}.get(layer_of, ())
    for seed in range(6):
        generator = np.random.default_rng(seed)
        layer = layer_of(generator, SIZE, sample_materials(generator, SIZE), *extra)
        alpha = layer[..., 3]
        assert layer.shape == (SIZE, SIZE, 4)
        assert -1e-6 <= alpha.min() <= alpha.max() <= 1.0 + 1e-6
        assert 0.0 < alpha.mean() <= 1.0
        np.testing.assert_array_equal(layer[alpha == 0.0], 0.0)


def test_terrain_covers_everything():
    generator = np.random.default_rng(8)
    layer = terrain_layer(generator, SIZE, sample_materials(generator, SIZE))
    np.testing.assert_allclose(layer[..., 3], 1.0, atol=1e-6)


def test_text_stands_out_from_the_ground():
    contrasts = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        materials = sample_materials(generator, SIZE)
        ground = float(generator.uniform(0.2, 0.8))
        layer = text_layer(generator, SIZE, materials, ground)
        letters = layer[layer[..., 3] > 0.99]
        contrasts.append(np.abs(letters[:, :3].mean(axis=-1) - ground).max())
    assert min(contrasts) > 0.2


def test_text_needs_no_font_but_pillows(monkeypatch):
    monkeypatch.setattr("allosr2.data.procedural.lettering.font_paths", lambda: ())
    generator = np.random.default_rng(9)
    layer = text_layer(generator, SIZE, sample_materials(generator, SIZE), 0.5)
    assert layer[..., 3].max() > 0.9


def test_fonts_are_text_fonts():
    assert all(path.suffix == ".ttf" and path.is_file() for path in font_paths())
