"""The laws that images are drawn from, and each kind of layer: against closed forms and scipy."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from allosr2.data.procedural import fonts, lettering
from allosr2.data.procedural.drawings import drawing_layer
from allosr2.data.procedural.facades import facade_layer
from allosr2.data.procedural.labels import MOST_LABELS
from allosr2.data.procedural.leaves import leaf_layer, leaf_outlines, sample_leaves
from allosr2.data.procedural.lettering import text_layer
from allosr2.data.procedural.lines import line_layer
from allosr2.data.procedural.materials import sample_fills, sample_materials
from allosr2.data.procedural.palette import CAST_SCALES, LIGHT_MEAN, OPPONENT_AXES, sample_palette
from allosr2.data.procedural.patterns import PATTERNS, sample_coordinates
from allosr2.data.procedural.sampling import (
    P_UPRIGHT,
    log_uniform,
    mean_squared_radius,
    sample_angle,
    sample_radii,
)
from allosr2.data.procedural.terrain import terrain_layer
from allosr2.data.procedural.textures import noise, texture_stack

SIZE = 128


def spectrum_slope(fields):
    """Exponent of a power law through the fields' mean power, over rings of equal frequency."""
    power = np.mean([np.abs(np.fft.fft2(field)) ** 2 for field in fields], axis=0)
    frequency = np.fft.fftfreq(SIZE) * SIZE
    ring = np.hypot(frequency[:, None], frequency[None]).round().astype(int).ravel()
    mean = np.bincount(ring, power.ravel()) / np.bincount(ring)
    inner = np.arange(4, 58)
    return stats.linregress(np.log(inner), np.log(mean[inner])).slope


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


def test_angles_are_upright_or_any():
    generator = np.random.default_rng(2)
    turns = np.array([sample_angle(generator) for _ in range(5000)]) / (
        math.pi / 2
    )  # quarter turns
    upright = turns == turns.round()
    assert upright.mean() == pytest.approx(P_UPRIGHT, abs=0.02)
    assert np.bincount(turns[upright].astype(int)) == pytest.approx(np.full(4, 500), rel=0.15)
    assert stats.kstest(turns[~upright], stats.uniform(0.0, 4.0).cdf).pvalue > 0.01


def test_log_uniform_is_scipys():
    drawn = log_uniform(np.random.default_rng(1), 0.5, 8.0, 5000)
    assert stats.kstest(drawn, stats.loguniform(0.5, 8.0).cdf).pvalue > 0.01


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_noise_has_its_spectrum(alpha):
    fields = [noise(np.random.default_rng(seed), SIZE, alpha) for seed in range(40)]
    # Ridged fields have another spectrum and a skew; those stretched keep the exponent.
    gaussian = [field for field in fields if abs(stats.skew(field.ravel())) < 0.5]
    assert len(gaussian) > 20
    assert spectrum_slope(gaussian) == pytest.approx(-alpha, abs=0.25)


def test_noise_is_normal_though_its_spectrum_is_drawn_from_uniform_numbers():
    fields = [noise(np.random.default_rng(seed), SIZE, 0.5) for seed in range(12)]
    gaussian = [field for field in fields if abs(stats.skew(field.ravel())) < 0.5]
    thinned = np.concatenate([field[::8, ::8].ravel() for field in gaussian])
    assert stats.kstest(thinned, stats.norm.cdf).pvalue > 0.01


def test_textures_are_standardized_and_of_several_kinds():
    counts = set()
    for seed in range(12):
        textures = texture_stack(np.random.default_rng(seed), SIZE)
        assert textures.dtype == np.float32
        np.testing.assert_allclose(textures.mean(axis=(1, 2)), 0.0, atol=1e-4)
        np.testing.assert_allclose(textures.std(axis=(1, 2)), 1.0, atol=1e-3)
        counts.add(len(textures))
    assert counts == {2, 3, 4, 5}


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.__name__)
def test_patterns_vary_in_any_coordinates(pattern):
    bend = noise(np.random.default_rng(0), SIZE, 2.0)
    for seed in range(8):
        generator = np.random.default_rng(seed)
        field = pattern(generator, sample_coordinates(generator, SIZE, bend))
        assert field.shape == (SIZE, SIZE)
        assert np.isfinite(field).all()
        assert field.std() > 0.01


