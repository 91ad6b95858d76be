"""Files of tensors: readable by others, whole or absent."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from allosr2.storage import save_tensors


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
