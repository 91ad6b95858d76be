"""Labels, layers, lens and perspective: against closed forms, Pillow, scipy and skimage."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.transform import ProjectiveTransform

from allosr2.data.procedural.labels import SAMPLES, SUPERSAMPLE, draw_polygons, label_canvas
from allosr2.data.procedural.layers import Fills, over, render, render_whole, to_bytes
from allosr2.data.procedural.lens import defocus, defocus_beyond, point_spread
from allosr2.data.procedural.perspective import UNIT_SQUARE, homography, project


def plain_fills(*colors):
    count = len(colors) + 1
    color = np.zeros((4, count), np.float32)
    color[:3, 1:], color[3, 1:] = np.transpose(colors), 1.0
    return Fills(
        color=color,
        tint=np.zeros((3, count), np.float32),
        plane=np.zeros((4, count), np.float32),
        texel=np.zeros((3, count), np.int32),
        amplitude=np.zeros(count, np.float32),
    )


def test_a_pen_draws_into_the_canvas():
    canvas, pen = label_canvas(16)
    pen.rectangle((8, 4, 11, 5), fill=7)
    expected = np.zeros((16 * SUPERSAMPLE, 16 * SUPERSAMPLE))
    expected[4:6, 8:12] = 7
    np.testing.assert_array_equal(canvas, expected)


def test_samples_are_in_different_rows_and_columns():
    for axis in (0, 1):
        assert sorted(sample[axis] for sample in SAMPLES) == list(range(SUPERSAMPLE))


@pytest.mark.parametrize("swap", [False, True])
def test_an_edge_next_to_level_has_five_levels(swap):
    corners = np.array([[0.0, 8.0], [64.0, 10.0], [64.0, 64.0], [0.0, 64.0]])
    corners = corners[:, ::-1] if swap else corners
    labels = draw_polygons(64, corners, np.array([4]), np.array([1]))
    assert set((labels == 1).mean(axis=0).ravel()) == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_a_rendered_disk_has_its_area_and_soft_edges():
    theta = np.linspace(0.0, 2.0 * np.pi, 200, endpoint=False)
    outline = 32.0 + 20.0 * np.column_stack([np.cos(theta), np.sin(theta)])
    labels = draw_polygons(64, outline, np.array([200]), np.array([1]))
    layer = render(labels, plain_fills((0.2, 0.4, 0.8)), np.zeros((1, 64, 64), np.float32))
    alpha = layer[3]
    # Pillow's polygons include their outline: half a sample, an eighth of a pixel, all around.
    assert alpha.sum() == pytest.approx(np.pi * 20.125**2, rel=0.01)
    assert set(np.unique(alpha)) == {0.0, 0.25, 0.5, 0.75, 1.0}
    color = np.array([0.2, 0.4, 0.8])[:, None, None]
    np.testing.assert_allclose(layer[:3], alpha * color, atol=1e-6)


def test_later_polygons_hide_earlier_ones():
    square = np.array([[0.0, 0.0], [16.0, 0.0], [16.0, 16.0], [0.0, 16.0]])
    vertices = np.concatenate([square, square / 2.0])
    labels = draw_polygons(16, vertices, np.array([4, 4]), np.array([9, 5]))
    assert (labels[:, :8, :8] == 5).all()
    assert (labels[:, 9:, 9:] == 9).all()


@pytest.mark.parametrize(
    ("pose", "texel"),
    [
        (lambda t: t, (256, 1, 16)),
        (lambda t: t[:, ::-1], (256 + 15, -1, 16)),
        (lambda t: t[::-1], (256 + 15 * 16, 1, -16)),
        (lambda t: t.T, (256, 16, 1)),
    ],
)
def test_gradient_and_texture_of_a_fill_are_where_they_belong(pose, texel):
    texture = np.random.default_rng(0).standard_normal((2, 16, 16)).astype(np.float32)
    fills = plain_fills((0.5, 0.5, 0.5))
    fills.tint[:, 1] = [0.1, 0.2, 0.3]
    fills.plane[:, 1] = [0.5, 0.01, -0.02, 0.003]
    fills.texel[:, 1], fills.amplitude[1] = texel, 0.7
    y, x = np.mgrid[:16, :16]
    weight = 0.5 + 0.01 * x - 0.02 * y + 0.003 * (x**2 + y**2) + 0.7 * pose(texture[1])
    expected = 0.5 + weight * np.array([0.1, 0.2, 0.3])[:, None, None]
    for layer in (
        render(np.ones((4, 16, 16), np.uint8), fills, texture),
        render_whole(fills, texture),
    ):
        np.testing.assert_allclose(layer[:3], expected, atol=1e-5)
        np.testing.assert_array_equal(layer[3], 1.0)


def test_over_is_alpha_compositing():
    generator = np.random.default_rng(4)
    front, back = generator.integers(0, 256, (2, 32, 32, 4), dtype=np.uint8)
    back[..., 3] = 255

    def premultiplied(straight):
        layer = straight.astype(np.float32).transpose(2, 0, 1) / 255
        layer[:3] *= layer[3]
        return layer

    expected = Image.alpha_composite(Image.fromarray(back), Image.fromarray(front))
    ours = to_bytes(over(premultiplied(front), premultiplied(back)))
    assert np.abs(ours.astype(int) - np.asarray(expected)).max() <= 1


def test_bytes_are_rounded_and_clipped():
    levels = np.array([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.7], np.float32)
    image = to_bytes(np.broadcast_to(levels, (3, 6, 6)))
    np.testing.assert_array_equal(image[2, :, 1], [0, 0, 0, 1, 255, 255])


def disk_kernel(radius, finer=64):
    """The share of each pixel that a disk covers, from many samples a pixel; it sums to 1."""
    reach = int(np.ceil(radius))
    side = finer * (2 * reach + 1)
    axis = (np.arange(side) + 0.5) / finer - reach - 0.5
    inside = (axis[:, None] ** 2 + axis[None] ** 2 <= radius**2).astype(float)
    kernel = inside.reshape(2 * reach + 1, finer, 2 * reach + 1, finer).mean(axis=(1, 3))
    return kernel / kernel.sum()


@pytest.mark.parametrize("radius", [0.7, 1.0, 1.6, 2.3, 4.8, 9.0])
def test_defocus_is_the_mean_over_a_disk(radius):
    image = np.random.default_rng(5).random((2, 48, 48), dtype=np.float32)
    expected = np.stack([ndimage.convolve(x, disk_kernel(radius), mode="nearest") for x in image])
    blurred = defocus(image, radius)
    # The disk is made of columns with even ends, so pixels on its rim count a little differently.
    assert np.abs(blurred - expected).std() < 0.12 * expected.std()
    np.testing.assert_allclose(defocus(np.ones((1, 40, 40), np.float32), radius), 1.0, atol=1e-5)


def test_below_a_pixel_nothing_is_out_of_focus():
    image = np.random.default_rng(5).random((2, 16, 16), dtype=np.float32)
    np.testing.assert_array_equal(defocus(image, 0.5), image)


def test_defocus_grows_where_its_share_does():
    image = np.random.default_rng(6).random((1, 64, 64), dtype=np.float32)
    share = np.broadcast_to(np.linspace(0.0, 1.0, 64, dtype=np.float32), (64, 64))
    blurred = defocus_beyond(image, share, 5.0)
    np.testing.assert_allclose(blurred[..., 0], image[..., 0], atol=1e-6)
    np.testing.assert_allclose(blurred[..., -1], defocus(image, 5.0)[..., -1], atol=1e-6)
    deviation = blurred[0].std(axis=0)
    assert deviation[:8].mean() > 2 * deviation[20:28].mean() > 2 * deviation[-8:].mean()


def test_point_spread_is_a_convolution():
    image = np.random.default_rng(7).random((3, 20, 20), dtype=np.float32)
    kernel = np.outer([0.1, 0.8, 0.1], [0.1, 0.8, 0.1])
    expected = np.stack([ndimage.convolve(x, kernel, mode="nearest") for x in image])
    np.testing.assert_allclose(point_spread(image, 0.1), expected, atol=1e-6)


def test_perspective_is_skimages():
    corners = np.array([[-3.0, 2.0], [70.0, -8.0], [55.0, 80.0], [4.0, 60.0]])
    matrix = homography(corners)
    np.testing.assert_allclose(project(UNIT_SQUARE, matrix), corners, atol=1e-9)
    points = np.random.default_rng(6).random((50, 2))
    expected = ProjectiveTransform.from_estimate(UNIT_SQUARE, corners)(points)
    np.testing.assert_allclose(project(points, matrix), expected, atol=1e-6)
