"""Tiles cover, blend to one and leave no seams, a few rows of them at a time; padding against numpy's."""

import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allosr2.errors import ConfigError
from allosr2.imaging.tiling import Axis, Rows, blend_rows, lay_tiles, reflected


@st.composite
def layouts(draw: st.DrawFn, longest: int = 500) -> tuple[int, int, int, int]:
    """Length, tile, overlap and the least extent."""
    tile = draw(st.integers(1, 80))
    overlap = draw(st.integers(0, tile - 1))
    return draw(st.integers(1, longest)), tile, overlap, draw(st.integers(0, 100))


def rows_of(image: torch.Tensor):
    return lambda first, last: image[..., first:last, :]


def blended(function, image, rows, columns, **options) -> torch.Tensor:
    return torch.cat(list(blend_rows(function, rows_of(image), rows, columns, **options)), dim=-2)


def tiled(function, image: torch.Tensor, tile: int, overlap: int, **options) -> torch.Tensor:
    rows, columns = (lay_tiles(side, tile, overlap) for side in image.shape[-2:])
    return blended(function, image, rows, columns, **options)


# ------------------------------------------------------------------------------ where tiles lie


@given(layouts())
@settings(deadline=None)
def test_tiles_cover_evenly_with_the_least_number(layout):
    length, tile, overlap, least = layout
    axis = lay_tiles(length, tile, overlap, least)
    assert (axis.length, len(axis)) == (length, len(axis.starts))
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.extent == length
    if length <= tile:
        assert axis == Axis(length, length, (0,))
        return
    assert min(least, tile) <= axis.extent <= tile
    steps = np.diff(axis.starts)
    assert steps.max() <= axis.extent - overlap
    assert steps.min() > 0
    assert steps.max() - steps.min() <= 1
    # One tile fewer could not cover: it would reach tile + (n - 2) (tile - overlap) at most.
    assert tile + (len(axis) - 2) * (tile - overlap) < length


@given(layouts())
@settings(deadline=None)
def test_tiles_are_no_larger_than_they_must_be(layout):
    length, tile, overlap, least = layout
    axis = lay_tiles(length, tile, overlap, least)
    if length <= tile or axis.extent == min(least, tile):
        return
    # as many tiles that are 1 smaller would share less than the overlap or end before the picture
    assert axis.extent - 1 + (len(axis) - 1) * (axis.extent - 1 - overlap) < length


def test_known_layouts():
    assert lay_tiles(208, 96, 32) == Axis(208, 91, (0, 58, 117))
    assert lay_tiles(208, 96, 32, least=96) == Axis(208, 96, (0, 56, 112))
    assert lay_tiles(208, 96, 32, least=1000).extent == 96
    assert lay_tiles(96, 96, 0, least=1000) == Axis(96, 96, (0,))
    assert lay_tiles(10, 4, 0) == Axis(10, 4, (0, 3, 6))


def test_overlap_must_fit():
    for tile, overlap in [(16, 16), (16, 20), (16, -1), (0, 0)]:
        for length in (10, 100):
            with pytest.raises(ConfigError, match="overlap") as error:
                lay_tiles(length, tile, overlap)
            assert "\n" not in str(error.value)


@given(layouts(), st.integers(1, 16))
@settings(deadline=None)
def test_a_finer_unit_scales_everything(layout, factor):
    axis = lay_tiles(*layout)
    fine = axis.scaled(factor)
    assert (fine.length, fine.extent) == (axis.length * factor, axis.extent * factor)
    assert fine.starts == tuple(start * factor for start in axis.starts)


# -------------------------------------------------------------------------------------- weights


@given(layouts(), st.sampled_from([1, 2, 16]))
@settings(deadline=None)
def test_weights_are_a_partition_of_unity(layout, factor):
    axis = lay_tiles(*layout).scaled(factor)
    weights = axis.weights()
    assert weights.shape == (len(axis), axis.extent)
    total = torch.zeros(axis.length, dtype=torch.float64)
    for start, row in zip(axis.starts, weights, strict=True):
        total[start : start + axis.extent] += row
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    assert weights.min() > 0
    assert weights.max() <= 1


def test_weights_of_two_tiles_are_raised_cosines():
    weights = lay_tiles(96, 64, 32).weights()
    places = (torch.arange(32, dtype=torch.float64) + 0.5) / 32
    expected = 0.5 - 0.5 * torch.cos(torch.pi * places)
    torch.testing.assert_close(weights[1, :32], expected)
    torch.testing.assert_close(weights[0, 32:], expected.flip(0))
    assert (weights[0, :32] == 1).all()


