"""`allosr2 degrade`: sizes, names, what is drawn for which image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from allosr2.cli import main
from allosr2.data.degradation import preset, sample_degradation


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "hr"
    folder.mkdir()
    for index, (name, size) in enumerate([("a.png", (50, 67)), ("b.jpg", (64, 64))]):
        y, x = np.mgrid[: size[0], : size[1]]
        levels = (127 + 90 * np.sin(0.2 * x + 0.1 * index + 0.05 * y)).astype(np.uint8)
        Image.fromarray(np.repeat(levels[..., None], 3, axis=2)).save(folder / name)
    return folder


def test_a_folder(photos, tmp_path, capsys):
    target = tmp_path / "lr"
    arguments = ["degrade", str(photos), "--output", str(target), "--seed", "7"]
    assert main(arguments) == 0
    expected = [
        f"{target / name}: {sample_degradation(preset('mild'), 7, index).describe()}"
        for index, name in enumerate(["a.png", "b.png"])
    ]
    assert capsys.readouterr().out.splitlines() == expected
    first = np.asarray(Image.open(target / "a.png"))
    assert first.shape == (12, 16, 3)
    assert Image.open(target / "b.png").size == (16, 16)
    # A degradation keeps what is coarse: the mean of each third of the picture.
    hr = np.asarray(Image.open(photos / "a.png"))[:48, :64]
    for part in range(2):
        columns = slice(part * 8, part * 8 + 8), slice(part * 32, part * 32 + 32)
        assert abs(first[:, columns[0]].mean() - hr[:, columns[1]].mean()) < 12

    before = (target / "a.png").read_bytes()
    assert main(arguments) == 0
    assert (target / "a.png").read_bytes() == before
    assert main([*arguments[:-1], "8"]) == 0
    assert (target / "a.png").read_bytes() != before


def test_a_file_is_image_0_of_its_folder(photos, tmp_path, capsys):
    assert main(["degrade", str(photos), "--output", str(tmp_path / "lr"), "--seed", "3"]) == 0
    alone = tmp_path / "alone.png"
    arguments = ["degrade", str(photos / "a.png"), "--output", str(alone), "--seed", "3"]
    assert main(arguments) == 0
    assert alone.read_bytes() == (tmp_path / "lr" / "a.png").read_bytes()


def test_scale_2(photos, tmp_path):
    target = tmp_path / "lr.png"
    arguments = ["degrade", str(photos / "a.png"), "--output", str(target), "--scale", "2"]
    assert main(arguments) == 0
    assert Image.open(target).size == (33, 25)


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        (["--preset", "real-esrgn"], 2, "real-esrgan"),
        (["--scale", "0"], 2, "--scale"),
        (["--scale", "100"], 3, "shorter than the scale"),
        (["--seed", "-1"], 2, "seed"),
    ],
)
def test_refusals(photos, tmp_path, capsys, options, code, word):
    target = tmp_path / "lr.png"
    assert main(["degrade", str(photos / "a.png"), "--output", str(target), *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("allosr2: error: ")
    assert word in line
    assert not target.exists()
