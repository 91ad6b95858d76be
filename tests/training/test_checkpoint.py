"""Checkpoints are whole or absent, and belong to one config."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from allosr2.errors import ConfigError, ModelError
from allosr2.training import checkpoint as module
from allosr2.training.checkpoint import (
    Checkpoint,
    checkpoints,
    config_fields,
    load_checkpoint,
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
        "use the same one to resume, or another --output"
    )


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
    ],
)
def test_a_damaged_checkpoint_is_one_line(
    config: CodecTraining, tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = save_checkpoint(tmp_path / "c", state(1), config)
    (path / name).unlink()
    if content is not None:
        (path / name).write_bytes(content)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(path, config)
    message = str(caught.value)
    assert message.startswith(f"{path}: the checkpoint cannot be read (")
    assert message.endswith("); remove it to go on from the one before")
    assert "\n" not in message


def test_fields_are_json(config: CodecTraining) -> None:
    fields = config_fields(config)
    assert json.loads(json.dumps(fields)) == fields
    assert fields["optimization.betas"] == [0.9, 0.999]
    assert fields["run.output"] == str(config.run.output)
    assert fields["initial"] is None
