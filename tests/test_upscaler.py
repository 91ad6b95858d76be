"""Flow 1 on a small random model: kinds, sizes, tiles, colors, metadata, and what must be refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from allosr2.errors import ConfigError, ImageError, ModelError
from allosr2.imaging.picture import Picture
from allosr2.imaging.size import OutputSize
from allosr2.runner import Stage
from allosr2.upscaler import BORDER, Upscaler


@pytest.fixture(scope="module")
def upscaler(tiny_model: Path) -> Upscaler:
    return Upscaler.from_pretrained(tiny_model, device="cpu", tile=64, overlap=16)


@pytest.fixture
def identity(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch) -> Upscaler:
    """The same with a model that gives back what it is given: latents are pixels, 8 x 8 of them each."""
    runner = upscaler._runner
    monkeypatch.setattr(runner, "encode", Stage(lambda x: pixel_unshuffle(x, 8), (16, 2)))
    monkeypatch.setattr(runner, "decode", Stage(lambda z: pixel_shuffle(z, 8), (2, 16)))
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


def resized_by_pillow(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pillow's filter between any sizes, in floats, clamped."""
    planes = [
        Image.fromarray(plane.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
        for plane in np.moveaxis(levels, -1, 0)
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1).clip(0, 255)


@pytest.mark.parametrize("shape", [(40, 60), (7, 5), (1, 1), (20, 33), (1, 90)])
@pytest.mark.parametrize("scale", [4, 5, 7.3])
def test_identity_world_is_bicubic_enlargement(identity, shape, scale):
    """From the model's own factor on it works at the result's size."""
    image = picture(*shape)
    sr = identity(image, scale)
    height, width = (int(np.floor(side * scale + 0.5)) for side in shape)
    assert sr.dtype == np.uint8
    assert sr.shape == (height, width, 3)
    assert np.abs(sr - resized_by_pillow(image, height, width)).max() <= 1  # half a level, twice


@pytest.mark.parametrize("size", [OutputSize(scale=2.5), OutputSize(width=47), OutputSize(scale=1)])
def test_smaller_factors_are_the_models_own_shrunk(identity, size):
    image = picture(20, 33)
    sr = identity(image, size=size)
    height, width = size.of(20, 33, 4)
    at_four = resized_by_pillow(image, 80, 132)
    assert sr.shape == (height, width, 3)
    assert np.abs(sr - resized_by_pillow(at_four, height, width)).max() <= 1


def test_what_is_to_become_smaller_is_shrunk_first(identity):
    image = picture(64, 96)
    sr = identity(image, size=OutputSize(max_side=24))
    at_four = resized_by_pillow(resized_by_pillow(image, 16, 24), 64, 96)
    assert np.abs(sr - resized_by_pillow(at_four, 16, 24)).max() <= 1


def test_model_sees_padded_tiles_and_a_tint_is_removed(upscaler, monkeypatch):
    seen = []

    def tint(image):
        seen.append(image.clone())
        return pixel_unshuffle(image + torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1), 8)

    monkeypatch.setattr(upscaler._runner, "encode", Stage(tint, (16, 2)))
    monkeypatch.setattr(upscaler._runner, "decode", Stage(lambda z: pixel_shuffle(z, 8), (2, 16)))
    image = np.clip(picture(20, 41), 60, 190)  # so that a tint is not clipped
    told = []
    sr = upscaler(image, progress=lambda done, total: told.append((done, total)))
    # 80 x 164, with 8 px on every side 96 x 180, pads to 96 x 192: tiles of at most 64 + 16 px, which
    # share 16 or more. 96 takes two of 80 px (64 would not cover), 192 three.
    assert [tuple(tile.shape) for tile in seen] == [(1, 3, 80, 80)] * 6
    assert told == [(done, 12) for done in range(1, 13)]
    assert np.abs(sr - by_pillow(image, 4)).max() <= 1
    # the first tile begins with the picture's own reflection
    corner = resized_by_pillow(image, 80, 164)[: 80 - BORDER, : 80 - BORDER] / 255
    expected = np.pad(corner, ((BORDER, 0), (BORDER, 0), (0, 0)), mode="reflect")
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0), expected, atol=1e-5)


