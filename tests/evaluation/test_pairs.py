"""Pairs of images as a model sees them, against Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.errors import DataError
from allosr2.evaluation.pairs import pairs_of, read_pair


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, size in (("lr", (9, 8, 3)), ("hr", (36, 32, 3))):
        (tmp_path / part).mkdir()
        for name in ("b.png", "a.png"):
            # no extremes: Pillow clamps, and rounds, between its two passes
            levels = rng.integers(96, 160, size, dtype=np.uint8)
            Image.fromarray(levels).save(tmp_path / part / name)
    return tmp_path


def test_a_pair_is_enlarged_and_cropped(pairs: Path) -> None:
    assert list(pairs_of(pairs, 4).lr) == ["a", "b"]
    lr, hr = read_pair(pairs / "lr" / "b.png", pairs / "hr" / "b.png", scale=4, multiple=16)
    assert lr.shape == hr.shape == (1, 3, 32, 32)
    picture = Image.open(pairs / "hr" / "b.png").crop((0, 0, 32, 32))
    np.testing.assert_allclose(255 * hr[0].permute(1, 2, 0), np.asarray(picture), atol=1e-4)
    large = Image.open(pairs / "lr" / "b.png").resize((32, 36), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(255 * lr[0].permute(1, 2, 0), np.asarray(large)[:32], atol=1.6)


def test_pairs_of_another_scale_or_too_small(pairs: Path) -> None:
    with pytest.raises(DataError, match=r"HR images are x4 of their LR images, the model is of x2"):
        pairs_of(pairs, 2)
    with pytest.raises(DataError, match=r"hr/a\.png is smaller than 64 px; remove the pair"):
        read_pair(pairs / "lr" / "a.png", pairs / "hr" / "a.png", scale=4, multiple=64)
