"""Tiles cover, blend to one, and leave no seams; padding against numpy's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allosr2.errors import ConfigError
from allosr2.imaging.tiling import blend_weights, crop, map_tiles, pad_to_multiple, tile_starts


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    tile = draw(st.integers(1, 80))
    return draw(st.integers(1, 500)), tile, draw(st.integers(0, tile - 1))


@given(layouts())
def test_starts_cover_evenly_with_the_least_number(layout):
    length, tile, overlap = layout
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    if length <= tile:
        assert starts == [0]
        return
    assert starts[-1] + tile == length
    steps = np.diff(starts)
    assert steps.max() <= tile - overlap
    assert steps.min() > 0
    assert steps.max() - steps.min() <= 1
    # One tile fewer could not cover: it would reach tile + (n - 2) (tile - overlap) at most.
    assert tile + (len(starts) - 2) * (tile - overlap) < length


@given(layouts())
def test_weights_are_a_partition_of_unity(layout):
    length, tile, overlap = layout
    weights = blend_weights(length, tile, overlap)
    total = torch.zeros(length, dtype=torch.float64)
    for start, row in zip(tile_starts(length, tile, overlap), weights, strict=True):
        total[start : start + tile] += row
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    assert weights.min() > 0
    assert weights.max() <= 1


def test_weights_of_two_tiles_are_raised_cosines():
    weights = blend_weights(96, 64, 32)
    places = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    expected = 0.5 - 0.5 * torch.cos(torch.pi * places)
    torch.testing.assert_close(weights[1, :32], expected)
    torch.testing.assert_close(weights[0, 32:], expected.flip(0))
    assert (weights[0, :32] == 1).all()


def test_overlap_must_fit():
    for tile, overlap in [(16, 16), (16, 20), (16, -1), (0, 0)]:
        with pytest.raises(ConfigError, match="overlap") as error:
            tile_starts(100, tile, overlap)
        assert "\n" not in str(error.value)


@given(
    st.integers(1, 150),
    st.integers(1, 150),
    st.integers(1, 48).flatmap(
        lambda tile: st.tuples(st.just(tile), st.integers(0, min(tile - 1, 16)))
    ),
)
def test_identity_comes_back(height, width, tile_and_overlap):
    tile, overlap = tile_and_overlap
    if (height // (tile - overlap) + 1) * (width // (tile - overlap) + 1) > 300:
        return
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    result = map_tiles(lambda piece: piece, image, tile=tile, overlap=overlap)
    torch.testing.assert_close(result, image, rtol=0, atol=1e-6)


def test_tiles_have_equal_sizes_and_progress_is_told():
    sizes, told = set(), []

    def record(piece):
        sizes.add(tuple(piece.shape))
        return piece[:, :1] * 2

    image = torch.rand(2, 3, 80, 208)
    result = map_tiles(
        record, image, tile=96, overlap=32, progress=lambda done, total: told.append((done, total))
    )
    assert sizes == {(2, 3, 80, 96)}
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image[:, :1] * 2)


def test_a_single_tile_passes_unchanged():
    image = torch.rand(1, 3, 48, 64)
    assert torch.equal(map_tiles(torch.sqrt, image, tile=64, overlap=32), image.sqrt())


def test_thin_pictures():
    for height, width in [(16, 800), (800, 16), (1, 50), (50, 1), (1, 1)]:
        image = torch.rand(1, 3, height, width)
        torch.testing.assert_close(map_tiles(torch.square, image, tile=32, overlap=8), image**2)


def test_tiles_that_differ_leave_no_seam():
    """Tiles of different brightness meet in a slope, not in a step."""
    levels = iter([0.0, 1.0, 0.0, 1.0])
    image = torch.zeros(1, 1, 64, 224)
    result = map_tiles(
        lambda piece: piece + next(levels), image, tile=64, overlap=10
    )  # starts 0, 53, 106, 160: overlaps of 11, 11 and 10
    assert result.diff(dim=-1).abs().max() <= np.pi / 2 / 10
    assert result.min() == 0
    assert result.max() == 1


def test_context_of_a_tile_is_enough_inside_the_blend():
    """A blur in tiles differs from the blur of the whole only where a tile's edge has weight."""

    def blur(piece):
        return torch.nn.functional.avg_pool2d(piece, 9, stride=1, padding=4)

    image = torch.rand(1, 1, 160, 160, generator=torch.Generator().manual_seed(0))
    blended = (map_tiles(blur, image, tile=80, overlap=40) - blur(image)).abs()
    butted = (map_tiles(blur, image, tile=80, overlap=0) - blur(image)).abs()
    assert butted.max() > 0.2  # half of the window of a pixel at a tile's edge is missing
    assert blended.max() < butted.max() / 50


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 8, 16, 64]))
def test_padding_is_numpys_reflection(height, width, multiple):
    image = torch.rand(1, 2, height, width, generator=torch.Generator().manual_seed(0))
    padded = pad_to_multiple(image, multiple)
    bottom, right = -height % multiple, -width % multiple
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), (0, bottom), (0, right)], mode="reflect")
    np.testing.assert_array_equal(padded.numpy(), expected)
    assert padded.shape[-2] % multiple == padded.shape[-1] % multiple == 0
    assert torch.equal(crop(padded, height, width), image)


def test_nothing_is_copied_where_nothing_is_padded():
    image = torch.rand(1, 3, 32, 48)
    assert pad_to_multiple(image, 16) is image
