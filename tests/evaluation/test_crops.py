from __future__ import annotations

import numpy as np
import pytest

from allosr2.errors import ImageError
from allosr2.evaluation.crops import crop_sheet, find_crop

GRAY = np.full((128, 160, 3), 128, np.uint8)


def changed(top: int, left: int, size: int, level: int = 255) -> np.ndarray:
    picture = GRAY.copy()
    picture[top : top + size, left : left + size] = level
    return picture


def test_finds_the_one_place_that_differs():
    # windows of 32 start at multiples of 8: of those, only this one covers the whole square
    assert find_crop([GRAY, changed(40, 96, 32)], 32) == (96, 40, 32)


def test_the_stronger_difference_wins():
    weak, strong = changed(8, 8, 32, 150), changed(64, 64, 32, 250)
    assert find_crop([GRAY, weak, strong], 32) == (64, 64, 32)


def test_the_last_windows_end_at_the_border():
    picture = GRAY[:101, :97].copy()
    picture[-1, -1] = 0
    # side 30 starts at multiples of 7; what they leave over gets a window that ends at the border
    assert find_crop([GRAY[:101, :97], picture], 30) == (67, 71, 30)


def test_equal_differences_go_to_the_first():
    picture = changed(0, 0, 32)
    picture[64:96, 64:96] = 255
    assert find_crop([GRAY, picture], 32) == (0, 0, 32)


@pytest.mark.parametrize("pictures", [[GRAY], [GRAY, GRAY], [changed(0, 0, 32)] * 3])
def test_the_middle_where_nothing_differs(pictures):
    assert find_crop(pictures, 32) == (64, 48, 32)


def test_color_alone_is_no_difference_of_y():
    # red and green levels of the same Y (to a rounding error)
    red, green = GRAY.copy(), GRAY.copy()
    red[:32, :32] = (200, 0, 0)
    green[:32, :32] = (0, 102, 0)
    red[64:96, 64:96] = 140
    assert find_crop([red, green], 32) == (64, 64, 32)


def panel_places(picture: np.ndarray, level: int) -> list[int]:
    """First columns of runs of a level in the picture's middle row of crops."""
    row = (picture == level).all(axis=2)[40]
    return list(np.flatnonzero(row & ~np.roll(row, 1)))


def test_sheet_shows_whole_then_crops_then_hr():
    pictures = {"one": changed(0, 0, 32, 10), "two": changed(0, 0, 32, 20)}
    hr = changed(0, 0, 32, 30)
    made = crop_sheet("name", pictures, GRAY, hr=hr, side=64)
    assert made.dtype == np.uint8
    # gap 8, caption 22, crop 64, gap 8; the whole picture 80 x 64 (160 x 128), between gaps of 8
    assert made.shape == (8 + 22 + 64 + 8, (8 + 80 + 8) + (8 + 64) * 3 + 8, 3)
    assert panel_places(made, 10) == [104]
    assert panel_places(made, 20) == [104 + 72]
    assert panel_places(made, 30) == [104 + 144]


def test_crops_are_enlarged_by_nearest_neighbor():
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    picture = np.full((64, 64, 3), 128, np.uint8)
    picture[24:40, 16:32] = noise
    made = crop_sheet("x", {"a": np.full_like(picture, 128), "b": picture}, picture, side=64)
    crop = made[30 : 30 + 64, -8 - 64 : -8]
    assert np.array_equal(crop, noise.repeat(4, axis=0).repeat(4, axis=1))


def test_box_is_drawn_on_the_whole_picture():
    whole = np.full((256, 256, 3), 128, np.uint8)
    other = whole.copy()
    other[64:128, 64:128] = 0
    made = crop_sheet("x", {"a": other}, whole, hr=whole, side=256)
    panel = made[30 : 30 + 256, 8 : 8 + 256]
    marked = np.argwhere((panel == (255, 196, 0)).all(axis=2))
    assert tuple(marked.min(axis=0)) == (63, 63)
    assert tuple(marked.max(axis=0)) == (129, 129)
    assert (panel[70:120, 70:120] == 128).all()
    assert (whole == 128).all()


def test_more_than_three_crops_stand_in_two_rows():
    made = crop_sheet("x", dict.fromkeys("abcd", GRAY), GRAY, hr=GRAY, side=64)
    height = 8 + (22 + 64 + 8) * 2
    assert made.shape[0] == height
    whole = height - 22 - 16
    assert made.shape[1] == (8 + round(160 * whole / 128) + 8) + (8 + 64) * 3 + 8


def test_one_method_is_compared_with_hr():
    chosen = crop_sheet("x", {"a": GRAY}, GRAY, hr=changed(96, 128, 32))
    hr = chosen[30 : 30 + 256, -8 - 256 : -8]
    assert (hr == 255).all()


def test_sizes_that_differ():
    with pytest.raises(ImageError, match=r"x: a has 160 x 64 px, the whole picture 160 x 128 px"):
        crop_sheet("x", {"a": GRAY[:64]}, GRAY)
