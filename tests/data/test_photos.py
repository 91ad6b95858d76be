"""Crops against the photographs' own pixels, and what happens to folders that cannot be used."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from allosr2.data.photo import Photo
from allosr2.data.photos import HRImages, PhotoFolder
from allosr2.data.procedural import procedural_image, scene
from allosr2.errors import DataError, ImageError


def save_photo(path: Path, height: int, width: int, seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def coordinates(path: Path, height: int, width: int, step: int = 1) -> None:
    """A photograph whose red and green say where a pixel is, in units of 1/`step`."""
    y, x = step * np.mgrid[:height, :width]
    Image.fromarray(np.stack([y, x, np.zeros_like(y)], -1).astype(np.uint8)).save(path)


def images(photos: Path, procedural: float = 0.0, crop: int = 32, **changes: float) -> HRImages:
    settings = {"minimum_scale": 0.5, "cache_gigabytes": 1.0} | changes
    return HRImages(photos=[str(photos)], procedural=procedural, crop=crop, seed=5, **settings)


def test_unscaled_crops_are_the_photographs_own_pixels(tmp_path: Path) -> None:
    coordinates(tmp_path / "a.png", 70, 90)
    tops, lefts, mirrored = set(), set(), 0
    for index in range(200):
        crop = images(tmp_path, minimum_scale=1.0).sample(index).image.astype(int)
        flipped = crop[0, 0, 1] > crop[0, 1, 1]
        mirrored += flipped
        crop = crop[:, ::-1] if flipped else crop
        top, left = crop[0, 0, :2]
        y, x = np.mgrid[top : top + 32, left : left + 32]
        np.testing.assert_array_equal(crop, np.stack([y, x, 0 * y], -1))
        tops.add(top)
        lefts.add(left)
    assert (min(tops), max(tops)) == (0, 70 - 32)  # 200 draws of 39: an end is missed once in 200
    assert len(lefts) > 40
    assert stats.binomtest(mirrored, 200).pvalue > 1e-4


def test_half_of_the_crops_are_shrunk_by_a_uniform_factor(tmp_path: Path) -> None:
    coordinates(tmp_path / "a.png", 80, 80, step=3)
    crops = images(tmp_path)
    # the red ramp's slope is the window's side over the crop's
    slopes = [
        np.polyfit(range(4, 28), crops.sample(i).image[4:28, 0, 0].astype(float) / 3, 1)[0]
        for i in range(300)
    ]
    shrunk = np.array([1 / slope for slope in slopes if slope > 1.01])
    assert stats.binomtest(300 - len(shrunk), 300, 0.5).pvalue > 1e-3
    assert 0.49 < shrunk.min() < 0.55
    assert 0.93 < shrunk.max() < 1.0
    # four standard errors of a uniform mean; the window's side is a whole number, so no closer test
    assert abs(shrunk.mean() - 0.75) < 4 * 0.5 / np.sqrt(12 * len(shrunk))


def test_some_crops_are_enlarged_where_that_is_asked_for(tmp_path: Path) -> None:
    coordinates(tmp_path / "a.png", 80, 80, step=3)
    crops = images(tmp_path, minimum_scale=1.0, maximum_scale=2.0)
    slopes = [
        np.polyfit(range(4, 28), crops.sample(i).image[4:28, 0, 0].astype(float) / 3, 1)[0]
        for i in range(200)
    ]
    factors = np.array([1 / slope for slope in slopes if slope < 0.99])
    assert stats.binomtest(len(factors), 200, 0.5).pvalue > 1e-3
    assert (factors.min() < 1.15, 1.85 < factors.max() < 2.15) == (True, True)
    assert abs(factors.mean() - 1.5) < 4 / np.sqrt(12 * len(factors)) + 0.05  # whole pixels


def test_a_window_never_leaves_a_small_photograph(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png", 32, 34, seed=0)
    assert all(
        images(tmp_path, minimum_scale=0.1).sample(i).image.shape == (32, 32, 3) for i in range(20)
    )


def test_photographs_are_chosen_by_area(tmp_path: Path) -> None:
    for name, height, width in (("a", 40, 40), ("b", 80, 80), ("c", 40, 120)):
        Image.new("RGB", (width, height), (ord(name), 0, 0)).save(tmp_path / f"{name}.png")
    crops = images(tmp_path, minimum_scale=1.0)
    counts = np.bincount([crops.sample(i).image[0, 0, 0] - ord("a") for i in range(600)])
    areas = np.array([1600, 6400, 4800])
    assert stats.chisquare(counts, 600 * areas / areas.sum()).pvalue > 1e-3


def test_an_image_depends_on_seed_and_index_alone(tmp_path: Path) -> None:
    for seed in range(3):
        save_photo(tmp_path / f"{seed}.png", 64, 64, seed=seed)
    forward = [images(tmp_path, procedural=0.3).sample(i).image for i in range(12)]
    others = images(tmp_path, procedural=0.3, cache_gigabytes=0.0)
    for index in reversed(range(12)):
        np.testing.assert_array_equal(others.sample(index).image, forward[index])
    assert len({crop.tobytes() for crop in forward}) == 12


def test_drawn_images_in_the_mix_are_of_every_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draw that decides for a drawn image must not decide which one it is."""
    save_photo(tmp_path / "a.png", 64, 64, seed=1)
    chosen: list[int] = []

    def family(number: int) -> Callable[..., list[np.ndarray]]:
        def blank(generator: object, size: int, materials: object) -> list[np.ndarray]:
            chosen.append(number)
            return [np.zeros((4, size, size), np.float32)]

        return blank

    probabilities = list(scene.FAMILIES.values())
    families = {family(number): p for number, p in enumerate(probabilities)}
    monkeypatch.setattr(scene, "FAMILIES", families)
    monkeypatch.setattr(scene, "sample_materials", lambda *_: None)
    monkeypatch.setattr(scene, "photograph", lambda _, layers, __: layers[0][:3])
    monkeypatch.setattr(scene, "_focal_plane", lambda _, image: image)
    mixed = images(tmp_path, procedural=0.3)
    for index in range(1000):
        mixed.sample(index)
    assert stats.binomtest(len(chosen), 1000, 0.3).pvalue > 1e-3
    expected = len(chosen) * np.array(probabilities)
    assert stats.chisquare(np.bincount(chosen, minlength=len(families)), expected).pvalue > 1e-3


