"""Resampling against Pillow's, on floats: whole pictures, and any rows from the part that they rest on."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from allosr2.imaging.resize import enlarge, resize, resize_rows, support


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((31, 45), (124, 180)),
        ((124, 180), (31, 45)),
        ((40, 40), (13, 97)),
        ((64, 48), (5, 7)),
        ((1, 50), (4, 200)),
        ((50, 1), (17, 3)),
        ((1, 1), (4, 4)),
        ((2, 1), (4, 1)),
        ((50, 1), (17, 1)),
        ((9, 1), (1, 1)),
        ((9, 4), (5, 1)),
        ((1, 9), (1, 4)),
        ((1, 1), (1, 1)),
    ],
)
def test_equals_pillow(mode, source, target):
    plane = np.random.default_rng(0).random(source, dtype=np.float32)
    resample = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
    expected = np.asarray(Image.fromarray(plane).resize(target[::-1], resample))
    actual = resize(torch.tensor(plane)[None, None], target, mode)[0, 0]
    assert actual.shape == target
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-4)


def test_linear_and_not_clamped():
    edge = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    edge[..., 4:] = 1
    enlarged = resize(edge, (32, 32))
    assert -0.15 < enlarged.min() < -0.01
    assert 1.01 < enlarged.max() < 1.15
    torch.testing.assert_close(resize(3 * edge - 1, (32, 32)), 3 * enlarged - 1)


def test_keeps_batch_channels_and_constants():
    constant = torch.full((2, 5, 7, 9), 0.3)
    resized = resize(constant, (20, 4))
    assert resized.shape == (2, 5, 20, 4)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.3))


# ------------------------------------------------------------------------------------------ in parts


def by_pillow(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's bicubic on floats of `h w` (it works on one channel)."""
    return np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC))


@st.composite
def resamplings(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes of a picture and of its result, each side by a factor of its own from 0.1 to 9, often of 1."""
    source = draw(st.tuples(st.integers(1, 60), st.integers(1, 20)))
    factors = st.one_of(st.just(1.0), st.floats(0.1, 9))
    scaled = (max(round(side * draw(factors)), 1) for side in source)
    return source, tuple(scaled)


def plane_of(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(size).random(size, dtype=np.float32)


def part_of(plane: np.ndarray, target: tuple[int, int], rows: list[int]) -> torch.Tensor:
    """`rows` of a resampling from nothing but their support."""
    height = plane.shape[0]
    first, last = support((min(rows), max(rows) + 1), height, target[0])
    assert 0 <= first < last <= height
    part = torch.tensor(plane)[None, None, first:last]
    return resize_rows(part, first, height, target, torch.tensor(rows))[0, 0]


@given(resamplings(), st.data())
@settings(deadline=None, max_examples=200)
def test_any_rows_equal_pillow_s(sizes, draw):
    source, target = sizes
    rows = draw.draw(st.lists(st.integers(0, target[0] - 1), min_size=1, max_size=12))
    plane = plane_of(source)
    expected = by_pillow(plane, target)[rows]
    np.testing.assert_allclose(part_of(plane, target, rows).numpy(), expected, rtol=0, atol=1e-4)


@given(resamplings(), st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_bands_put_together_are_the_whole(sizes, band):
    source, target = sizes
    plane = plane_of(source)
    tops = range(0, target[0], band)
    bands = [part_of(plane, target, [*range(t, min(t + band, target[0]))]) for t in tops]
    whole = resize(torch.tensor(plane)[None, None], target)[0, 0]
    torch.testing.assert_close(torch.cat(bands), whole, rtol=0, atol=1e-5)


@given(resamplings())
@settings(deadline=None, max_examples=100)
def test_the_support_holds_all_that_matters_and_little_more(sizes):
    """The response of each row, by resampling impulses with Pillow."""
    (height, _), (length, _) = sizes
    matters = by_pillow(np.eye(height, dtype=np.float32), (length, height)) != 0
    for row in range(length):
        places = matters[row].nonzero()[0]
        first, last = support((row, row + 1), height, length)
        assert first <= places.min()
        assert last >= places.max() + 1
        assert last - first <= 4 * max(height / length, 1) + 3
    bounds = [support((row, length), height, length)[0] for row in range(length)]
    assert bounds == sorted(bounds)  # rows can be taken from a picture that passes by once
    assert support((0, length), height, length) == (0, height)


def test_rows_in_any_order_and_more_than_once():
    plane = plane_of((9, 5))
    rows = [35, 0, 17, 17, 3]
    expected = by_pillow(plane, (36, 20))[rows]
    np.testing.assert_allclose(part_of(plane, (36, 20), rows).numpy(), expected, rtol=0, atol=1e-4)


def test_rows_of_the_same_height_are_picked():
    image = torch.rand(1, 3, 12, 7, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([11, 4, 4])
    assert torch.equal(resize_rows(image, 0, 12, (12, 7), rows), image[..., rows, :])
    assert torch.equal(resize_rows(image[..., 3:, :], 3, 12, (12, 7), rows), image[..., rows, :])


def test_rows_are_linear_and_keep_type_channels_and_constants():
    image = torch.rand(2, 5, 8, 6, dtype=torch.float64)
    rows = torch.arange(3, 29)
    enlarged = resize_rows(image, 0, 8, (32, 24), rows)
    assert enlarged.dtype == torch.float64
    assert enlarged.shape == (2, 5, 26, 24)
    torch.testing.assert_close(resize_rows(3 * image - 1, 0, 8, (32, 24), rows), 3 * enlarged - 1)
    constant = resize_rows(torch.full((1, 1, 8, 6), 0.3), 0, 8, (5, 24), torch.arange(5))
    torch.testing.assert_close(constant, torch.full_like(constant, 0.3))


def test_enlarging_is_clamped():
    edge = torch.zeros(1, 1, 8, 8)
    edge[..., 4:] = 1
    enlarged = enlarge(edge, 4)
    expected = by_pillow(edge[0, 0].numpy(), (32, 32))
    assert expected.max() > 1.01
    np.testing.assert_allclose(enlarged[0, 0].numpy(), expected.clip(0, 1), rtol=0, atol=1e-4)
