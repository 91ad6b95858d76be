"""Flow 1 on a small random model: kinds, sizes, tiles, colors, metadata, and what must be refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms

from allosr2.errors import ConfigError, ImageError, ModelError
from allosr2.upscaler import Upscaler


@pytest.fixture(scope="module")
def upscaler(tiny_model: Path) -> Upscaler:
    return Upscaler.from_pretrained(tiny_model, device="cpu", tile=64, overlap=16)


@pytest.fixture
def identity(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> Upscaler:
    """The same with a model that gives back what it is given."""
    monkeypatch.setattr(upscaler.model, "forward", lambda image: image)
    return upscaler


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Smooth structure with some noise, so that bicubic overshoot and rounding have work to do."""
    rng = np.random.default_rng(height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(0.3 * (i + 1) * x + 0.2 * y) for i in range(channels)]
    noisy = np.stack(waves, axis=-1) + rng.normal(0, 12, (height, width, channels))
    return noisy.clip(0, 255).astype(np.uint8)


def by_pillow(levels: np.ndarray, scale: int) -> np.ndarray:
    """Pillow's bicubic, in floats: on 8 bits it rounds and clips between its two passes."""
    size = (levels.shape[1] * scale, levels.shape[0] * scale)
    planes = [
        Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
        for plane in np.moveaxis(np.atleast_3d(levels), -1, 0)
    ]
    stacked = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return np.rint(stacked.clip(0, 255)).astype(int).reshape(size[1], size[0], *levels.shape[2:])


@pytest.mark.parametrize("shape", [(40, 60), (7, 5), (1, 1), (20, 33)])
@pytest.mark.parametrize("scale", [1, 3, 4])
def test_identity_world_is_bicubic_enlargement(identity, shape, scale):
    image = picture(*shape)
    sr = identity(image, scale)
    assert sr.dtype == np.uint8
    assert sr.shape == (shape[0] * scale, shape[1] * scale, 3)
    assert np.abs(sr - by_pillow(image, scale)).max() <= 1  # 1 where x.5 rounds


def test_model_sees_padded_tiles_and_a_tint_is_removed(upscaler, monkeypatch):
    sizes = []

    def tint(image):
        sizes.append(tuple(image.shape))
        return image + torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1)

    monkeypatch.setattr(upscaler.model, "forward", tint)
    image = np.clip(picture(20, 41), 60, 190)  # so that a tint is not clipped
    told = []
    sr = upscaler(image, progress=lambda done, total: told.append((done, total)))
    # 80 x 164 pads to 80 x 176: two rows of tiles and four columns.
    assert sizes == [(1, 3, 64, 64)] * 8
    assert told == [(done, 8) for done in range(1, 9)]
    assert np.abs(sr - by_pillow(image, 4)).max() <= 1


def test_result_is_what_the_model_makes_with_the_colors_of_the_input(upscaler):
    """One tile, no padding: the parts are called by hand."""
    from scipy import ndimage

    lr = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    enlarged = torch.nn.functional.interpolate(
        lr, scale_factor=4, mode="bicubic", antialias=True
    ).clamp(0, 1)
    with torch.no_grad():
        restored = upscaler.model(enlarged)
    low = (enlarged - restored)[0].double().numpy()
    for level in range(5):
        kernel = np.zeros(2 * 2**level + 1)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (1, 2):
            low = ndimage.correlate1d(low, kernel, axis=axis, mode="nearest")
    expected = (restored[0].double().numpy() + low).clip(0, 1)
    np.testing.assert_allclose(upscaler(lr)[0].numpy(), expected, atol=1e-5)
    assert np.abs(expected - enlarged[0].numpy()).mean() > 0.01  # the model had an effect


def test_kinds_of_pictures(upscaler):
    levels = picture(12, 20)
    reference = upscaler(levels)
    assert reference.shape == (48, 80, 3)

    from_pil = upscaler(Image.fromarray(levels))
    assert isinstance(from_pil, Image.Image)
    assert from_pil.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(from_pil), reference)

    floats = upscaler(levels / np.float64(255))
    assert floats.dtype == np.float64
    np.testing.assert_array_equal(np.rint(floats * 255), reference)

    deep = upscaler(levels.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - reference).max() <= 0.51

    tensor = torch.from_numpy(levels).permute(2, 0, 1) / 255
    single = upscaler(tensor)
    assert single.shape == (3, 48, 80)
    np.testing.assert_array_equal((single * 255).round().permute(1, 2, 0).numpy(), reference)
    batch = upscaler(torch.stack([tensor, tensor.flip(-1)]).half())
    assert batch.shape == (2, 3, 48, 80)
    assert batch.dtype == torch.float16
    torch.testing.assert_close(batch[0].float(), single, rtol=0, atol=5e-3)
    assert not batch.is_inference()

    gray = upscaler(levels[..., 0])
    np.testing.assert_array_equal(gray, upscaler(np.repeat(levels[..., :1], 3, axis=2)))