def test_without_photographs_the_folder_is_not_read(tmp_path: Path) -> None:
    drawn = images(tmp_path / "absent", procedural=1.0)
    np.testing.assert_array_equal(drawn.sample(4).image, procedural_image(5, 4, 32))


def test_without_a_folder_every_image_is_drawn() -> None:
    drawn = HRImages(
        photos=(), procedural=0.1, crop=32, minimum_scale=1.0, cache_gigabytes=1, seed=5
    )
    for index in range(8):
        sample = drawn.sample(index)
        assert sample.photo is None
        np.testing.assert_array_equal(sample.image, procedural_image(5, index, 32))


def test_the_cache_holds_what_fits(tmp_path: Path) -> None:
    pixels = [save_photo(tmp_path / f"{name}.png", 64, 64, name) for name in range(3)]
    folder = PhotoFolder(
        [str(tmp_path)], smallest_side=32, cache_gigabytes=2.5 * 64 * 64 * 3 / 2**30
    )
    for number in (0, 1, 0, 2, 0):  # 1 is the least recently used when 2 comes
        np.testing.assert_array_equal(folder.photo(number), pixels[number])
    for number in (0, 1, 2):
        folder.photos[number].path.unlink()
    np.testing.assert_array_equal(folder.photo(0), pixels[0])
    np.testing.assert_array_equal(folder.photo(2), pixels[2])
    with pytest.raises(ImageError, match=r"1\.png"):
        folder.photo(1)


def test_small_photographs_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    save_photo(tmp_path / "small.png", 31, 200, seed=0)
    save_photo(tmp_path / "smaller.png", 30, 30, seed=0)
    save_photo(tmp_path / "deep" / "er" / "large.png", 32, 32, seed=1)
    with caplog.at_level(logging.WARNING):
        folder = PhotoFolder([str(tmp_path)], smallest_side=32, cache_gigabytes=1)
    assert [photo.key for photo in folder.photos] == ["deep/er/large.png"]
    assert [r.getMessage() for r in caplog.records] == [
        "2 of 3 photographs have a side below the crop's 32 pixels and are left out, such as "
        f"{tmp_path / 'small.png'} (200 x 31)"
    ]


