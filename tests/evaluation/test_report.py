from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.errors import ConfigError, ImageError
from allosr2.evaluation.report import write_report
from allosr2.evaluation.summary import Measured, Result
from allosr2.evaluation.tables import table

HOSTILE = '<b>&"</script><script>alert(1)</script>'
NAMES = ["first", "second", "third"]


def gradient(size: int, level: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] * 255 // (size - 1)
    return np.dstack([rows, columns, np.full((size, size), level)]).astype(np.uint8)


def folder(path: Path, size: int, level: int) -> dict[str, Path]:
    path.mkdir()
    for name in NAMES:
        Image.fromarray(gradient(size, level)).save(path / f"{name}.png")
    return {name: path / f"{name}.png" for name in NAMES}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, dict[str, Path]]:
    return {
        "lr": folder(tmp_path / "lr", 8, 0),
        "hr": folder(tmp_path / "hr", 32, 64),
        "one": folder(tmp_path / "one", 32, 128),
        "two": folder(tmp_path / "two", 32, 255),
    }


def results_of(files) -> list[Result]:
    return [
        Result(
            method=method,
            images=files[key],
            measured=Measured(images={name: {"psnr": 20 + 1 / 3, "niqe": 4.0} for name in NAMES}),
            note=note,
        )
        for method, key, note in (("one", "one", ""), (HOSTILE, "two", "made & <kept>"))
    ]


def written(path: Path, files, **options) -> str:
    results = results_of(files)
    settings = {
        "title": "RealSR & others",
        "facts": {"Date": "2026-04-01", "pyiqa": "0.1.16 <x>"},
        "table": table(results, None),
        "results": results,
        "lr": files["lr"],
        "hr": files["hr"],
        **options,
    }
    write_report(path, **settings)
    return path.read_text("utf-8")


class Page(HTMLParser):
    VOID = frozenset({"meta", "img", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for found, attributes in self.tags if found == tag]


def viewer_of(text: str) -> dict:
    found = re.search(
        r'<script type="application/json" id="pictures">(.*?)</script>', text, re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


def decoded(source: str) -> tuple[str, np.ndarray]:
    head, content = source.split(",")
    with Image.open(BytesIO(base64.b64decode(content, validate=True))) as image:
        assert head == f"data:image/{(image.format or '').lower()};base64"
        return image.format or "", np.array(image)


def test_nothing_is_fetched(tmp_path, files):
    plot = gradient(40, 9)
    text = written(tmp_path / "r.html", files, plot=plot, sheets={"first": gradient(50, 7)})
    page = Page(text)
    assert "://" not in text
    assert not [tag for tag in ("link", "iframe", "a", "base", "object") if page.all(tag)]
    assert all("src" not in attributes for attributes in page.all("script"))
    sources = [attributes["src"] for attributes in page.all("img") if "src" in attributes]
    assert len(sources) == 2
    kind, picture = decoded(sources[0])
    assert kind == "PNG"
    assert np.array_equal(picture, plot)
    assert decoded(sources[1])[1].shape == (50, 50, 3)
    assert "url(" not in text
    policy = next(a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'; img-src data:;")


def test_pictures_are_those_of_the_files(tmp_path, files):
    viewer = viewer_of(written(tmp_path / "r.html", files))
    assert viewer["labels"] == ["LR", "one", HOSTILE, "HR"]
    assert [image["name"] for image in viewer["images"]] == NAMES
    assert viewer["start"] == [1, 2]
    for image in viewer["images"]:
        assert (image["width"], image["height"]) == (32, 32)
        lr, *large = [decoded(version["source"]) for version in image["versions"]]
        assert lr[0] == "PNG"
        assert np.array_equal(lr[1], gradient(8, 0))
        for (kind, picture), level in zip(large, (128, 255, 64), strict=True):
            assert kind == "JPEG"
            assert np.abs(picture.astype(int) - gradient(32, level)).mean() < 2


def test_figures_of_single_images(tmp_path, files):
    viewer = viewer_of(written(tmp_path / "r.html", files))
    assert viewer["metrics"] == [
        {"name": "psnr", "title": "PSNR ↑", "lower": False, "target": None},
        {"name": "niqe", "title": "NIQE ↓", "lower": True, "target": None},
    ]
    figures = [version["figures"] for version in viewer["images"][0]["versions"]]
    assert figures == [{}, *[{"psnr": "20.33", "niqe": "4.00"}] * 2, {}]


def test_names_cannot_become_markup(tmp_path, files):
    text = written(tmp_path / "r.html", files)
    page = Page(text)
    assert "<script>alert" not in text
    assert len(page.all("b")) == 4  # best figures: both methods are equal in two metrics
    assert len(page.all("script")) == 2
    options = "".join(data for tag, data in page.texts if tag == "option")
    assert options.count(HOSTILE) == 2
    assert ("h1", "RealSR & others") in page.texts
    assert ("dd", "0.1.16 <x>") in page.texts
    assert ("dd", "made & <kept>") in page.texts


def test_says_how_many_of_how_many(tmp_path, files):
    text = written(tmp_path / "r.html", files, limit=2)
    assert "Images: 2 of 3, evenly spread." in text
    assert [image["name"] for image in viewer_of(text)["images"]] == ["first", "third"]
    assert "Images: 3. Results" in written(tmp_path / "r.html", files)


def test_without_reference(tmp_path, files):
    viewer = viewer_of(written(tmp_path / "r.html", files, hr=None, results=results_of(files)[:1]))
    assert viewer["labels"] == ["LR", "one"]
    assert viewer["start"] == [0, 1]


def test_images_that_not_all_have_are_left_out(tmp_path, files):
    del files["two"]["second"]
    viewer = viewer_of(written(tmp_path / "r.html", files))
    assert [image["name"] for image in viewer["images"]] == ["first", "third"]


def test_refusals_leave_the_former_file(tmp_path, files):
    path = tmp_path / "r.html"
    path.write_text("former")
    with pytest.raises(ConfigError, match=r"images in the report: 0; use 1 or more"):
        written(path, files, limit=0)
    with pytest.raises(ConfigError, match=r"no image that every method has"):
        written(path, files, lr={"other": files["lr"]["first"]})
    files["two"]["first"].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"first\.png"):
        written(path, files)
    assert path.read_text() == "former"
    with pytest.raises(ConfigError, match=r"cannot write .*absent.*choose a writable folder"):
        written(tmp_path / "absent" / "r.html", files, lr={"second": files["lr"]["second"]})