# ------------------------------------------------------------------------------------- blending


@given(layouts(150), layouts(150), st.integers(1, 5))
@settings(deadline=None)
def test_identity_comes_back(vertical, horizontal, batch):
    rows, columns = lay_tiles(*vertical), lay_tiles(*horizontal)
    if len(rows) * len(columns) > 300:
        return
    image = torch.rand(
        1, 3, rows.length, columns.length, generator=torch.Generator().manual_seed(0)
    )
    result = blended(lambda tiles: tiles, image, rows, columns, batch=batch)
    torch.testing.assert_close(result, image, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("unit", "result_unit"), [(2, 16), (3, 3), (1, 4), (5, 1)])
@pytest.mark.parametrize(("tile", "overlap"), [(6, 2), (8, 7), (5, 0), (40, 3)])
def test_other_units_before_and_after(unit, result_unit, tile, overlap):
    """Each unit's first element, repeated over the unit of the result: exact wherever tiles lie."""
    rows, columns = lay_tiles(17, tile, overlap), lay_tiles(23, tile, overlap)

    def repeat(image):
        picked = image[..., ::unit, ::unit]
        return picked.repeat_interleave(result_unit, -2).repeat_interleave(result_unit, -1)

    image = torch.rand(1, 2, 17 * unit, 23 * unit, generator=torch.Generator().manual_seed(0))
    result = blended(repeat, image, rows, columns, units=(unit, result_unit), batch=3)
    assert result.shape == (1, 2, 17 * result_unit, 23 * result_unit)
    torch.testing.assert_close(result, repeat(image), rtol=0, atol=1e-6)


def test_tiles_have_equal_sizes_and_each_is_worked_on_once():
    shapes = []

    def record(tiles):
        shapes.append(tuple(tiles.shape))
        return tiles[:, :1].double() * 2

    image = torch.rand(1, 3, 80, 208, generator=torch.Generator().manual_seed(0))
    result = tiled(record, image, tile=96, overlap=32, batch=2)
    assert shapes == [(2, 3, 80, 91), (1, 3, 80, 91)]
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, image[:, :1] * 2)


@pytest.mark.parametrize("overlap", [0, 5, 12, 15])
def test_batches_of_any_size_give_the_same_bits(overlap):
    image = torch.rand(1, 3, 40, 90, generator=torch.Generator().manual_seed(0))
    one, *others = (
        tiled(lambda tiles: tiles.square().sin(), image, tile=16, overlap=overlap, batch=batch)
        for batch in (1, 2, 3, 7, 1000)
    )
    assert all(torch.equal(one, other) for other in others)


def test_a_single_tile_passes_unchanged():
    image = torch.rand(1, 3, 48, 64)
    assert torch.equal(tiled(torch.sqrt, image, tile=64, overlap=32), image.sqrt())


def test_thin_pictures():
    for height, width in [(16, 800), (800, 16), (1, 50), (50, 1), (1, 1)]:
        image = torch.rand(1, 3, height, width)
        torch.testing.assert_close(tiled(torch.square, image, tile=32, overlap=8), image**2)


@pytest.mark.parametrize("upright", [False, True])
def test_tiles_that_differ_leave_no_seam(upright):
    """Tiles of different brightness meet in a slope, not in a step, along either axis."""
    levels = iter([0.0, 1.0, 0.0, 1.0])
    image = torch.zeros(1, 1, 64, 224)
    side_by_side = lay_tiles(224, 64, 10, least=64)
    assert side_by_side.starts == (0, 53, 106, 160)  # overlaps of 11, 11 and 10
    axes = (lay_tiles(64, 64, 10), side_by_side)
    if upright:
        image, axes = image.mT, axes[::-1]
    result = blended(lambda tiles: tiles + next(levels), image, *axes)
    assert result.diff(dim=-2 if upright else -1).abs().max() <= np.pi / 2 / 10
    assert result.min() == 0
    assert result.max() == 1


def test_context_of_a_tile_is_enough_inside_the_blend():
    """A blur in tiles differs from the blur of the whole only where a tile's edge has weight."""

    def blur(piece):
        return torch.nn.functional.avg_pool2d(piece, 9, stride=1, padding=4)

    image = torch.rand(1, 1, 160, 160, generator=torch.Generator().manual_seed(0))
    axis = lay_tiles(160, 80, 40, least=80)
    butted = lay_tiles(160, 80, 0)
    blend = (blended(blur, image, axis, axis) - blur(image)).abs()
    step = (blended(blur, image, butted, butted) - blur(image)).abs()
    assert step.max() > 0.2  # half of the window of a pixel at a tile's edge is missing
    assert blend.max() < step.max() / 50


