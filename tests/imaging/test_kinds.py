"""PIL images of every mode, against Pillow's own conversions, and arrays of every kind; the same comes back."""

import io

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps

from allosr2.errors import ImageError
from allosr2.imaging.kinds import like, picture_of
from allosr2.imaging.picture import Picture

HEIGHT, WIDTH = 5, 8


def random_levels(*channels: int, dtype: str = "uint8") -> np.ndarray:
    full = np.iinfo(dtype).max
    shape = (HEIGHT, WIDTH, *channels)
    return np.random.default_rng(0).integers(0, full, shape, dtype=dtype, endpoint=True)


def pil(mode: str) -> Image.Image:
    """A random image of a mode."""
    if mode in ("RGBa", "La"):
        return pil(mode.upper()).convert(mode)
    if mode == "P":
        return pil("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=30)
    if mode == "PA":
        image = Image.frombytes("PA", (WIDTH, HEIGHT), random_levels(2).tobytes())
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
        return image
    if mode == "I;16":
        return Image.fromarray(random_levels(dtype="uint16"))
    if mode == "1":
        return Image.fromarray(random_levels()).convert("1")
    channels = {"L": (), "LA": (2,), "RGBA": (4,), "RGBX": (4,), "CMYK": (4,)}.get(mode, (3,))
    return Image.frombytes(mode, (WIDTH, HEIGHT), random_levels(*channels).tobytes())


def assert_equal(picture: Picture, levels: np.ndarray) -> None:
    """The picture's colors and opacity are `levels`, of gray, gray and opacity, RGB or RGBA."""
    levels = np.atleast_3d(levels)
    count = levels.shape[2]
    colors, alpha = (levels, None) if count in (1, 3) else (levels[..., :-1], levels[..., -1])
    assert picture.color.dtype == levels.dtype
    np.testing.assert_array_equal(picture.color, colors)
    assert (picture.alpha is None) == (alpha is None)
    if alpha is not None:
        assert picture.alpha.dtype == levels.dtype
        np.testing.assert_array_equal(picture.alpha, alpha)


# ----------------------------------------------------------------------------------------- PIL images


@pytest.mark.parametrize(
    ("mode", "taken_as"),
    [
        ("1", "L"),
        ("L", "L"),
        ("LA", "LA"),
        ("La", "LA"),
        ("P", "RGB"),
        ("PA", "RGBA"),
        ("RGB", "RGB"),
        ("RGBA", "RGBA"),
        ("RGBX", "RGB"),
        ("RGBa", "RGBA"),
        ("CMYK", "RGB"),
        ("YCbCr", "RGB"),
        ("HSV", "RGB"),
    ],
)
def test_every_mode_is_taken_as_pillow_converts_it(mode, taken_as):
    image = pil(mode)
    picture = picture_of(image)
    assert image.mode == mode
    assert_equal(picture, np.asarray(image.convert(taken_as)))
    again = like(image, picture)
    assert again.mode == taken_as
    np.testing.assert_array_equal(np.asarray(again), np.asarray(image.convert(taken_as)))


def test_black_and_white_are_the_ends_of_the_range():
    image = Image.fromarray(np.eye(HEIGHT, dtype=bool))
    assert image.mode == "1"
    assert_equal(picture_of(image), np.eye(HEIGHT, dtype=np.uint8) * 255)


def test_cielab_is_taken_by_its_profile():
    rgb = Image.fromarray(random_levels(3) // 2 + 64)  # away from the ends, so that nothing clips
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(rgb, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab.mode == "LAB"
    colors = picture_of(lab).color.astype(int)
    assert np.abs(colors - np.asarray(rgb)).max() <= 4  # a and b are whole numbers


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_stay_16_bits(mode):
    levels = random_levels(dtype="uint16")
    order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (WIDTH, HEIGHT), levels.astype(order).tobytes())
    assert image.mode == mode
    picture = picture_of(image)
    assert picture.color.dtype.isnative
    assert_equal(picture, levels)
    image.getexif()[ExifTags.Base.Orientation] = 6
    assert_equal(picture_of(image), np.rot90(levels, -1))
    again = like(image, picture)
    assert again.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(again), levels)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_are_refused(mode):
    with pytest.raises(
        ImageError, match=r"^the given PIL image has 32-bit .*; save it as 8 or 16 bits$"
    ):
        picture_of(Image.new(mode, (3, 4)))


def test_a_transparent_color_becomes_opacity():
    gray = random_levels()
    image = Image.fromarray(gray)
    image.info["transparency"] = int(gray[2, 3])
    alpha = np.where(gray == gray[2, 3], 0, 255).astype(np.uint8)
    assert_equal(picture_of(image), np.dstack([gray, alpha]))
    assert like(image, picture_of(image)).mode == "LA"

    rgb = random_levels(3)
    image = Image.fromarray(rgb)
    image.info["transparency"] = tuple(map(int, rgb[1, 1]))
    alpha = np.where((rgb == rgb[1, 1]).all(-1), 0, 255).astype(np.uint8)
    assert_equal(picture_of(image), np.dstack([rgb, alpha]))
    assert like(image, picture_of(image)).mode == "RGBA"

    deep = random_levels(dtype="uint16")
    image = Image.fromarray(deep)
    image.info["transparency"] = int(deep[0, 0])
    alpha = np.where(deep == deep[0, 0], 0, 65535).astype(np.uint16)
    assert_equal(picture_of(image), np.dstack([deep, alpha]))
    with pytest.raises(ImageError, match=r"^PIL has no image of 16-bit gray with opacity; give"):
        like(image, picture_of(image))


def test_a_palette_s_transparency_becomes_opacity():
    image = pil("P")
    places = np.asarray(image)
    colors = np.asarray(image.convert("RGB"))
    image.info["transparency"] = 3
    alpha = np.where(places == 3, 0, 255).astype(np.uint8)
    assert_equal(picture_of(image), np.dstack([colors, alpha]))
    opacities = np.arange(250, 220, -1, dtype=np.uint8)
    image.info["transparency"] = opacities.tobytes()
    assert_equal(picture_of(image), np.dstack([colors, opacities[places]]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "LA", "P", "I;16"])
def test_a_picture_is_turned_upright(mode, orientation):
    image = pil(mode)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    expected = ImageOps.exif_transpose(image)
    expected = np.asarray(expected.convert("RGB") if mode == "P" else expected)
    assert expected.shape[:2] == ((HEIGHT, WIDTH) if orientation < 5 else (WIDTH, HEIGHT))
    assert_equal(picture_of(image), expected)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_an_opened_file_is_turned_upright_once(file_format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    levels = random_levels(3)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, file_format, exif=exif.tobytes(), lossless=True)
    assert_equal(picture_of(Image.open(stream)), np.rot90(levels, -1))
    # one that a program turned itself, and said so
    turned = ImageOps.exif_transpose(Image.open(stream))
    assert_equal(picture_of(turned), np.rot90(levels, -1))
    by_hand = Image.open(stream)
    by_hand.load()
    by_hand.getexif().pop(ExifTags.Base.Orientation, None)
    assert_equal(picture_of(by_hand), np.asarray(by_hand))


def test_a_damaged_exif_block_is_no_reason_to_refuse():
    image = pil("RGB")
    image.info["exif"] = b"Exif\x00\x00nonsense"
    assert_equal(picture_of(image), np.asarray(image))


def test_the_given_image_stays_as_it_is():
    image = pil("RGBA")
    image.getexif()[ExifTags.Base.Orientation] = 6
    before = image.tobytes(), dict(image.info), image.size
    picture = picture_of(image)
    picture.color.copy()
    assert (image.tobytes(), dict(image.info), image.size) == before


@pytest.mark.parametrize("size", [(0, 4), (4, 0)])
def test_a_pil_image_without_pixels_is_refused(size):
    with pytest.raises(ImageError, match=r"^the given PIL image has no pixels; "):
        picture_of(Image.new("RGB", size))


def test_a_pil_image_that_cannot_be_decoded_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with Image.open(path) as image:
        with pytest.raises(ImageError, match=r"^the given PIL image cannot be decoded") as error:
            picture_of(image)
        assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "<u2"])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