def test_a_tensor_that_requires_a_gradient_costs_none(upscaler):
    image = torch.rand(3, 8, 8, requires_grad=True)
    assert not upscaler(image).requires_grad


@pytest.mark.parametrize("size", [(7, 5), (5, 250)])
def test_small_and_thin_files_give_the_same_bytes_twice(upscaler, tmp_path, size):
    source, once, twice = (tmp_path / name for name in ("lr.png", "a.png", "b.png"))
    Image.fromarray(picture(*size)).save(source)
    upscaler.upscale_file(source, once)
    upscaler.upscale_file(source, twice)
    assert once.read_bytes() == twice.read_bytes()
    sr = np.asarray(Image.open(once))
    assert sr.shape == (size[0] * 4, size[1] * 4, 3)
    assert sr.std() > 1
    np.testing.assert_array_equal(sr, upscaler(picture(*size)))


def test_alpha_profile_and_exif_are_carried(upscaler, tmp_path):
    levels = picture(12, 20, channels=4)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Orientation] = 1
    source = tmp_path / "lr.png"
    Image.fromarray(levels).save(source, icc_profile=profile, exif=exif)
    for name in ("sr.png", "sr.webp", "sr.tif"):
        upscaler.upscale_file(source, tmp_path / name)
        sr = Image.open(tmp_path / name)
        assert sr.mode == "RGBA"
        assert np.abs(np.asarray(sr)[..., 3] - by_pillow(levels[..., 3], 4)).max() <= 1
        assert sr.info["icc_profile"] == profile
        assert sr.getexif()[ExifTags.Base.Make] == "Maker"


def test_colors_of_a_photograph_stay(upscaler):
    """Whatever a model invents, the mean color of a picture is the input's."""
    image = picture(64, 64)
    sr = upscaler(image)
    np.testing.assert_allclose(sr.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=3)


@pytest.mark.parametrize("scale", [0, 9, -1, 2.5, 2.0])
def test_scale_must_be_whole_and_small(upscaler, scale):
    with pytest.raises(ConfigError, match="from 1 to 8"):
        upscaler(picture(4, 4), scale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 100}, "multiple of 16"),
        ({"tile": 0}, "multiple of 16"),
        ({"tile": 64, "overlap": 64}, "overlap"),
        ({"device": "warp"}, "no such device"),
    ],
)
def test_settings_that_cannot_work(upscaler, settings, message):
    with pytest.raises(ConfigError, match=message):
        Upscaler(upscaler.model, **({"device": "cpu"} | settings))


def test_unknown_model():
    with pytest.raises(ModelError, match="no such model"):
        Upscaler.from_pretrained("no-such-model")


def test_bfloat16_agrees_with_float32(tiny_model):
    image = picture(12, 20)
    expected = Upscaler.from_pretrained(tiny_model, device="cpu")(image).astype(int)
    lower = Upscaler.from_pretrained(tiny_model, device="cpu")
    lower._use(torch.bfloat16)
    assert {p.dtype for p in lower.model.parameters()} == {torch.bfloat16}
    assert np.abs(lower(image) - expected).mean() < 2


def test_overflow_in_lower_precision_is_repeated_in_float32(upscaler, monkeypatch, caplog):
    monkeypatch.setattr(
        upscaler.model,
        "forward",
        lambda image: image * float("inf") if torch.is_autocast_enabled("cpu") else image,
    )
    upscaler._use(torch.bfloat16)
    image = picture(8, 8)
    assert np.abs(upscaler(image) - by_pillow(image, 4)).max() <= 1
    assert "float32" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_never_written(upscaler, monkeypatch, tmp_path, value):
    monkeypatch.setattr(upscaler.model, "forward", lambda image: image * value)
    Image.fromarray(picture(8, 8)).save(tmp_path / "lr.png")
    with pytest.raises(ImageError, match=r"lr\.png: .*not finite"):
        upscaler.upscale_file(tmp_path / "lr.png", tmp_path / "sr.png")
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]


def test_a_full_device_is_one_clear_error(upscaler, monkeypatch):
    def full(image):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(upscaler.model, "forward", full)
    with pytest.raises(ImageError, match="smaller ones"):
        upscaler(picture(8, 8))


def test_targets_are_refused_before_the_work(upscaler, monkeypatch, tmp_path):
    monkeypatch.setattr(upscaler.model, "forward", lambda _: pytest.fail("it was run"))
    transparent = picture(8, 8, channels=4)
    Image.fromarray(transparent).save(tmp_path / "lr.png")
    (tmp_path / "folder.png").mkdir()
    for target, message in [
        ("sr.xyz", "unknown suffix"),
        ("sr.jpg", "transparency"),
        ("absent/sr.png", "No such file"),
        ("folder.png", "Is a directory"),
    ]:
        with pytest.raises(ImageError, match=message):
            upscaler.upscale_file(tmp_path / "lr.png", tmp_path / target)


def test_a_stream_of_bytes_is_no_picture(upscaler):
    with pytest.raises(ImageError, match="BytesIO is no image"):
        upscaler(io.BytesIO(b"abc"))
