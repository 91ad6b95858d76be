"""Benchmark sets: where their images are found, and the first thing that is wrong, named."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.errors import ConfigError, DataError
from allosr2.evaluation import sets
from allosr2.evaluation.sets import (
    SETS,
    BenchmarkSet,
    check_set,
    open_pairs,
    open_set,
    published_set,
    random_crop,
    set_named,
)

TINY = BenchmarkSet(
    name="tiny",
    title="Tiny",
    count=3,
    lr_side=4,
    hr_side=12,
    source="the tests",
    archive="tiny_crop4",
    folders=("test_LR", "test_HR"),
    names=("a", "b", "c"),
)
BLIND = replace(TINY, hr_side=None, folders=("lq", "gt"))


def save(path: Path, width: int, height: int | None = None, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height or width)).save(path)
    return path


def make(lr: Path, hr: Path, names: str = "abc") -> None:
    for name in names:
        save(lr / f"{name}.png", 4)
        save(hr / f"{name}.png", 12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "lr", tmp_path / "hr")
    return tmp_path


def complaint(expected: BenchmarkSet, folder: Path) -> str:
    with pytest.raises(DataError) as error:
        check_set(expected, folder)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_the_fields_sets():
    assert [
        (known.title, known.count, known.lr_side, known.hr_side) for known in SETS.values()
    ] == [
        ("RealSR", 100, 128, 512),
        ("DRealSR", 93, 128, 512),
        ("DIV2K-Val", 3000, 128, 512),
        ("RealLQ250", 250, 256, None),
    ]
    for name, known in SETS.items():
        assert known.name == name
        assert len(known.names) in (0, known.count)
    assert SETS["realsr"].names[::50] == ("Canon_001_LR4", "Nikon_001_LR4")
    assert SETS["reallq250"].names == ()


def test_an_unknown_set():
    with pytest.raises(ConfigError, match=r"set 'RealSRR' is unknown: use realsr, drealsr, "):
        set_named("RealSRR")


@pytest.mark.parametrize("archive", [".", "tiny_crop4"])
@pytest.mark.parametrize("parts", [("lr", "hr"), ("test_LR", "test_HR")])
def test_layouts(tmp_path, archive, parts):
    lr, hr = (tmp_path / archive / part for part in parts)
    make(lr, hr)
    found = check_set(TINY, tmp_path)
    assert found.set == TINY
    assert (found.scale, found.published) == (3, True)
    assert found.lr == {name: lr / f"{name}.png" for name in "abc"}
    assert found.hr == {name: hr / f"{name}.png" for name in "abc"}


@pytest.mark.parametrize("part", ["lr", "lq", "tiny_crop4/lq"])
def test_layouts_without_reference(tmp_path, part):
    for name in "abc":
        save(tmp_path / part / f"{name}.png", 4)
    found = check_set(BLIND, tmp_path)
    assert found.lr == {name: tmp_path / part / f"{name}.png" for name in "abc"}
    assert (found.hr, found.scale) == (None, 4)


def test_suffixes_may_differ_and_other_files_do_not_matter(folder):
    (folder / "hr" / "a.png").unlink()
    save(folder / "hr" / "a.bmp", 12)
    (folder / "lr" / "Thumbs.db").touch()
    found = check_set(TINY, folder)
    assert found.hr is not None
    assert list(found.lr) == list(found.hr) == ["a", "b", "c"]
    assert found.hr["a"].name == "a.bmp"


def test_the_order_is_by_name_whatever_the_suffixes(tmp_path):
    for folder, suffix, side in (("lr", "png", 4), ("hr", "bmp", 12)):
        for name in ("a", "a-1", "a1"):
            other = "tif" if name == "a" else suffix
            save(tmp_path / folder / f"{name}.{other}", side)
    found = check_set(replace(TINY, names=()), tmp_path)
    assert found.hr is not None
    assert list(found.lr) == list(found.hr) == ["a", "a-1", "a1"]


def test_a_synthetic_set_is_not_the_published_one(folder):
    (folder / "set.json").write_text('{"crops": 3}')
    assert not check_set(TINY, folder).published
    assert check_set(TINY, folder).set == TINY
    (folder / "set.json").write_text('{"crops": 4}')
    assert complaint(replace(TINY, names=()), folder) == (
        f"{folder / 'lr'} holds 3 images, Tiny has 4; get it again from `allosr2 bench prepare`, which goes on "
        "where it was"
    )
    (folder / "set.json").write_text("{}")
    assert complaint(TINY, folder).startswith(f"{folder / 'set.json'} cannot be read (")


def test_gray_and_16_bits(folder):
    save(folder / "lr" / "a.png", 4, mode="L")
    save(folder / "lr" / "b.png", 4, mode="I;16")
    save(folder / "hr" / "c.png", 12, mode="LA")
    assert len(check_set(TINY, folder).lr) == 3


def test_no_folder(tmp_path):
    assert complaint(TINY, tmp_path / "absent") == (
        f"{tmp_path / 'absent'} is no folder; name one with lr/ and hr/, or test_LR/ and test_HR/"
    )
    assert complaint(TINY, tmp_path) == (
        f"{tmp_path} holds no Tiny: there is no lr/ and hr/, or test_LR/ and test_HR/ in it or in "
        "tiny_crop4/; name the folder of those"
    )
    assert "there is no lr/, or lq/ in it" in complaint(BLIND, tmp_path)
    (tmp_path / "lr").mkdir()
    assert complaint(TINY, tmp_path).startswith(f"{tmp_path / 'lr'} holds no image")
    save(tmp_path / "lr" / "a.png", 4)
    assert complaint(TINY, tmp_path).startswith(f"{tmp_path / 'hr'} is no folder")


def test_no_partner(folder):
    (folder / "hr" / "b.png").unlink()
    assert complaint(TINY, folder) == (
        f"{folder / 'lr' / 'b.png'} has no partner in {folder / 'hr'}: 3 images in {folder / 'lr'}, 2 in "
        f"{folder / 'hr'}; give both of a pair one name"
    )
    (folder / "hr" / "c.png").unlink()
    assert "b.png has no partner" in complaint(TINY, folder)
    assert "(one of 2 such files)" in complaint(TINY, folder)
    for name in "bc":
        (folder / "lr" / f"{name}.png").unlink()
    save(folder / "hr" / "other.png", 12)
    assert f"{folder / 'hr' / 'other.png'} has no partner in {folder / 'lr'}:" in complaint(
        TINY, folder
    )


def test_a_wrong_number(folder):
    for part in ("lr", "hr"):
        (folder / part / "b.png").unlink()
    assert complaint(TINY, folder) == (
        f"{folder / 'lr'} holds 2 images, Tiny has 3: b is missing; get it again from the tests"
    )
    assert "2 images, Tiny has 3; get it again" in complaint(replace(TINY, names=()), folder)
    make(folder / "lr", folder / "hr", "bde")
    assert "5 images, Tiny has 3: d is none of them (one of 2 such images);" in complaint(
        TINY, folder
    )


def test_as_many_images_of_other_names(folder):
    for part in ("lr", "hr"):
        (folder / part / "b.png").rename(folder / part / "x.png")
    assert complaint(TINY, folder) == (
        f"{folder / 'lr'} holds 3 images, Tiny has 3: b is missing; get it again from the tests"
    )
    assert check_set(replace(TINY, names=()), folder).published


def test_the_set_that_a_folder_holds(folder, monkeypatch):
    monkeypatch.setattr(sets, "SETS", {"blind": replace(BLIND, name="blind"), "tiny": TINY})
    assert published_set(folder) == TINY
    (folder / "set.json").write_text('{"crops": 3}')
    assert published_set(folder) is None
    (folder / "set.json").unlink()
    save(folder / "lr" / "a.png", 5)
    assert published_set(folder) is None
    assert published_set(folder / "absent") is None


def test_two_images_of_one_name(folder):
    save(folder / "lr" / "a.bmp", 4)
    first, second = folder / "lr" / "a.bmp", folder / "lr" / "a.png"
    assert complaint(TINY, folder) == f"{second} has the name of {first}; take one out"


@pytest.mark.parametrize(
    ("name", "size", "wanted"), [("lr/b.png", (4, 5), 4), ("hr/b.png", (16, 12), 12)]
)
def test_a_wrong_size(folder, name, size, wanted):
    save(folder / name, *size)
    message = complaint(TINY, folder)
    width, height = size
    assert message.startswith(
        f"{folder / name} is {width} x {height} px, {wanted} x {wanted} expected; "
    )
    assert message.endswith("use those of the tests")
    save((folder / name).with_name("c.png"), *size)
    assert "expected (one of 2 such files);" in complaint(TINY, folder)


def test_an_unreadable_image(folder):
    (folder / "hr" / "c.png").write_text("a text")
    assert complaint(TINY, folder).startswith(f"{folder / 'hr' / 'c.png'} is no readable image")
    (folder / "hr" / "b.png").write_bytes(b"")
    message = complaint(TINY, folder)
    assert message.startswith(f"{folder / 'hr' / 'b.png'} is empty")
    assert message.endswith("(one of 2 such files)")


def test_pairs_of_ones_own(tmp_path):
    lr, hr = tmp_path / "small", tmp_path / "large"
    for name, width, height in (("x", 5, 7), ("y", 9, 3)):
        save(lr / f"{name}.png", width, height)
        save(hr / f"{name}.png", 2 * width, 2 * height)
    found = open_pairs(lr, hr)
    assert (found.set, found.scale, found.published) == (None, 2, False)
    assert found.lr == {"x": lr / "x.png", "y": lr / "y.png"}
    assert found.hr == {"x": hr / "x.png", "y": hr / "y.png"}
    alone = open_pairs(lr, None)
    assert (alone.lr, alone.hr, alone.scale) == (found.lr, None, None)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"b": (13, 12)}, "b.png is 13 x 12 px, no whole multiple of its LR image's 4 x 4; "),
        ({"a": (12, 16)}, "a.png is 12 x 16 px, no whole multiple of its LR image's 4 x 4; "),
        ({"c": (3, 3)}, "c.png is 3 x 3 px, no whole multiple of its LR image's 4 x 4; "),
        ({"a": (13, 13), "c": (1, 1)}, "a.png is 13 x 13 px, no whole multiple of its LR image's"),
        ({"a": (8, 8)}, "a.png has 2 times the sides of its LR image, other pairs 3 times; "),
    ],
)
def test_pairs_of_ones_own_of_wrong_sizes(folder, sizes, words):
    for name, size in sizes.items():
        save(folder / "hr" / f"{name}.png", *size)
    with pytest.raises(DataError, match=re.escape(words)) as error:
        open_pairs(folder / "lr", folder / "hr")
    assert ("(one of 2 such files)" in str(error.value)) == (len(sizes) == 2)


def test_pairs_of_ones_own_without_partner(folder):
    (folder / "lr" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png has no partner in .*lr"):
        open_pairs(folder / "lr", folder / "hr")


def test_random_crops_are_spread_over_all_places():
    y, x = np.mgrid[:7, :6]
    photo = np.stack([y, x, np.zeros_like(y)], axis=2).astype(np.uint8)
    places = []
    for index in range(400):
        crop = random_crop(photo, 4, 0, index)
        top, left = crop[0, 0, :2].tolist()
        assert np.array_equal(crop, photo[top : top + 4, left : left + 4])
        assert np.array_equal(random_crop(photo, 4, 0, index), crop)
        places.append((top, left))
    counts = np.zeros((4, 3))
    for place in places:
        counts[place] += 1  # raises for a place outside
    expected = 400 / 12
    # chi-squared of 11 degrees of freedom: above 31.3 once in 1000 times
    assert ((counts - expected) ** 2 / expected).sum() < 31.3
    other = [tuple(random_crop(photo, 4, 1, index)[0, 0, :2].tolist()) for index in range(400)]
    assert other != places


def test_a_random_crop_of_the_whole_photo():
    photo = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(random_crop(photo, 4, 3, 5), photo)
    with pytest.raises(DataError, match=r"4 x 4 px holds no crop of 5 px"):
        random_crop(photo, 5, 3, 5)


def test_realsr(shared_data, tmp_path):
    found = open_set("realsr", shared_data / "realsr")
    assert (len(found.lr), found.scale) == (100, 4)
    assert found.hr is not None
    assert tuple(found.lr) == tuple(found.hr) == SETS["realsr"].names
    assert published_set(shared_data / "realsr") == SETS["realsr"]
    for part in ("lr", "hr"):
        (tmp_path / part).mkdir()
        for name in list(found.lr)[1:]:
            (tmp_path / part / f"{name}.png").symlink_to(
                shared_data / "realsr" / part / f"{name}.png"
            )
    with pytest.raises(DataError, match=r"99 images, RealSR has 100: Canon_001_LR4 is missing;"):
        open_set("realsr", tmp_path)
    wrong = tmp_path / "hr" / "Canon_001_LR4.png"
    shutil.copy(found.lr["Canon_001_LR4"], wrong)
    shutil.copy(found.lr["Canon_001_LR4"], tmp_path / "lr")
    with pytest.raises(DataError, match=r"Canon_001_LR4\.png is 128 x 128 px, 512 x 512 expected"):
        open_set("realsr", tmp_path)
