"""`allosr2 data shard`: what it says, what it refuses, and its exit codes."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.cli import main


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