def test_a_tilted_surface_is_coarser_near_and_never_finer_than_drawn():
    bend = np.zeros((SIZE, SIZE), np.float32)
    tilted = 0
    for seed in range(40):
        at = sample_coordinates(np.random.default_rng(seed), SIZE, bend)
        for field, step in ((at.u, at.du), (at.v, at.dv)):
            down, across = np.gradient(field.astype(float))
            found = np.hypot(down, across)
            np.testing.assert_allclose(found, np.broadcast_to(step, field.shape), rtol=0.03)
            assert found.max() < 1.02
        tilted += not isinstance(at.du, float)
    assert 6 <= tilted <= 24


def test_the_opponent_axes_are_a_rotation():
    np.testing.assert_allclose(OPPONENT_AXES @ OPPONENT_AXES.T, np.eye(3), atol=1e-12)


def test_scenes_differ_in_light_and_color_as_the_fitted_laws_say():
    generator = np.random.default_rng(3)
    middles, deviations = [], []
    for _ in range(1500):
        colors = sample_palette(generator, 60).colors.astype(float)
        assert 0.0 <= colors.min() <= colors.max() <= 1.0
        light = colors.mean(axis=1)
        fade = np.sqrt(4.0 * light * (1.0 - light)).clip(0.1)
        chroma = (colors @ OPPONENT_AXES[1:].T) / fade[:, None]
        middles.append([light.mean(), *chroma.mean(axis=0)])
        deviations.append([light.std(), *chroma.std(axis=0)])
    light, *cast = np.transpose(middles)
    assert light.mean() == pytest.approx(stats.beta(*LIGHT_MEAN).mean(), abs=0.03)
    assert light.std() == pytest.approx(stats.beta(*LIGHT_MEAN).std(), rel=0.15)
    # The mean absolute value of a Laplace variable is its scale; clipping to RGB takes some.
    np.testing.assert_allclose(np.abs(cast).mean(axis=1), CAST_SCALES, rtol=0.12)
    # Medians over crops of photographs.
    np.testing.assert_allclose(np.median(deviations, axis=0), [0.16, 0.066, 0.027], rtol=0.35)


def test_what_has_no_color_of_its_own_has_little_within():
    generator = np.random.default_rng(4)
    palettes = [sample_palette(generator, 60).colors @ OPPONENT_AXES[1].T for _ in range(1500)]
    cast, spread = np.abs([p.mean() for p in palettes]), np.array([p.std() for p in palettes])
    assert stats.spearmanr(cast, spread).statistic == pytest.approx(0.45, abs=0.15)


def test_gradients_span_their_objects():
    generator = np.random.default_rng(5)
    materials = sample_materials(generator, SIZE)
    center, radius = generator.uniform(0.0, SIZE, (400, 2)), generator.uniform(3.0, 40.0, 400)
    fills = sample_fills(generator, materials, center, radius)
    angle = generator.uniform(0.0, 2.0 * math.pi, 400)
    x, y = (center + radius[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])).T
    weight = (fills.plane[:, 1:] * [np.ones(400), x, y, x**2 + y**2]).sum(axis=0)
    assert np.abs(weight).max() <= 1.7 * 3.0 + 0.1  # linear and round part, STEEPNESS
    middle = np.array([np.ones(400), *center.T, (center**2).sum(axis=1)])
    np.testing.assert_allclose((fills.plane[:, 1:] * middle).sum(axis=0), 0.0, atol=0.02)
    texels = fills.texel[0] + fills.texel[1] * (SIZE - 1) + fills.texel[2] * (SIZE - 1)
    for corner in (fills.texel[0], texels):
        assert 0 <= corner.min() <= corner.max() < materials.textures.size