def test_whole_numbers_are_taken_as_they_are(dtype, channels):
    native = np.dtype(dtype).newbyteorder("=").name
    levels = random_levels(*channels, dtype=native).astype(dtype)
    picture = picture_of(levels)
    assert_equal(
        Picture(
            color=picture.color.astype(native),
            alpha=None if picture.alpha is None else picture.alpha.astype(native),
        ),
        levels.astype(native),
    )
    again = like(levels, picture)
    assert again.shape == levels.shape
    assert again.dtype == levels.dtype
    np.testing.assert_array_equal(again, levels)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "longdouble"])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
def test_floats_become_float32(dtype, channels):
    levels = np.random.default_rng(0).random((HEIGHT, WIDTH, *channels)).astype(dtype)
    picture = picture_of(levels)
    assert picture.color.dtype == np.float32
    assert_equal(picture, levels.astype(np.float32))
    again = like(levels, picture)
    assert again.shape == levels.shape
    assert again.dtype == levels.dtype
    np.testing.assert_allclose(again.astype(float), levels.astype(float), rtol=0, atol=1e-7)


def test_like_takes_another_size():
    for channels in ((), (1,), (2,), (3,), (4,)):
        small = random_levels(*channels)
        large = np.repeat(np.repeat(small, 3, 0), 2, 1)
        again = like(small, picture_of(large))
        np.testing.assert_array_equal(again, large)


