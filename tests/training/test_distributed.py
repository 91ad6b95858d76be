"""Two processes that torchrun starts train the model that one process trains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allosr2.data.pairs import batches
from allosr2.data.photos import HRImages
from allosr2.errors import AlloSR2Error, ConfigError
from allosr2.training.distributed import Processes, join, measured_once


def images(photos: Path) -> HRImages:
    return HRImages(
        photos=photos, procedural=0.0, crop=32, minimum_scale=1.0, cache_gigabytes=1, seed=5
    )


def test_alone_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert join("cpu", accumulation=3) == (Processes(rank=0, count=1), torch.device("cpu"))
    assert measured_once(lambda: 0.1, torch.device("cpu")) == 0.1
    terms = {"a": torch.tensor(2.0), "total": torch.tensor(5.0)}
    assert Processes().sum_terms(terms) == terms


def test_parts_that_cannot_be_shared_out_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match=r"accumulation is 4: 8 processes .* use a multiple of 8"):
        join("cpu", accumulation=4)


def test_the_processes_parts_together_are_the_whole(photos):
    settings = {"scale": 4, "batch_size": 2, "first": 12, "last": 24, "workers": 0}
    whole = list(batches(images(photos), None, **settings))
    shares = [
        list(batches(images(photos), None, **settings, process=r, processes=3)) for r in range(3)
    ]
    dealt = [shares[part % 3][part // 3] for part in range(6)]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert all(torch.equal(a.hr, b.hr) for a, b in zip(whole, dealt, strict=True))


def run(command: Sequence[str], small_base: Path, photos: Path, output: Path) -> str:
    """Train with `command`, which starts Python; returns what was said on stderr."""
    arguments = (
        f"train mini --base {small_base} --photos {photos} --output {output} --steps 3 --batch-size 4 "
        "--accumulation 2 --crop 32 --perceptual-weight 0 --grid-weight 0 --atm-weight 1 --rank 2 "
        "--alpha 2 --procedural 0 --workers 0 --no-compile --precision float32 --device cpu "
        "--t-star-pairs 4 --log-every 1 --checkpoint-every 2"
    )
    done = subprocess.run(
        [*command, "-m", "allosr2", *arguments.split()],
        capture_output=True,
        text=True,
        timeout=300,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(output / "model")]
    return done.stderr


def test_two_processes_are_one_to_the_last_bit(small_base, photos, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    said = run([*torchrun], small_base, photos, tmp_path / "two")
    run([sys.executable], small_base, photos, tmp_path / "one")
    assert said.count("t* =") == 1
    one, two = (
        load_file(tmp_path / name / "model" / "pytorch_lora_weights.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(bool(one[key].any()) for key in one if ".lora_B." in key)
    one_s, two_s = (
        [line.split(', "learning_rate"')[1] for line in (tmp_path / n / "log.jsonl").open()]
        for n in ("one", "two")
    )
    assert one_s == two_s
    assert len(one_s) == 3


def test_a_process_that_is_left_alone_says_so(monkeypatch):
    def gone(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

    for name in ("all_reduce", "broadcast", "barrier"):
        monkeypatch.setattr(torch.distributed, name, gone)
    process = Processes(rank=3, count=4)
    for talk in (
        lambda: process.sum_([torch.ones(1)]),
        lambda: process.copy_from_first_([torch.ones(1)]),
        process.wait,
    ):
        with pytest.raises(AlloSR2Error, match=r"^process 3: another process stopped"):
            talk()