def test_leaf_outlines_lie_around_their_centers():
    generator = np.random.default_rng(7)
    radius = sample_radii(generator, 500, 2.0, 60.0)
    center = generator.uniform(0.0, 100.0, (500, 2))
    vertices, counts = leaf_outlines(generator, center, radius)
    assert len(vertices) == counts.sum()
    leaf = np.repeat(np.arange(500), counts)
    reach = np.linalg.norm(vertices - center[leaf], axis=1) / radius[leaf]
    assert reach.max() <= 1.4 * 0.15**-0.25 + 1e-4
    assert reach.min() > 0.04


def test_density_is_leaf_area_over_image_area():
    generator = np.random.default_rng(8)
    covered = []
    for _ in range(200):
        _, radius = sample_leaves(generator, SIZE, 0.5, 8.0)
        covered.append(math.pi * (radius**2).sum() / SIZE**2)
    # Centers are spread over the image and a margin of up to 0.25 x 0.6 sides.
    assert 0.5 < np.mean(covered) < 0.5 * 1.3**2


def test_more_leaves_than_labels_are_drawn():
    generator = np.random.default_rng(9)
    center, _ = sample_leaves(generator, 256, 3.0, 2.0)
    assert len(center) > MOST_LABELS
    # those on a receding plane cover less of the picture
    layers = [leaf_layer(generator, 256, sample_materials(generator, 256), 3.0) for _ in range(8)]
    assert np.mean([layer[3].mean() for layer in layers]) > 0.5


LAYERS = {
    leaf_layer: (0.5,),
    text_layer: (0.4,),
    line_layer: (),
    facade_layer: (),
    drawing_layer: (),
}


@pytest.mark.parametrize("layer_of", LAYERS)
def test_layers_are_premultiplied(layer_of):
    for seed in range(6):
        generator = np.random.default_rng(seed)
        layer = layer_of(generator, SIZE, sample_materials(generator, SIZE), *LAYERS[layer_of])
        alpha = layer[3]
        assert layer.shape == (4, SIZE, SIZE)
        assert -1e-6 <= alpha.min() <= alpha.max() <= 1.0 + 1e-6
        assert 0.0 < alpha.mean() <= 1.0
        np.testing.assert_array_equal(layer[:, alpha == 0.0], 0.0)


def test_terrain_covers_everything():
    generator = np.random.default_rng(8)
    layer = terrain_layer(generator, SIZE, sample_materials(generator, SIZE))
    np.testing.assert_allclose(layer[3], 1.0, atol=1e-6)


def test_text_stands_out_from_the_ground():
    contrasts = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        materials = sample_materials(generator, SIZE)
        ground = float(generator.uniform(0.2, 0.8))
        layer = text_layer(generator, SIZE, materials, ground)
        letters = layer[:3, layer[3] > 0.99]
        contrasts.append(np.abs(letters.mean(axis=0) - ground).max())
    assert min(contrasts) > 0.2


def test_text_needs_no_font_but_pillows(monkeypatch):
    monkeypatch.setattr(lettering, "font_paths", lambda: ())
    generator = np.random.default_rng(9)
    layer = text_layer(generator, SIZE, sample_materials(generator, SIZE), 0.5)
    assert layer[3].max() > 0.9


def test_fonts_are_several_text_fonts_that_draw_letters_apart():
    paths = fonts.font_paths()
    assert all(path.suffix == ".ttf" and path.is_file() for path in paths)
    assert len({path.stem.partition("-")[0] for path in paths}) >= 8
    for index in range(len(paths) + 1):
        face = fonts.font(index, 24)
        masks = [bytes(face.getmask(letter)) for letter in set(fonts.LETTERS)]
        assert len(set(masks)) == len(masks)


def test_words_are_words_numbers_and_marks():
    words = fonts.random_words(np.random.default_rng(0), 400)
    assert len(words) == 400
    bare = [word.rstrip(fonts.MARKS) for word in words]
    assert all(word.isalnum() for word in bare)
    assert np.mean([word.isdigit() for word in bare]) == pytest.approx(0.15, abs=0.06)
    assert len(set(bare)) > 300