def test_several_sources_are_one_after_the_other(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        for number in range(3):
            save_photo(tmp_path / name / f"{number}.png", 40, 40, number)
    folder = PhotoFolder(
        [str(tmp_path / "b"), f"{tmp_path / 'a'}:2"], smallest_side=32, cache_gigabytes=1
    )
    names = [photo.path.relative_to(tmp_path).as_posix() for photo in folder.photos]
    assert names == ["b/0.png", "b/1.png", "b/2.png", "a/0.png", "a/1.png"]


@pytest.mark.parametrize("side", [None, 20])
def test_folder_without_a_photograph_that_can_be_cropped(tmp_path: Path, side: int | None) -> None:
    if side:
        save_photo(tmp_path / "small.png", side, side, seed=0)
    with pytest.raises(DataError, match="no photograph of at least 32 x 32 pixels in it"):
        images(tmp_path)


def test_a_folder_of_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 that cannot be read: .*broken\.jpg") as caught:
        images(tmp_path)
    assert "\n" not in str(caught.value)


def cut(path: Path, seed: int) -> None:
    """A JPEG whose header is whole and whose pixels are not."""
    save_photo(path, 64, 64, seed)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_a_photograph_without_a_header_is_left_out_and_kept_in_mind(tmp_path: Path) -> None:
    save_photo(tmp_path / "good.png", 64, 64, seed=0)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "empty.png").touch()
    folder = images(tmp_path).folder
    assert folder is not None
    assert [photo.key for photo in folder.photos] == ["good.png"]
    assert [bad.photo for bad in folder.unreadable] == [
        str(tmp_path / name) for name in ("broken.jpg", "empty.png")
    ]
    assert "empty.png is empty" in folder.unreadable[1].reason
    assert all(bad.photo in bad.reason and "\n" not in bad.reason for bad in folder.unreadable)


def test_a_damaged_photograph_is_replaced_by_the_next_draw(tmp_path: Path) -> None:
    pixels = {name: save_photo(tmp_path / f"{name}.png", 64, 64, name) for name in (0, 2)}
    cut(tmp_path / "1.jpg", seed=1)
    crops = images(tmp_path, crop=64, minimum_scale=1.0)
    replaced = 0
    for index in range(40):
        # the same stream, drawn from by hand
        rng = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(index, 1)))
        rng.random()
        drawn = [int(rng.choice(3, p=[1 / 3] * 3))]
        while drawn[-1] == 1:
            drawn.append(int(rng.choice(3, p=[1 / 3] * 3)))
        sample = crops.sample(index)
        assert sample.photo == str(tmp_path / f"{drawn[-1]}.png")
        assert [bad.photo for bad in sample.bad] == [str(tmp_path / "1.jpg")] * (len(drawn) - 1)
        expected = pixels[drawn[-1]]
        assert any(np.array_equal(sample.image, e) for e in (expected, expected[:, ::-1]))
        replaced += bool(sample.bad)
    assert 5 < replaced < 25  # a third of 40


def test_nothing_but_damaged_photographs(tmp_path: Path) -> None:
    cut(tmp_path / "cut.jpg", seed=0)
    with pytest.raises(DataError, match=r"100 photographs in a row .*cut\.jpg") as caught:
        images(tmp_path).sample(0)
    assert "\n" not in str(caught.value)


def test_a_photograph_that_cannot_be_read_for_the_moment_stops_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else which one takes its place would depend on the moment."""
    for number in range(2):
        save_photo(tmp_path / f"{number}.png", 40, 40, number)
    crops = images(tmp_path)

    def stale(self: Photo) -> BinaryIO:
        raise ImageError("stale") from OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("allosr2.data.photo._PAUSE", 0.0)
    monkeypatch.setattr(Photo, "open", stale)
    with pytest.raises(DataError, match=r"\d\.png cannot be read, twice .*: Stale file handle;"):
        crops.sample(0)


def test_the_fingerprint_tells_photographs_apart(tmp_path: Path) -> None:
    def fingerprint(*names: str, sides: tuple[int, ...] = (40, 50), at: str = "photos") -> str:
        folder = tmp_path / at
        folder.mkdir()
        for name, side in zip(names, sides, strict=True):
            Image.new("RGB", (44, side)).save(folder / name)
        found = images(folder).fingerprint
        shutil.rmtree(folder)
        return found

    first = fingerprint("a.png", "b.png")
    assert len(first) == 16
    assert fingerprint("a.png", "b.png", at="moved") == first
    others = [
        fingerprint("a.png", "c.png"),
        fingerprint("b.png", "a.png"),
        fingerprint("a.png", "b.png", sides=(40, 51)),
        fingerprint("a.png", "b.png", "c.png", sides=(40, 50, 60)),
        fingerprint("a.png", sides=(40,)),
    ]
    assert len({first, *others}) == 6
    assert images(tmp_path / "absent", procedural=1.0).fingerprint == ""
