"""Forty steps are twenty, a kill -9, and twenty more: in one process and in two, and amid an accumulation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

PYTHON = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
KILLED = str(Path(__file__).with_name("killed.py"))


ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {
    "OMP_NUM_THREADS": "1"
}


def arguments(
    small_base: Path, photos: Path, output: Path, steps: int = 40, workers: int = 0
) -> list[str]:
    """Train Algorithm 1 on 4 images in 2 parts, a checkpoint every 20 steps."""
    return (
        f"train mini --base {small_base} --photos {photos} --output {output} --steps {steps} --batch-size 4 "
        "--accumulation 2 --crop 32 --grid-weight 0 --atm-weight 1 --rank 2 --alpha 2 --procedural 0 "
        f"--perceptual-weight 0 --workers {workers} --no-compile --precision float32 --device cpu "
        "--t-star-pairs 4 --log-every 1 --checkpoint-every 20 --tracker none --validate-every 0"
    ).split()


def train(
    start: Sequence[str], small_base: Path, photos: Path, output: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*start, *arguments(small_base, photos, output)],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )


def end(output: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Every tensor of the last checkpoint and of the exported model, and every logged number but the times."""
    tensors = {
        f"{path.parent.name}/{path.name}/{key}": tensor
        for path in (*output.glob("checkpoints/step_00000040/*"), *output.glob("model/*"))
        if path.suffix == ".safetensors"
        for key, tensor in load_file(path).items()
    }
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return tensors, [
        {k: v for k, v in line.items() if k not in ("seconds", "memory")} for line in lines
    ]


@pytest.fixture(scope="module")
def straight(
    small_base: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """What a run comes to that nothing disturbs."""
    output = tmp_path_factory.mktemp("straight")
    done = train([*PYTHON, "-m", "allosr2"], small_base, photos, output)
    assert done.returncode == 0, done.stderr
    return end(output)


# Parts of the batch that the first process has come to: two a step alone, one a step where two share them. Step
# 26's second part is the 52nd of one process.
@pytest.mark.parametrize(("start", "part"), [(PYTHON, 52), (TWO, 26)], ids=["one", "two"])
def test_killed_and_resumed_is_straight(
    straight: tuple[dict[str, torch.Tensor], list[dict[str, Any]]],
    start: list[str],
    part: int,
    small_base: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    killed = train([*start, KILLED, str(part)], small_base, photos, tmp_path)
    assert killed.returncode == (-signal.SIGKILL if start is PYTHON else 1)
    logged = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(logged[-1])["step"] == 25
    assert not (tmp_path / "model").exists()
    resumed = train([*start, "-m", "allosr2"], small_base, photos, tmp_path)
    assert resumed.returncode == 0, resumed.stderr

    tensors, lines = end(tmp_path)
    expected, expected_lines = straight
    assert tensors.keys() == expected.keys()
    assert any("optimizer" in name for name in tensors)
    assert [name for name in expected if not torch.equal(tensors[name], expected[name])] == []
    assert lines == expected_lines
    assert [line["step"] for line in lines] == list(range(1, 41))


@pytest.mark.parametrize(
    "start", [PYTHON, pytest.param(TWO, marks=pytest.mark.slow)], ids=["one", "two"]
)
@pytest.mark.parametrize(
    "sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_all_processes_leaves_a_checkpoint(
    start: list[str], sent: signal.Signals, small_base: Path, photos: Path, tmp_path: Path
) -> None:
    """As terminals, SLURM and torchrun send it: to loading processes too, which go on until they are ended."""
    run = subprocess.Popen(
        [*start, "-m", "allosr2", *arguments(small_base, photos, tmp_path, steps=10**5, workers=1)],
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = tmp_path / "log.jsonl"
    until = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 30):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(run.pid, sent)
    said = run.communicate(timeout=60)[1]
    lines = log.read_text().splitlines()
    last = json.loads(lines[-1])["step"]
    assert (tmp_path / "checkpoints" / f"step_{last:08d}" / "state.json").is_file(), said
    assert f"allosr2: stopped; run the same command again to resume from {tmp_path}" in said
    if start is PYTHON:  # torchrun has a traceback of its own
        assert run.returncode == 130
        assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(run.pid, 0)
