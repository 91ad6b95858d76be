"""Resampling against Pillow's, on floats."""

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.imaging.resize import resize


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
