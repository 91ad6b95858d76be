"""`allosr2 data`: what it says, what it refuses, and its exit codes."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.cli import main
from allosr2.data.procedural import procedural_image
from allosr2.data.sources import Source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_a_folder(photos, tmp_path, capsys):
    target = tmp_path / "shards"
    command = ["data", "shard", str(photos), "--output", str(target), "--shard-gigabytes", "2.1e-5"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    paths = [target / f"shard-{number:06d}.tar" for number in range(2)]
    assert lines == [f"{paths[0]}: 2 photographs", f"{paths[1]}: 1 photograph"]
    with tarfile.open(paths[0]) as tar:
        assert tar.getnames() == ["photos/a.png", "photos/b.png"]
        tar.extractall(tmp_path, filter="data")
    paths[1].unlink()
    assert main(command) == 0
    streams = capsys.readouterr()
    assert streams.out.splitlines() == lines[1:]
    assert streams.err.splitlines() == ["allosr2: 1 of 2 shards were there already"]


def test_what_cannot_be_read_is_left_out_and_listed(photos, tmp_path, capsys):
    (photos / "b.png").write_text("a text")
    target = tmp_path / "shards"
    assert main(["data", "shard", str(photos), "--output", str(target)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"allosr2: error: {photos / 'b.png'} is no readable image")
    with tarfile.open(target / "shard-000000.tar") as tar:
        assert tar.getnames() == ["photos/a.png", "photos/c.png"]


@pytest.mark.parametrize(
    ("sources", "options", "code", "words"),
    [
        (["absent"], [], 5, "absent: no such folder of photographs"),
        ([], [], 2, "no photographs to write; name a folder"),
        (["photos"], ["--shard-gigabytes", "0"], 2, "--shard-gigabytes is 0.0: use a number above"),
        (["photos"], ["--output", "photos/shards"], 2, "it lies in photos, whose photographs"),
        (["photos"], ["--output", "photos"], 2, "it lies in photos"),
        (["photos"], ["--output", "file/shards"], 2, "--output is file/shards: Not a directory"),
        (["photos"], ["--output", "."], 2, "in it is no shard of these photographs"),
        (["empty"], [], 5, "empty: no photograph that can be read"),
    ],
)
def test_refusals(photos, tmp_path, monkeypatch, capsys, sources, options, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    output = options if "--output" in options else ["--output", "shards", *options]
    assert main(["data", "shard", *sources, *output]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert line.startswith("allosr2: error: ")
    assert words in line
    assert not (tmp_path / "shards").exists()


def test_data_needs_a_verb(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["data"])
    assert exit_.value.code == 2
    assert "shard" in capsys.readouterr().err


def test_images_are_drawn_and_more_of_them_later(tmp_path, capsys):
    folder = tmp_path / "drawn"
    command = ["data", "draw", "--output", str(folder), "--size", "32", "--seed", "5"]
    assert main([*command, "--count", "3", "--processes", "2"]) == 0
    streams = capsys.readouterr()
    assert streams.out == f"{folder}: 3 images of 32 px\n"
    assert streams.err == ""
    names = [f"drawn-5-32-{index:06d}.png" for index in range(5)]
    first = {name: (folder / name).read_bytes() for name in names[:3]}
    (folder / names[1]).unlink()
    (folder / ".allosr2-999999999-abc.part").write_text("of a killed run")
    assert main([*command, "--count", "5", "--processes", "1"]) == 0
    assert capsys.readouterr().err == "allosr2: 2 of 5 images were there already\n"
    assert sorted(path.name for path in folder.iterdir() if path.suffix) == [
        ".allosr2.lock",
        *names,
    ]
    assert {name: (folder / name).read_bytes() for name in names[:3]} == first
    for index, name in enumerate(names):
        with Image.open(folder / name) as image:
            np.testing.assert_array_equal(image, procedural_image(5, index, 32))
    assert [photo.key for photo in Source.parse(str(folder)).photos()] == names


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--count", "0"], 2, "--count is 0: use 1 or more"),
        (["--size", "16"], 2, "--size is 16: use 32 or more"),
        (["--seed", "-1"], 2, "--seed is -1: use 0 or more"),
        (["--processes", "0"], 2, "--processes is 0: use 1 or more"),
        (["--output", "file/drawn"], 2, "--output: file/drawn cannot be made (Not a directory)"),
    ],
)
def test_what_cannot_be_drawn(tmp_path, monkeypatch, capsys, options, code, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main(["data", "draw", "--count", "2", "--output", "drawn", *options]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert line.startswith("allosr2: error: ")
    assert words in line
    assert not (tmp_path / "drawn").exists()


def test_a_drawing_process_that_dies_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("allosr2.data.drawn._follow_parent", os.abort)
    folder = tmp_path / "drawn"
    assert main(["data", "draw", "--count", "2", "--size", "32", "--output", str(folder)]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("allosr2: error: a drawing process stopped")
    assert list(folder.glob("*.png")) == []