@given(layouts(120), st.integers(1, 3))
@settings(deadline=None)
def test_rows_are_asked_for_from_top_to_bottom_and_given_once(layout, unit):
    rows, columns = lay_tiles(*layout), lay_tiles(9, 9, 0)
    image = torch.rand(1, 1, rows.length * unit, 9 * unit)
    asked: list[tuple[int, int]] = []

    def source(first, last):
        asked.append((first, last))
        return image[..., first:last, :]

    bands = list(blend_rows(lambda tiles: tiles, source, rows, columns, (unit, unit)))
    assert asked == [(start * unit, (start + rows.extent) * unit) for start in rows.starts]
    assert sum(band.shape[-2] for band in bands) == rows.length * unit
    assert max(band.shape[-2] for band in bands) <= rows.extent * unit


class Held:
    """Elements of the tensors that were given to it and are still alive."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def watch(self, tensor: torch.Tensor) -> torch.Tensor:
        elements = tensor.untyped_storage().nbytes() // tensor.element_size()
        weakref.finalize(tensor.untyped_storage(), self._drop, elements)
        self.now += elements
        self.most = max(self.most, self.now)
        return tensor

    def _drop(self, elements: int) -> None:
        self.now -= elements


def test_what_is_held_does_not_grow_with_the_height():
    """Two stages in a row, as latents and pixels pass: a few rows of tiles, however high the picture is."""
    tile, overlap, width = 16, 4, 40
    most = []
    for height in (100, 400):
        held = Held()
        image = torch.rand(1, 1, height, width)
        rows, columns = lay_tiles(height, tile, overlap, least=tile), lay_tiles(width, tile, 0)
        asked, given = [], 0

        def source(first, last, image=image, held=held, asked=asked):
            asked.append(last)
            return held.watch(image[..., first:last, :].clone())

        def stage(tiles, held=held):
            return held.watch(tiles.clone())

        between = Rows(map(held.watch, blend_rows(stage, source, rows, columns, batch=2)))
        for band in blend_rows(stage, between.take, rows, columns, batch=2):
            given += band.shape[-2]
            assert asked[-1] < given + 3 * tile  # it is not read far ahead
        assert (asked[-1], given) == (height, height)
        assert held.most <= 6 * tile * width
        most.append(held.most)
    assert most[0] == most[1]


def test_errors_of_the_function_come_through_and_leave_the_picture_alone():
    image = torch.ones(1, 1, 40, 40)

    def broken(tiles):
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        tiled(broken, image, tile=16, overlap=4)
    tiled(lambda tiles: tiles * 2, image, tile=16, overlap=4)
    assert (image == 1).all()


# ----------------------------------------------------------------------------------------- rows


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.data())
@settings(deadline=None)
def test_any_rows_in_order(heights, draw):
    image = torch.arange(sum(heights), dtype=torch.float32)[None, None, :, None].expand(1, 2, -1, 3)
    rows = Rows(iter(image.split(heights, dim=-2)))
    first = 0
    for _ in range(10):
        first = draw.draw(st.integers(first, sum(heights) - 1))
        last = draw.draw(st.integers(first + 1, sum(heights)))
        assert torch.equal(rows.take(first, last), image[..., first:last, :])


def test_rows_before_are_let_go_and_none_is_read_early():
    held, read = Held(), 0

    def bands():
        nonlocal read
        for top in range(0, 1000, 10):
            read = top + 10
            yield held.watch(torch.full((1, 1, 10, 1), float(top)))

    rows = Rows(bands())
    for first in range(0, 980, 5):
        assert rows.take(first, first + 20).shape == (1, 1, 20, 1)
        assert first + 20 <= read < first + 30
        assert held.now <= 30
    held.most = 0
    rows = Rows(bands())
    assert (rows.take(985, 995).flatten() == torch.tensor([980.0] * 5 + [990.0] * 5)).all()
    assert held.most <= 30  # rows that are passed over are not gathered


# -------------------------------------------------------------------------------------- padding


@given(st.integers(1, 40), st.integers(0, 150), st.integers(0, 150))
@settings(deadline=None)
def test_padding_is_numpys_reflection(length, before, after):
    places = reflected(torch.arange(-before, length + after), length)
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    np.testing.assert_array_equal(places.numpy(), expected)


def test_no_padding_is_no_change():
    assert torch.equal(reflected(torch.arange(48), 48), torch.arange(48))
