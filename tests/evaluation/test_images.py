"""Images of folders by name: which belong together, what is in the way, how large they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from allosr2.errors import DataError
from allosr2.evaluation.images import all_partners, evenly, images_of, partners, sizes_of


def save(path: Path, width: int = 3, height: int = 2, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path)
    return path


def named(folder: str, *names: str) -> dict[str, Path]:
    """Images that nobody opens."""
    return {name: Path(folder, f"{name}.png") for name in names}


def test_images_are_named_without_suffix_in_the_order_of_names(tmp_path):
    for name in ("b.png", "a.PNG", "Größe 2.jpg", "a.b.png", "B.webp"):
        save(tmp_path / name)
    for name in (".hidden.png", "notes.txt", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = images_of(tmp_path)
    assert list(images) == ["B", "Größe 2", "a", "a.b", "b"]
    assert images["a"] == tmp_path / "a.PNG"


@pytest.mark.parametrize("kind", ["absent", "empty", "file"])
def test_a_folder_without_images(tmp_path, kind):
    folder = tmp_path / kind
    if kind == "empty":
        (folder / "sub").mkdir(parents=True)
        (folder / "notes.txt").touch()
    elif kind == "file":
        folder.touch()
    with pytest.raises(DataError, match=str(folder)) as caught:
        images_of(folder)
    assert "\n" not in str(caught.value)
    if kind == "empty":
        assert str(caught.value) == f"{folder} holds no image; name a folder with images"


def test_two_images_of_one_name(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        save(tmp_path / name)
    with pytest.raises(DataError) as caught:
        images_of(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'a.png'} has the name of {tmp_path / 'a.jpg'}; take one out"
    )
    for name in ("b.webp", "b.bmp"):
        save(tmp_path / name)
    with pytest.raises(DataError, match=r"\(one of 3 such files\); take one out"):
        images_of(tmp_path)


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        (["a", "b"], ["b", "c", "a"], {"a": "a", "b": "b"}),
        (["DSC_1_x1", "DSC_2_x1"], ["DSC_1_x4", "DSC_2_x4"], "DSC_1_x4 DSC_2_x4"),
        (["0801x4", "0802x4"], ["0801", "0802"], "0801 0802"),
        (["0801"], ["0801x4"], "0801x4"),
        (["0801X4"], ["0801_x1"], "0801_x1"),
        # the very name comes first, and leaves nothing to the other
        (["a", "a_x4"], ["a"], {"a": "a"}),
        (["a_x4", "a"], ["a", "a_x1"], {"a_x4": "a_x1", "a": "a"}),
        # neither of two that come to one name
        (["a_x4"], ["a_x1", "a_x2"], {}),
        (["a_x2", "a_x4"], ["a"], {}),
        (["a_x2", "a_x4", "b_x4"], ["a", "b"], {"b_x4": "b"}),
        # a scale is one digit behind an x, at the end
        (["a_x16"], ["a"], {}),
        (["a_x4_b"], ["a_b"], {}),
        (["max"], ["ma"], {}),
        ([], ["a"], {}),
    ],
)
def test_partners(names, others, expected):
    if isinstance(expected, str):
        expected = dict(zip(names, expected.split(), strict=True))
    found = partners(names, named("there", *others))
    assert found == {name: Path("there", f"{other}.png") for name, other in expected.items()}
    assert list(found) == [name for name in names if name in expected]


def test_all_have_partners():
    found = all_partners(named("lr", "1_x1", "b"), named("hr", "b", "1_x4"))
    assert list(found.items()) == [("1_x1", Path("hr/1_x4.png")), ("b", Path("hr/b.png"))]


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ("a b", "a", "here/b.png has no partner in there: 2 images in here, 1 in there; "),
        ("a", "a b", "there/b.png has no partner in here: 1 images in here, 2 in there; "),
        ("a b c d", "a x", "here/b.png has no partner in there (one of 3 such files): 4 images "),
        ("a_x4", "a_x1 a_x2", "here/a_x4.png has no partner in there: 1 images in here, 2 in"),
    ],
)
def test_one_is_alone(here, there, words):
    with pytest.raises(DataError) as caught:
        all_partners(named("here", *here.split()), named("there", *there.split()))
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith("; give both of a pair one name")


def test_sizes_are_height_and_width_upright(tmp_path):
    turned = Image.new("RGB", (7, 4))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    images = {
        "rgb": save(tmp_path / "a.png", 5, 3),
        "deep": save(tmp_path / "b.png", 2, 9, "I;16"),
        "turned": tmp_path / "turned.jpg",
    }
    assert sizes_of(images) == {"rgb": (3, 5), "deep": (9, 2), "turned": (7, 4)}


def test_unreadable_images_are_counted(tmp_path):
    (tmp_path / "b.png").write_text("a text")
    (tmp_path / "c.png").touch()
    images = {"a": save(tmp_path / "a.png"), "b": tmp_path / "b.png", "c": tmp_path / "c.png"}
    with pytest.raises(DataError) as caught:
        sizes_of(images)
    assert str(caught.value).startswith(str(tmp_path / "b.png"))
    assert str(caught.value).endswith(" (one of 2 such files)")


@pytest.mark.parametrize(
    ("count", "limit", "places"),
    [(100, 4, [12, 37, 62, 87]), (5, 2, [1, 3]), (3, 3, [0, 1, 2]), (2, 9, [0, 1]), (7, 1, [3])],
)
def test_names_spread_evenly(count, limit, places):
    names = [str(place) for place in range(count)]
    assert evenly(names, limit) == [str(place) for place in places]
