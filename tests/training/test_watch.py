"""A run that is watched: what is written down of it, and that it is the same as one that is not."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from allosr2.training.config import AdapterConfig, AlloSR2Training, WatchConfig
from allosr2.training.loop import train


@pytest.fixture
def config(
    parts: Callable[..., dict[str, Any]], small_base: Path, tmp_path: Path
) -> AlloSR2Training:
    """Seven steps, logged every second, looked at after the fifth and the last."""
    settings = parts(tmp_path / "watched", steps=7, log_every=2, profile=True)
    return AlloSR2Training(
        **settings | {"watch": WatchConfig(validate_every=5, validation_images=3)},
        base=str(small_base),
        adapter=AdapterConfig(rank=2, alpha=2),
        preset="mild",
        t_star_pairs=5,
    )


def test_what_is_written_down(config: AlloSR2Training) -> None:
    train(config)
    output = config.run.output
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 7]
    assert all(line["memory"] > 10**8 and line["seconds"] > 0 for line in lines)

    told = EventAccumulator(str(output / "tensorboard")).Reload()
    losses = told.Scalars("loss/total")
    assert [point.step for point in losses] == [2, 4, 6, 7]
    assert [point.value for point in losses] == pytest.approx([line["total"] for line in lines])
    norms = [told.Scalars(f"gradient_norm/{part}")[-1].value for part in ("codec", "velocity")]
    whole = sum(norm**2 for norm in norms) ** 0.5
    assert told.Scalars("gradient_norm/all")[-1].value == pytest.approx(whole, rel=1e-5)
    assert [point.step for point in told.Scalars("validation/psnr_y")] == [5, 7]
    assert [picture.step for picture in told.Images("sheet")] == [5, 7]

    sheets = sorted((output / "sheets").iterdir())
    assert [sheet.name for sheet in sheets] == ["step_00000005.png", "step_00000007.png"]
    assert Image.open(sheets[0]).mode == "RGB"
    with gzip.open(output / "trace.json.gz") as trace:
        events = json.load(trace)["traceEvents"]
    assert any("convolution" in str(event.get("name")) for event in events)


def test_watching_changes_nothing(config: AlloSR2Training, tmp_path: Path) -> None:
    run = dataclasses.replace(config.run, output=tmp_path / "alone", profile=False)
    alone = dataclasses.replace(
        config, run=run, watch=WatchConfig(tracker="none", validate_every=0)
    )
    ends = []
    for each in (config, alone):
        train(each)
        folder = each.run.output / "checkpoints" / "step_00000007"
        ends.append({p.name: load_file(p) for p in folder.glob("*.safetensors")})
    watched, unwatched = ends
    assert watched.keys() == unwatched.keys()
    assert all(
        torch.equal(tensor, unwatched[file][name])
        for file, tensors in watched.items()
        for name, tensor in tensors.items()
    )
    assert not (tmp_path / "alone" / "tensorboard").exists()
    assert not (tmp_path / "alone" / "sheets").exists()


def test_a_resumed_run_shows_each_step_once(config: AlloSR2Training) -> None:
    def crash(status: Any) -> None:
        if status.step == 6:
            raise OSError("the machine is gone")

    config = dataclasses.replace(
        config, run=dataclasses.replace(config.run, checkpoint_every=3, profile=False)
    )
    with pytest.raises(OSError, match="gone"):
        train(config, crash)
    train(config)
    told = EventAccumulator(str(config.run.output / "tensorboard")).Reload()
    assert [point.step for point in told.Scalars("loss/total")] == [2, 4, 6, 7]
    assert [point.step for point in told.Scalars("validation/psnr_y")] == [5, 7]
