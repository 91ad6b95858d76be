"""A picture between levels and tensors: every level comes back, and what is no number is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allosr2.errors import ImageError
from allosr2.imaging.picture import Metadata, Picture, to_levels, to_tensor


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("uint16", 65535)])
def test_every_level_comes_back(dtype, full):
    levels = np.arange(full + 1, dtype=dtype).reshape(-1, 16, 1)
    image = to_tensor(levels)
    assert image.dtype == torch.float32
    assert image.shape == (1, 1, (full + 1) // 16, 16)
    np.testing.assert_allclose(image[0, 0].numpy(), levels[..., 0] / full, rtol=0, atol=1e-7)
    again = to_levels(image, dtype)
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, levels)


def test_floats_come_back_bit_for_bit():
    levels = np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)
    image = to_tensor(levels)
    np.testing.assert_array_equal(image[0].permute(1, 2, 0).numpy(), levels)
    again = to_levels(image, np.float32)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, levels)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([None, 1, 2, 3, 4]))
@settings(deadline=None)
def test_channels_come_first(height, width, channels):
    shape = (height, width) if channels is None else (height, width, channels)
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = to_tensor(levels)
    assert image.shape == (1, channels or 1, height, width)
    assert image.is_contiguous()
    for channel in range(channels or 1):
        plane = levels if channels is None else levels[..., channel]
        np.testing.assert_allclose(image[0, channel].numpy(), plane / 255, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(to_levels(image, np.uint8).reshape(shape), levels)


def test_views_and_other_byte_orders_are_read():
    levels = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    for view in (levels[::-1, ::-2], levels.transpose(1, 0, 2), levels[..., ::-1]):
        expected = to_tensor(np.ascontiguousarray(view))
        assert torch.equal(to_tensor(view), expected)
        assert torch.equal(to_tensor(view.astype(">u2")), expected)


def test_a_tensor_is_no_view_of_the_levels():
    levels = np.full((2, 3, 1), 0.5, np.float32)
    image = to_tensor(levels)
    image.zero_()
    assert (levels == 0.5).all()
    image = torch.full((1, 1, 2, 3), 2.0)
    to_levels(image, np.float32)[:] = 0
    assert (image == 2).all()


@pytest.mark.parametrize(("dtype", "full"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_values_beyond_are_clamped(dtype, full):
    image = torch.tensor([-0.5, 0.0, 1.0, 1.5, -1e30, 1e30]).view(1, 1, 1, 6)
    assert to_levels(image, dtype).ravel().tolist() == [0, 0, full, full, 0, full]


def test_levels_are_rounded_and_not_cut():
    image = torch.tensor([0.4, 0.6, 1.4, 1.6, 254.4, 254.6]).view(1, 1, 1, 6) / 255
    assert to_levels(image, np.uint8).ravel().tolist() == [0, 1, 1, 2, 254, 255]
    assert to_levels(image.requires_grad_().bfloat16(), np.uint8).dtype == np.uint8


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_what_is_not_finite_is_refused_in_one_line(value, dtype):
    image = torch.zeros(1, 3, 4, 4)
    image[0, 1, 2, 3] = value
    with pytest.raises(ImageError, match=r"^[^\n]*not finite; compute it in float32$"):
        to_levels(image, dtype)


def test_a_picture_knows_its_size_and_holds_no_more_than_it_was_given():
    picture = Picture(color=np.zeros((4, 7, 3), np.uint8))
    assert (picture.height, picture.width) == (4, 7)
    assert (picture.alpha, picture.format, picture.notes) == (None, None, ())
    assert picture.metadata == Metadata(icc_profile=None, exif=None, xmp=None)


@pytest.mark.parametrize(
    "levels",
    [
        np.zeros((2, 3), np.uint8),
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((0, 3, 1), np.uint8),
        np.zeros((2, 3, 1), np.float64),
    ],
)
def test_levels_of_another_kind_are_no_picture(levels):
    with pytest.raises(
        ImageError, match=r"give h w 1 \(gray\) or h w 3 \(RGB\) of uint8, uint16, float32"
    ):
        Picture(color=levels)


@pytest.mark.parametrize(
    "alpha",
    [np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint16), np.zeros((2, 3, 1), np.uint16)],
)
def test_opacity_is_of_the_shape_and_depth_of_the_color(alpha):
    with pytest.raises(ImageError, match=r"give \(2, 3\) of uint16, as its color"):
        Picture(color=np.zeros((2, 3, 1), np.uint16), alpha=alpha)