def test_views_are_taken_as_what_they_show():
    whole = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    for view in (
        whole[::-1, ::-2],
        whole[3:9, 4:12, 2::-1],
        whole.transpose(1, 0, 2),
        whole[..., 0].T,
    ):
        assert_equal(picture_of(view), view.copy())
    frozen = whole.copy()
    frozen.flags.writeable = False
    assert_equal(picture_of(frozen), whole)


def test_floats_a_little_out_of_range_are_clamped():
    levels = np.array([[-0.0009, 0.5, 1.0009]], np.float64)
    assert picture_of(levels).color.ravel().tolist() == [0, 0.5, 1]
    assert levels[0, 0] == -0.0009


@pytest.mark.parametrize("value", [-0.1, 1.1, 255, float("nan"), float("inf"), -float("inf")])
def test_floats_out_of_range_are_refused(value):
    levels = np.full((3, 4, 3), 0.5)
    levels[1, 2, 0] = value
    with pytest.raises(
        ImageError, match=r"^the given array has values .*; give floats in \[0, 1\]$"
    ):
        picture_of(levels)


@pytest.mark.parametrize(
    "shape", [(), (4,), (0, 4), (4, 0, 3), (4, 5, 0), (4, 5, 5), (1, 4, 5, 3), (3, 4, 5)]
)
def test_other_shapes_are_refused(shape):
    message = r"^the given array has shape .*; give h w \(gray\), h w 3 \(RGB\) or h w 4"
    for dtype in (np.uint8, np.float32):
        with pytest.raises(ImageError, match=message) as error:
            picture_of(np.zeros(shape, dtype))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "int16", "int32", "uint32", "complex64", "U1", "O"]
)
def test_other_dtypes_are_refused(dtype):
    message = r"^the given array has dtype .*; give uint8, uint16 or float in \[0, 1\]$"
    with pytest.raises(ImageError, match=message):
        picture_of(np.zeros((3, 4, 3), dtype))


@pytest.mark.parametrize("thing", [None, "a.png", [[0, 1]], b"", torch.zeros(3, 4, 4)])
def test_anything_else_is_no_image(thing):
    with pytest.raises(ImageError, match=f"^{type(thing).__name__} is no image; give a PIL image"):
        picture_of(thing)
