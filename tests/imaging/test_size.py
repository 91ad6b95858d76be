"""How large a result is, in each of the five ways, against rational arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from allosr2.errors import ConfigError, ImageError
from allosr2.imaging.size import LARGEST_SCALE, NATIVE_SIZE, OutputSize

SIDES = st.integers(1, 20_000)


def rounded(side: int, factor: Fraction) -> int:
    """To the nearest whole number, halves up, and 1 at least."""
    return max((2 * side * factor + 1) // 2, 1)


def by(height: int, width: int, /, **size: float) -> tuple[int, int]:
    return OutputSize(**size).of(height, width, native=4)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({}, (800, 1200)),
        ({"scale": 2.5}, (500, 750)),
        ({"scale": 1}, (200, 300)),
        ({"scale": 0.5}, (100, 150)),
        ({"width": 450}, (300, 450)),
        ({"height": 450}, (450, 675)),
        ({"max_side": 1000}, (667, 1000)),
        ({"megapixels": 0.96}, (800, 1200)),
        ({"megapixels": 24}, (4000, 6000)),
    ],
)
def test_each_way(size, expected):
    assert by(200, 300, **size) == expected
    if "height" not in size and "width" not in size:
        assert by(300, 200, **size) == expected[::-1]


@pytest.mark.parametrize("native", [1, 2, 4])
def test_with_none_the_model_s_own_factor_counts(native):
    assert NATIVE_SIZE.of(30, 50, native) == (30 * native, 50 * native)
    assert OutputSize() == NATIVE_SIZE


def test_halves_go_up_and_nothing_vanishes():
    assert by(1, 3, scale=0.5) == (1, 2)
    assert by(5, 7, scale=1.5) == (8, 11)
    assert by(5, 5, scale=0.1) == (1, 1)
    assert by(1, 1000, width=20) == (1, 20)
    assert by(1000, 1, max_side=5) == (5, 1)
    assert by(4, 4, megapixels=1e-12) == (1, 1)


@given(SIDES, SIDES, st.integers(1, 64 * 16))
def test_scale_is_exact(height, width, sixteenths):
    factor = Fraction(sixteenths, 16)
    expected = (rounded(height, factor), rounded(width, factor))
    assert by(height, width, scale=sixteenths / 16) == expected


@given(SIDES, SIDES, st.integers(1, 100_000), st.sampled_from(["width", "height", "max_side"]))
def test_a_side_that_is_asked_for_is_met(height, width, wanted, way):
    side = {"width": width, "height": height, "max_side": max(height, width)}[way]
    if wanted > LARGEST_SCALE * side:
        with pytest.raises(ImageError):
            by(height, width, **{way: wanted})
        return
    result = by(height, width, **{way: wanted})
    given_side = {"width": result[1], "height": result[0], "max_side": max(result)}[way]
    assert given_side == wanted
    factor = Fraction(wanted, side)
    for have, before in zip(result, (height, width), strict=True):
        assert abs(have - max(before * factor, 1)) <= Fraction(1, 2) + Fraction(1, 10**6)


@given(st.integers(50, 20_000), st.integers(50, 20_000), st.floats(0.1, 100))
def test_megapixels_are_met_as_far_as_whole_sides_allow(height, width, megapixels):
    if megapixels * 1e6 > LARGEST_SCALE**2 * height * width:
        return
    rows, columns = by(height, width, megapixels=megapixels)
    # half a pixel more or less on each side
    slack = (rows + columns) / 2 + 1
    assert abs(rows * columns - megapixels * 1e6) <= slack


@pytest.mark.parametrize("name", ["scale", "width", "height", "max_side", "megapixels"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_value_out_of_range_is_one_line(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is {value}: use a number above 0$"):
        OutputSize(**{name: value})


def test_a_scale_beyond_the_largest_is_refused():
    assert by(2, 3, scale=LARGEST_SCALE) == (128, 192)
    with pytest.raises(ConfigError, match=r"^scale is 64\.5: use at most 64$"):
        OutputSize(scale=64.5)


def test_at_most_one_is_given():
    with pytest.raises(ConfigError, match=r"^scale and width are given: give one of them$"):
        OutputSize(scale=2, width=100)
    with pytest.raises(ConfigError, match=r"^height and max_side and megapixels are given: "):
        OutputSize(megapixels=1, max_side=100, height=3)


@pytest.mark.parametrize(
    ("size", "times"),
    [({"width": 6500}, 65), ({"max_side": 10_000}, 100), ({"megapixels": 50}, 71)],
)
def test_a_picture_that_is_too_small_for_it_is_one_line(size, times):
    message = (
        f"^a picture of 100 x 100 px would have to become {times} times larger; ask for at most 64"
    )
    with pytest.raises(ImageError, match=message) as error:
        by(100, 100, **size)
    assert "\n" not in str(error.value)
    assert by(100, 100, width=6400) == (6400, 6400)