def test_result_is_what_the_model_makes_with_the_colors_of_the_input(upscaler):
    """One tile: the parts are called by hand."""
    from scipy import ndimage

    lr = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    enlarged = torch.nn.functional.interpolate(
        lr, scale_factor=4, mode="bicubic", antialias=True
    ).clamp(0, 1)
    padded = torch.nn.functional.pad(enlarged, (BORDER,) * 4, mode="reflect")
    with torch.no_grad():
        restored = upscaler.model(padded)[..., BORDER:-BORDER, BORDER:-BORDER]
    low = (enlarged - restored)[0].double().numpy()
    for level in range(5):
        kernel = np.zeros(2 * 2**level + 1)
        kernel[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (1, 2):
            low = ndimage.correlate1d(low, kernel, axis=axis, mode="nearest")
    expected = (restored[0].double().numpy() + low).clip(0, 1)
    np.testing.assert_allclose(upscaler(lr)[0].numpy(), expected, atol=1e-5)
    assert np.abs(expected - enlarged[0].numpy()).mean() > 0.01  # the model had an effect


def test_jitter_is_the_mean_of_moved_evaluations(upscaler, monkeypatch):
    """A model that adds a pattern fixed to its patches: what moves against it averages out."""
    x = torch.arange(16)
    pattern = 0.1 * (-1.0) ** x.view(1, -1) * torch.ones(16, 1)

    def with_grid(z):
        image = pixel_shuffle(z, 8)
        return image + pattern.repeat(image.shape[-2] // 16, image.shape[-1] // 16)

    monkeypatch.setattr(upscaler._runner, "encode", Stage(lambda x: pixel_unshuffle(x, 8), (16, 2)))
    monkeypatch.setattr(upscaler._runner, "decode", Stage(with_grid, (2, 16)))
    image = np.full((30, 40, 3), 128, np.uint8)
    assert (
        np.abs(upscaler(image).astype(int) - 128).min() >= 20
    )  # less at borders, by the color fix
    twice = Upscaler(upscaler.model, device="cpu", tile=64, overlap=16, jitter=2)
    monkeypatch.setattr(twice, "_runner", upscaler._runner)
    assert np.abs(twice(image).astype(int) - 128).max() <= 1


def test_tiles_are_batched_without_a_difference(upscaler, monkeypatch):
    image = picture(40, 50)
    expected = upscaler(image)
    monkeypatch.setattr(upscaler._runner, "batch", 3)
    assert (
        np.abs(upscaler(image).astype(int) - expected).max() <= 1
    )  # other kernels, other rounding


def test_memory_that_runs_out_is_met_with_smaller_tiles(identity, monkeypatch, caplog):
    widths = []

    def small_memory(image):
        widths.append(image.shape[-1])
        if image.shape[-1] > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pixel_unshuffle(image, 8)

    larger = Upscaler(identity.model, device="cpu", tile=128, overlap=16)
    monkeypatch.setattr(larger, "_runner", identity._runner)
    monkeypatch.setattr(identity._runner, "encode", Stage(small_memory, (16, 2)))
    monkeypatch.setattr(identity._runner, "_side", 1 << 30)
    image = picture(60, 81)
    assert np.abs(larger(image) - by_pillow(image, 4)).max() <= 1
    assert widths[0] > 80
    assert sum(width > 80 for width in widths) == 1  # found out once
    assert "out of memory" in caplog.text


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
    assert np.abs(floats * 255 - reference).max() <= 0.5 + 1e-3

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
    assert gray.shape == (48, 80)
    in_color = upscaler(np.repeat(levels[..., :1], 3, axis=2)).astype(float)
    assert np.abs(gray - in_color.mean(axis=2)).max() <= 1
    from_pil = upscaler(Image.fromarray(levels[..., 0]))
    assert from_pil.mode == "L"
    np.testing.assert_array_equal(np.asarray(from_pil), gray)


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
        np.testing.assert_array_equal(np.asarray(sr), upscaler(levels))
        assert sr.info["icc_profile"] == profile
        assert sr.getexif()[ExifTags.Base.Make] == "Maker"


def test_opacity_is_restored_like_a_gray_picture_and_stays_where_it_was(upscaler):
    levels = picture(24, 20, channels=4)
    levels[..., 3] = 255
    levels[6:14, 5:15, 3] = 0
    sr = upscaler(levels)
    as_gray = upscaler(levels[..., 3])
    # far from the edge, exactly opaque and exactly transparent, whatever the model makes of it
    assert (sr[: 3 * 4, :, 3] == 255).all()
    assert (sr[8 * 4 : 12 * 4, 7 * 4 : 13 * 4, 3] == 0).all()
    edge = (sr[..., 3] > 0) & (sr[..., 3] < 255)
    assert edge.any()
    np.testing.assert_array_equal(sr[edge, 3], as_gray[edge])


def test_no_fringe_where_a_cut_out_ends(identity):
    """What is transparent holds black, as files mostly do; over white, no dark rim may show."""
    levels = np.zeros((30, 30, 4), np.uint8)
    y, x = np.mgrid[:30, :30]
    disc = (y - 15) ** 2 + (x - 15) ** 2 < 81
    levels[disc] = 220, 40, 30, 255
    sr = identity(levels).astype(float)
    opacity = sr[..., 3:] / 255
    over_white = sr[..., :3] * opacity + 255 * (1 - opacity)
    straight = np.array([220, 40, 30]) * opacity + 255 * (1 - opacity)
    assert np.abs(over_white - straight).max() <= 1


def test_a_picture_keeps_what_came_with_it(upscaler):
    given = Picture(color=picture(6, 7), format="WEBP", notes=("the first of 3 frames",))
    sr = upscaler.upscale_picture(given, OutputSize(scale=2))
    assert sr.color.shape == (12, 14, 3)
    assert (sr.format, sr.notes, sr.alpha) == ("WEBP", ("the first of 3 frames",), None)
    deep = upscaler.upscale_picture(Picture(color=picture(6, 7).astype(np.uint16) * 257))
    assert deep.color.dtype == np.uint16
    assert len(np.unique(deep.color % 257)) > 1  # more than 8 bits made larger


def test_a_plan_is_what_happens(upscaler):
    told = []
    upscaler(picture(40, 50), progress=lambda *counts: told.append(counts[1]))
    plan = upscaler.plan(40, 50)
    assert plan.size == (160, 200)
    assert plan.tiles * 2 == told[-1]
    assert max(plan.tile) <= 64 + 2 * BORDER
    held = sum(p.nbytes for p in upscaler.model.parameters())
    assert plan.bytes > held


def test_settings_tell_what_differs(upscaler, tiny_model):
    assert Upscaler.from_pretrained(tiny_model, device="cpu", tile=64, overlap=16).settings == (
        upscaler.settings
    )
    for change in ({"fidelity": 0.5}, {"tile": 128}, {"color_fix": "lab"}, {"jitter": 2}):
        other = Upscaler.from_pretrained(tiny_model, device="cpu", **({"tile": 64} | change))
        assert other.settings != upscaler.settings


def test_colors_of_a_photograph_stay(upscaler):
    """Whatever a model invents, the mean color of a picture is the input's."""
    image = picture(64, 64)
    sr = upscaler(image)
    np.testing.assert_allclose(sr.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=3)


@pytest.mark.parametrize("scale", [0, -1, 65, float("nan"), float("inf")])
def test_scale_must_be_in_range(upscaler, scale):
    with pytest.raises(ConfigError, match="scale is"):
        upscaler(picture(4, 4), scale)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tile": 100}, "multiple of 16"),
        ({"tile": 0}, "multiple of 16"),
        ({"tile": 64, "overlap": 64}, "overlap"),
        ({"device": "warp"}, "no such device"),
        ({"color_fix": "sepia"}, "wavelet, adain, lab, none"),
        ({"color_strength": 1.5}, "from 0 to 1"),
        ({"jitter": 5}, "to 4"),
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
    lower._runner._use(torch.bfloat16)
    assert {p.dtype for p in lower.model.parameters()} == {torch.bfloat16}
    assert np.abs(lower(image) - expected).mean() < 2


def test_overflow_in_lower_precision_is_repeated_in_float32(identity, monkeypatch, caplog):
    def overflowing(image):
        bound = float("inf") if torch.is_autocast_enabled("cpu") else 1.0
        return pixel_unshuffle(image * bound, 8)

    monkeypatch.setattr(identity._runner, "encode", Stage(overflowing, (16, 2)))
    identity._runner._use(torch.bfloat16)
    image = picture(8, 8)
    try:
        assert np.abs(identity(image) - by_pillow(image, 4)).max() <= 1
        assert identity._runner.precision == "bfloat16"  # the next picture is not another one's
    finally:
        identity._runner._use(torch.float32)
    assert "float32" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_result_that_is_not_finite_is_never_written(upscaler, monkeypatch, tmp_path, value):
    def broken(z):
        return torch.full((len(z), 3, 8 * z.shape[-2], 8 * z.shape[-1]), value)

    monkeypatch.setattr(upscaler._runner, "decode", Stage(broken, (2, 16)))
    Image.fromarray(picture(8, 8)).save(tmp_path / "lr.png")
    with pytest.raises(ImageError, match=r"lr\.png: .*not finite"):
        upscaler.upscale_file(tmp_path / "lr.png", tmp_path / "sr.png")
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]


def test_a_full_device_is_one_clear_error(upscaler, monkeypatch):
    def full(image):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(upscaler._runner, "encode", Stage(full, (16, 2)))
    monkeypatch.setattr(upscaler._runner, "_side", 1 << 30)
    with pytest.raises(ImageError, match="out of memory even with tiles of 80 px"):
        upscaler(picture(30, 30))


def test_targets_are_refused_before_the_work(upscaler, monkeypatch, tmp_path):
    never = Stage(lambda _: pytest.fail("it was run"), (16, 2))
    monkeypatch.setattr(upscaler._runner, "encode", never)
    transparent = picture(8, 8, channels=4)
    Image.fromarray(transparent).save(tmp_path / "lr.png")
    (tmp_path / "folder.png").mkdir()
    for target, message in [
        ("sr.xyz", "unknown suffix"),
        ("sr.jpg", "transparency"),
        ("lr.png/sr.png", "Not a directory"),
        ("folder.png", "Is a directory"),
    ]:
        with pytest.raises(ImageError, match=message):
            upscaler.upscale_file(tmp_path / "lr.png", tmp_path / target)


def test_many_files_at_once_are_what_each_is_alone(upscaler, tmp_path):
    """Two lanes, folders that are not there yet, and one bad file among them."""
    beside = Upscaler(upscaler.model, device="cpu", tile=64, overlap=16)
    names = [f"{number}.png" for number in range(5)]
    for number, name in enumerate(names):
        Image.fromarray(picture(6 + number, 9)).save(tmp_path / name)
    (tmp_path / "2.png").write_bytes(b"no picture")
    pairs = [(tmp_path / name, tmp_path / "large" / name) for name in names]
    outcomes = list(upscaler.upscale_many(pairs, OutputSize(scale=2), beside=[beside]))
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert [outcome.job.source for outcome in failed] == [tmp_path / "2.png"]
    assert {outcome.job.target for outcome in outcomes} == {target for _, target in pairs}
    for number, (_, target) in enumerate(pairs):
        if number != 2:
            expected = upscaler(picture(6 + number, 9), 2)
            np.testing.assert_array_equal(np.asarray(Image.open(target)), expected)


def test_a_stream_of_bytes_is_no_picture(upscaler):
    with pytest.raises(ImageError, match="BytesIO is no image"):
        upscaler(io.BytesIO(b"abc"))
