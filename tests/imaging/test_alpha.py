"""Colors of what is not seen, and bounds of opacity, against closed forms and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from allosr2.imaging.alpha import fill_transparent, opacity_bounds

RED = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)


def disc(height: int, width: int, radius: float) -> torch.Tensor:
    """Opacity of a disc in the middle: 1 inside, a slope of 1 px, 0 outside."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = torch.hypot(y - (height - 1) / 2, x - (width - 1) / 2)
    return (radius + 0.5 - distance).clamp(0, 1)[None, None]


def noise(seed: int, height: int, width: int, visible: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random colors, and a random opacity that is 0 but for a share of the pixels."""
    generator = torch.Generator().manual_seed(seed)
    color = torch.rand(1, 3, height, width, generator=generator)
    alpha = torch.rand(1, 1, height, width, generator=generator)
    seen = torch.rand(1, 1, height, width, generator=generator) < visible
    return color, alpha * seen


# --------------------------------------------------------------------------------------------- colors


@given(
    st.integers(0, 1000), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.02, 0.3, 0.9])
)
@settings(deadline=None)
def test_what_is_visible_stays_and_the_rest_lies_between(seed, height, width, visible):
    color, alpha = noise(seed, height, width, visible)
    before = color.clone(), alpha.clone()
    filled = fill_transparent(color, alpha)
    assert torch.equal(color, before[0])
    assert torch.equal(alpha, before[1])
    seen = (alpha > 0).expand_as(color)
    assert torch.equal(filled[seen], color[seen])
    assert bool(filled.isfinite().all())
    if not seen.any():
        assert torch.equal(filled, color)
        return
    # means of visible colors, and of nothing else
    for channel in range(3):
        values = color[:, channel][alpha[:, 0] > 0]
        assert filled[:, channel].min() >= values.min() - 1e-6
        assert filled[:, channel].max() <= values.max() + 1e-6


@pytest.mark.parametrize(
    ("height", "width", "radius"), [(64, 64, 20), (37, 90, 5), (200, 33, 1), (11, 11, 0)]
)
def test_a_red_disc_on_transparent_black_gives_red_everywhere(height, width, radius):
    alpha = disc(height, width, radius)
    assert (alpha == 0).any()
    color = RED * (alpha > 0)
    filled = fill_transparent(color, alpha)
    torch.testing.assert_close(filled, RED.expand_as(filled), rtol=0, atol=1e-6)


def test_what_transparent_pixels_hold_has_no_influence():
    color, alpha = noise(3, 45, 31, 0.1)
    others = torch.where(alpha > 0, color, torch.rand_like(color))
    assert torch.equal(fill_transparent(color, alpha), fill_transparent(others, alpha))


def test_the_nearest_colors_are_taken():
    """Red on the left, blue on the right: beside each its own, in the middle between."""
    alpha = torch.zeros(1, 1, 16, 64)
    alpha[..., :8] = alpha[..., -8:] = 1
    color = torch.zeros(1, 3, 16, 64)
    color[:, 0, :, :8] = color[:, 2, :, -8:] = 1
    filled = fill_transparent(color, alpha)
    assert filled[:, 0, :, 8:12].min() > 0.9
    assert filled[:, 2, :, -12:-8].min() > 0.9
    red = filled[0, 0, 8]
    assert bool((red.diff() <= 1e-6).all())
    torch.testing.assert_close(filled[:, 0], filled[:, 2].flip(-1), rtol=0, atol=1e-6)


def test_far_away_it_is_the_mean_weighted_with_opacity():
    alpha = torch.zeros(1, 1, 2, 2)
    alpha[..., 0, 0], alpha[..., 0, 1] = 0.75, 0.25
    color = torch.zeros(1, 1, 2, 2)
    color[..., 0, 0] = 1
    filled = fill_transparent(color, alpha)
    torch.testing.assert_close(filled, torch.tensor([[[[1, 0], [0.75, 0.75]]]]))


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (2, 3), (1, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_thin_pictures(size, channels):
    color = torch.full((1, channels, *size), 0.2)
    color[..., -1, -1] = 0.7
    alpha = torch.zeros(1, 1, *size)
    assert torch.equal(fill_transparent(color, alpha), color)
    alpha[..., -1, -1] = 1 / 255
    filled = fill_transparent(color, alpha)
    torch.testing.assert_close(filled, torch.full_like(color, 0.7), rtol=0, atol=1e-6)


def test_a_picture_that_is_visible_everywhere_or_nowhere_stays():
    color = torch.rand(1, 3, 20, 30)
    for alpha in (torch.full((1, 1, 20, 30), 1e-4), torch.zeros(1, 1, 20, 30)):
        assert torch.equal(fill_transparent(color, alpha), color)


@pytest.mark.parametrize("faint", [1 / 65535, 1e-9, 1e-20])
def test_one_faint_pixel_is_enough(faint):
    """Its weight in the mean of 2^20 pixels is far below float32's resolution beside 1."""
    alpha = torch.zeros(1, 1, 1024, 1024)
    alpha[..., 700, 300] = faint
    color = RED * (alpha > 0)
    filled = fill_transparent(color, alpha)
    torch.testing.assert_close(filled, RED.expand_as(filled), rtol=0, atol=1e-5)


# -------------------------------------------------------------------------------------------- opacity


@given(st.integers(0, 1000), st.integers(1, 20), st.integers(1, 20))
@settings(deadline=None)
def test_bounds_are_scipy_s_filters(seed, height, width):
    _, alpha = noise(seed, height, width, 0.5)
    least, greatest = (bound[0, 0].numpy() for bound in opacity_bounds(alpha))
    plane = alpha[0, 0].numpy()
    # beyond the border lies nothing that could be least or greatest
    lowest = ndimage.minimum_filter(plane, size=5, mode="constant", cval=np.inf)
    highest = ndimage.maximum_filter(plane, size=5, mode="constant", cval=-np.inf)
    np.testing.assert_array_equal(least, lowest)
    np.testing.assert_array_equal(greatest, highest)


def test_grounds_keep_their_opacity_exactly():
    alpha = torch.zeros(1, 1, 20, 40)
    alpha[..., 20:] = 1
    least, greatest = opacity_bounds(alpha)
    assert (greatest[..., :18] == 0).all()
    assert (least[..., 22:] == 1).all()
    assert (least[..., 18:22] == 0).all()
    assert (greatest[..., 18:22] == 1).all()
