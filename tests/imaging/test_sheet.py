"""Sheets: every picture is on them, pixel for pixel, and nothing covers another."""

from __future__ import annotations

import numpy as np

from allosr2.imaging.sheet import sheet


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def place(page: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Row and column at which a picture lies on a page, wherever that is."""
    height, width = picture.shape[:2]
    found = [
        (top, left)
        for top, left in zip(*np.nonzero((page == picture[0, 0]).all(-1)), strict=True)
        if np.array_equal(page[top : top + height, left : left + width], picture)
    ]
    assert len(found) == 1
    return int(found[0][0]), int(found[0][1])


def test_pictures_of_any_size_lie_in_rows_and_columns():
    sizes = [[(20, 30), (24, 10)], [(16, 12), (16, 40)], [(9, 9)]]
    rows = [
        [("caption", noise(*size, seed=10 * i + j)) for j, size in enumerate(row)]
        for i, row in enumerate(sizes)
    ]
    page = sheet(rows)
    assert page.dtype == np.uint8
    places = [[place(page, picture) for _, picture in row] for row in rows]
    tops = [[top for top, _ in row] for row in places]
    lefts = [[left for _, left in row] for row in places]
    assert all(len(set(row)) == 1 for row in tops)
    assert lefts == [[lefts[0][0], lefts[0][1]], [lefts[0][0], lefts[0][1]], [lefts[0][0]]]
    assert lefts[0][1] >= lefts[0][0] + 30
    assert tops[1][0] >= tops[0][0] + 24
    assert tops[2][0] >= tops[1][0] + 16
    assert page.shape[0] > tops[2][0] + 9
    assert page.shape[1] > lefts[0][1] + 40


def test_a_caption_is_written_above_its_picture():
    black = np.zeros((40, 90, 3), np.uint8)
    blank, written = (sheet([[(caption, black), ("", black)]]) for caption in ("", "LR"))
    assert blank.shape == written.shape
    changed = np.argwhere((blank != written).any(-1))
    top, left = np.argwhere((blank == 0).all(-1))[0]
    assert len(changed) > 50
    assert changed[:, 0].max() < top
    assert changed[:, 1].min() >= left
    assert changed[:, 1].max() < left + 90


def test_of_a_caption_above_a_small_picture_nothing_is_cut():
    black = np.zeros((40, 40, 3), np.uint8)
    caption = "LR, bicubic x4, 20.31 dB"
    page = sheet([[("", black)], [(caption, black), ("HR", noise(40, 40, seed=0))]])
    wide = sheet([[(caption, np.zeros((1, 300, 3), np.uint8))]])

    # the same ink where there is room for it, wherever that is
    def ink(page: np.ndarray) -> np.ndarray:
        marks = (page != page[0, 0]).any(-1) & (page != 0).any(-1)
        rows, columns = np.nonzero(marks)
        return page[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]

    top, left = place(page, noise(40, 40, seed=0))
    shown = ink(page[60 : top - 1, : left - 4])
    np.testing.assert_array_equal(shown, ink(wide))
    assert left > 8 + shown.shape[1]
