"""Checkpoints are whole or absent, and belong to one config."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from allosr2.errors import AlloSR2Error, ConfigError, ModelError
from allosr2.training import checkpoint as module
from allosr2.training.checkpoint import (
    Checkpoint,
    checkpoints,
    config_fields,
    load_checkpoint,
    load_latest,
    prune,
    save_checkpoint,
)
from allosr2.training.config import CodecTraining

Parts = Callable[..., dict[str, Any]]


@pytest.fixture
def config(parts: Parts, tmp_path: Path) -> CodecTraining:
    return CodecTraining(**parts(tmp_path / "run"))


def state(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 3, 3, generator=generator)
    return Checkpoint(
        step=step,
        constants={"t_star": 0.4375},
        fingerprints={"photographs": "0123"},
        weights={"conv.weight": weight.to(memory_format=torch.channels_last)},
        average={"conv.weight": weight / 2},
        optimizer={
            "conv.weight/exp_avg": weight / 3,
            "conv.weight/step": torch.tensor(float(step)),
        },
    )


def test_a_checkpoint_comes_back_to_the_bit(config: CodecTraining, tmp_path: Path) -> None:
    saved = state(3)
    path = save_checkpoint(tmp_path / "c", saved, config)
    assert path == tmp_path / "c" / "step_00000003"
    loaded = load_checkpoint(path, config)
    assert (loaded.step, loaded.constants) == (3, {"t_star": 0.4375})
    assert loaded.fingerprints == {"photographs": "0123"}
    for name in ("weights", "average", "optimizer"):
        expected = getattr(saved, name)
        assert getattr(loaded, name).keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(getattr(loaded, name)[key], tensor)


@pytest.mark.parametrize("failing", ["save_file", "json.dumps", "os.fsync", "Path.rename"])
def test_an_interrupted_write_leaves_no_checkpoint(
    config: CodecTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    folder = tmp_path / "c"
    save_checkpoint(folder, state(1), config)
    owner: Any = {"save_file": module, "json.dumps": json, "os.fsync": os, "Path.rename": Path}
    name = failing.split(".")[-1]
    calls = 0
    original = getattr(owner[failing], name)

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (2 if failing in ("save_file", "os.fsync") else 1):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner[failing], name, fail)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, state(2), config)
    assert [path.name for path in checkpoints(folder)] == ["step_00000001"]
    assert len(list(folder.iterdir())) == 2  # what was being written is hidden

    save_checkpoint(folder, state(2), config)
    prune(folder, 5)
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000001", "step_00000002"]
    assert load_checkpoint(checkpoints(folder)[-1], config).step == 2


def test_pruning_keeps_the_newest(config: CodecTraining, tmp_path: Path) -> None:
    for step in (9, 10, 2, 100):
        save_checkpoint(tmp_path, state(step), config)
    (tmp_path / ".step_00000101.77").mkdir()
    (tmp_path / "notes").mkdir()
    prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "step_00000010", "step_00000100"]


def test_another_config_is_refused_by_the_names_of_its_fields(
    config: CodecTraining, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path / "c", state(1), config)
    other = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, seed=9, steps=50),
        optimization=dataclasses.replace(config.optimization, learning_rate=0.5),
        latent_noise=0.25,
    )
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(path, other)
    assert str(caught.value) == (
        f"{path}: the run was started with another config (latent_noise was 0.2, is 0.25; "
        "optimization.learning_rate was 0.001, is 0.5; run.seed was 3, is 9); "
        "use the same one to resume, --allow-changes to go on with this one, or another --output"
    )


def test_another_config_is_named_and_taken_when_told(
    config: CodecTraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_checkpoint(tmp_path / "c", state(1), config)
    run = dataclasses.replace(config.run, seed=9, allow_changes=True)
    assert load_checkpoint(path, dataclasses.replace(config, run=run)).step == 1
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: goes on with another config (run.seed was 3, is 9)"


def test_a_moved_run_may_have_other_free_fields(config: CodecTraining, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", state(1), config)
    shutil.move(tmp_path / "c", tmp_path / "elsewhere")
    other = dataclasses.replace(
        config,
        run=dataclasses.replace(
            config.run,
            output=tmp_path / "new",
            steps=99,
            device="cpu",
            compile=True,
            log_every=7,
            checkpoint_every=8,
            keep_checkpoints=9,
        ),
        images=dataclasses.replace(config.images, workers=3, cache_gigabytes=0.5),
    )
    assert load_checkpoint(tmp_path / "elsewhere" / "step_00000001", other).step == 1


def test_a_config_shorter_than_the_run_is_refused(config: CodecTraining, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c", state(5), config)
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(path, config)
    assert str(caught.value) == (
        f"steps is 4: {path} is past it; use at least 5, or another --output"
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", None),
        ("state.json", b"{"),
        ("state.json", b"{}"),
        ("state.json", b"[]"),
        ("state.json", b"\xff\xfe"),
        ("weights.safetensors", None),
        ("optimizer.safetensors", b"cut short"),
        ("average.safetensors", "flipped"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(
    config: CodecTraining, tmp_path: Path, name: str, content: bytes | str | None
) -> None:
    path = save_checkpoint(tmp_path / "c", state(1), config)
    damage(path / name, content)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(path, config)
    message = str(caught.value)
    assert message.startswith(f"{path}: the checkpoint cannot be read (")
    assert message.endswith(")")
    assert "\n" not in message


def damage(path: Path, content: bytes | str | None) -> None:
    """Remove a file, give it other content, or flip the last bit of a tensor in it."""
    whole = path.read_bytes()
    path.unlink()
    if content == "flipped":
        content = whole[:-1] + bytes([whole[-1] ^ 1])
    if isinstance(content, bytes):
        path.write_bytes(content)


def test_the_hashes_are_those_of_the_files(config: CodecTraining, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c", state(7), config)
    saved = json.loads((path / "state.json").read_text())
    assert saved["sha256"] == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.glob("*.safetensors")
    }
    assert len(saved["sha256"]) == 3
    assert saved["next_sample"] == 14  # two samples a step
    assert saved["versions"]["torch"] == version("torch")


@pytest.mark.parametrize("set_aside", [True, False])
def test_a_damaged_checkpoint_is_passed_over(
    config: CodecTraining, tmp_path: Path, caplog: pytest.LogCaptureFixture, set_aside: bool
) -> None:
    folder = tmp_path / "c"
    for step in (1, 2, 3):
        save_checkpoint(folder, state(step), config)
    damage(folder / "step_00000003" / "weights.safetensors", "flipped")
    damage(folder / "step_00000002" / "state.json", None)
    loaded = load_latest(folder, config, set_aside=set_aside)
    assert loaded is not None
    assert loaded.step == 1
    names = sorted(path.name for path in folder.iterdir())
    if set_aside:
        assert names == ["damaged_step_00000002", "damaged_step_00000003", "step_00000001"]
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2
        assert "step_00000003: " in said[0]
        assert "weights.safetensors is not as it was written" in said[0]
        assert "step_00000002: " in said[1]
        assert all(line.endswith("step_00000001, the one before, is used") for line in said)
        # what was damaged is written anew, and pruning leaves what was set aside
        assert save_checkpoint(folder, state(3), config).is_dir()
        prune(folder, 1)
        assert (folder / "damaged_step_00000003").is_dir()
    else:
        assert names == ["step_00000001", "step_00000002", "step_00000003"]


def test_nothing_but_damaged_checkpoints(config: CodecTraining, tmp_path: Path) -> None:
    assert load_latest(tmp_path / "c", config, set_aside=True) is None
    path = save_checkpoint(tmp_path / "c", state(1), config)
    damage(path / "optimizer.safetensors", b"")
    with pytest.raises(ModelError, match=r"none before it can; remove .*/c to start anew"):
        load_latest(tmp_path / "c", config, set_aside=True)
    assert path.is_dir()


@pytest.mark.parametrize("field", ["weights", "average", "optimizer"])
def test_what_is_not_finite_is_never_written(
    config: CodecTraining, tmp_path: Path, field: str
) -> None:
    folder = tmp_path / "c"
    save_checkpoint(folder, state(1), config)
    broken = state(2)
    tensor = next(iter(getattr(broken, field).values()))
    tensor[(0,) * tensor.ndim] = torch.nan
    with pytest.raises(AlloSR2Error) as caught:
        save_checkpoint(folder, broken, config)
    assert "is not finite at step 2, which is not written" in str(caught.value)
    assert "(the last good checkpoint is step_00000001)" in str(caught.value)
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]


def test_a_full_disk_is_one_line_and_leaves_nothing(
    config: CodecTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    save_checkpoint(tmp_path / "c", state(1), config)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(AlloSR2Error, match=r"cannot be written \(.*No space left"):
            save_checkpoint(tmp_path / "c", state(2), config)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step_00000001"]


def test_fields_are_json(config: CodecTraining) -> None:
    fields = config_fields(config)
    assert json.loads(json.dumps(fields)) == fields
    assert fields["optimization.betas"] == [0.9, 0.999]
    assert fields["run.output"] == str(config.run.output)
    assert fields["initial"] is None
