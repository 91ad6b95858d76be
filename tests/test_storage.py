"""Files: readable by others, whole or absent; what is left of them, and what they are called."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from allosr2.storage import PARTIAL, clear_partials, located, partial_of, save_tensors


def test_a_file_goes_round_and_is_as_readable_as_any_other(tmp_path):
    path, plain = tmp_path / "a.safetensors", tmp_path / "plain"
    tensors = {"x": torch.arange(6).reshape(2, 3).T, "empty": torch.zeros(0, 4)}
    save_tensors(path, tensors, {"said": "so"})
    assert torch.equal(load_file(path)["x"], tensors["x"])
    assert load_file(path)["empty"].shape == (0, 4)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"said": "so"}
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "plain"]


def test_a_write_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"x": torch.ones(2)})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_tensors(path, {"x": torch.zeros(2)})
    assert torch.equal(load_file(path)["x"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_partial_files_of_processes_that_are_gone(tmp_path):
    ours = partial_of(tmp_path / "a.png")
    assert PARTIAL.fullmatch(ours.name)["process"] == str(os.getpid())
    assert partial_of(tmp_path / "a.png") != ours
    with subprocess.Popen(["true"]) as gone:
        pass
    with subprocess.Popen(["sleep", "60"]) as alive:
        theirs = f".allosr2-{alive.pid}-0.part"
        former = f".allosr2-{os.getpid()}-0.part"  # this id, in a container that is gone
        others = [
            ".allosr2-12.part",
            ".allosr2-x-0.part",
            ".allosr2-99999999999999-0.part",
            "a.part",
        ]
        for name in (ours.name, theirs, former, f".allosr2-{gone.pid}-0.part", *others):
            (tmp_path / name).touch()
        clear_partials([tmp_path, tmp_path / "none"])
        left = {path.name for path in tmp_path.iterdir()}
        alive.kill()
    assert left == {ours.name, theirs, *others}


def test_a_partial_file_that_may_not_be_removed_stays(tmp_path, monkeypatch):
    left = tmp_path / f".allosr2-{os.getpid()}-0.part"
    left.touch()
    with monkeypatch.context() as patched:
        refused = PermissionError(1, "Operation not permitted")
        patched.setattr(Path, "unlink", lambda _: (_ for _ in ()).throw(refused))
        clear_partials([tmp_path])
    assert left.exists()


def test_one_name_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").touch()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "link" / "b.png").symlink_to("a.png")
    monkeypatch.chdir(tmp_path)
    for name in ("real/a.png", "link/a.png", "./link/../real/a.png", f"{tmp_path}/link/a.png"):
        assert located(Path(name)) == tmp_path / "real" / "a.png"
    assert located(Path("link/b.png")) == tmp_path / "real" / "b.png"
    assert located(Path("none/c.png")) == tmp_path / "none" / "c.png"
    assert located(Path("c.png")) == tmp_path / "c.png"
