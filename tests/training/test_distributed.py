"""Two processes that torchrun starts train the model that one process trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from allosr2.errors import AlloSR2Error, ConfigError
from allosr2.training.distributed import Processes, join, measured_once, parts_of_batch


def test_alone_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert join("cpu") == (Processes(rank=0, count=1), torch.device("cpu"))
    assert measured_once(lambda: 0.1, torch.device("cpu")) == 0.1
    terms = {"a": torch.tensor(2.0), "total": torch.tensor(5.0)}
    assert Processes().sum_terms(terms) == {"a": 2.0, "total": 5.0}


@pytest.mark.parametrize(
    ("batch_size", "least", "processes", "parts"),
    [
        (16, 8, 1, 8),  # as asked
        (16, 8, 8, 8),
        (16, 8, 16, 16),  # an image each
        (2, 1, 2, 2),
        (4, 1, 1, 1),
        (16, 1, 3, 8),  # 6, 6 and 4 images; of 4 parts the busiest would get 8
        (12, 1, 5, 12),  # 3, 3, 2, 2 and 2; of 6 parts one would get 4
        (7, 1, 3, 7),
    ],
)
def test_a_batch_is_cut_so_that_all_are_busy(batch_size, least, processes, parts):
    assert parts_of_batch(batch_size, least, processes) == parts


def test_a_base_that_is_shared_out_needs_equal_shares():
    assert parts_of_batch(12, 1, 4, even=True) == 4
    assert parts_of_batch(12, 6, 4, even=True) == 12  # of 6 parts two processes would have one more
    with pytest.raises(ConfigError, match=r"batch_size is 16: 3 processes .* a multiple of 3"):
        parts_of_batch(16, 1, 3, even=True)


def test_more_processes_than_images_are_refused():
    with pytest.raises(ConfigError, match=r"batch_size is 4: 8 processes .* at least 8, or fewer"):
        parts_of_batch(4, 1, 8)


@pytest.mark.parametrize(("count", "parts"), [(1, 1), (3, 3), (2, 6), (4, 6)])
def test_the_processes_shares_together_are_the_whole(count, parts):
    shares = [
        Processes(rank=rank, count=count).share(range(2, 5), 6, parts) for rank in range(count)
    ]
    samples = [list(part) for share in shares for part in share]
    assert sorted(chain.from_iterable(samples)) == list(range(12, 30))
    assert {len(part) for part in samples} == {6 // parts}
    # of each batch the parts are dealt out in turn, so that the first process has the first one
    assert shares[0][0] == range(12, 12 + 6 // parts)
    if (count, parts) == (4, 6):
        assert [len(share) for share in shares] == [6, 6, 3, 3]
        assert shares[1][:3] == [range(13, 14), range(17, 18), range(19, 20)]


def torchrun(processes: int) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, f"--nproc-per-node={processes}"]


ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")} | {
    "OMP_NUM_THREADS": "1"
}


def arguments(small_base: Path, photos: Path) -> list[str]:
    """Train Algorithm 1 for three steps of four images."""
    return (
        f"train mini --base {small_base} --photos {photos} --steps 3 --batch-size 4 "
        "--crop 32 --perceptual-weight 0 --grid-weight 0 --atm-weight 1 --rank 2 "
        "--alpha 2 --procedural 0 --workers 0 --no-compile --precision float32 --device cpu "
        "--t-star-pairs 4 --log-every 1 --checkpoint-every 2 --validate-every 0 --tracker none"
    ).split()


def logged(output: Path) -> list[dict[str, float]]:
    """What a run logged of each step, but time and memory."""
    lines = [json.loads(line) for line in (output / "log.jsonl").open()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "memory")} for line in lines]


def run(
    command: Sequence[str], small_base: Path, photos: Path, output: Path, *options: str
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Train with `command`, which starts Python; returns the adapters and what was logged of each step."""
    own = ["--output", str(output), "--accumulation", "2", *options]
    done = subprocess.run(
        [*command, "-m", "allosr2", *arguments(small_base, photos), *own],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(output / "model")]
    assert done.stderr.count("t* =") == 1
    adapters = load_file(output / "model" / "pytorch_lora_weights.safetensors")
    assert any(bool(adapters[key].any()) for key in adapters if ".lora_B." in key)
    return adapters, logged(output)


@pytest.fixture(scope="module")
def one(small_base, photos, tmp_path_factory):
    """What one process trains."""
    return run([sys.executable], small_base, photos, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("options", [[], ["--shard-base"]], ids=["whole", "sharded"])
def test_two_processes_are_one_to_the_last_bit(one, small_base, photos, tmp_path, options):
    """With adapters and all, and with the base's weights shared out among them."""
    adapters, lines = run(torchrun(2), small_base, photos, tmp_path, *options)
    expected, expected_lines = one
    assert adapters.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(adapters[key], expected[key])] == []
    assert lines == expected_lines
    assert len(lines) == 3


def test_one_process_that_accumulates_is_two_that_do_and_four_that_do_not(
    small_base, photos, tmp_path
):
    script = str(Path(__file__).with_name("forked.py"))
    own = [*arguments(small_base, photos), "--accumulation", "4"]
    done = subprocess.run(
        [sys.executable, script, "1,2,4", str(tmp_path), *own],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    one, *others = (logged(tmp_path / count) for count in "124")
    assert len(one) == 3
    for curve in others:
        for line, expected in zip(curve, one, strict=True):
            assert line == pytest.approx(expected, rel=1e-5)


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


def test_what_the_first_process_has_is_what_all_have(tmp_path):
    """Weights of any layout in memory, and numbers; both processes begin with others."""
    script = tmp_path / "two.py"
    script.write_text(
        """
import torch
from allosr2.training.distributed import join, leave
processes, device = join("cpu")
weights = [torch.full((5, 3, 3, 3), float(processes.rank)).to(memory_format=torch.channels_last)]
weights.append(torch.arange(4.0) + processes.rank)
processes.copy_from_first_(weights)
assert not weights[0].any() and torch.equal(weights[1], torch.arange(4.0))
assert processes.from_first(7 + processes.rank, device) == 7
grown = [torch.full((2, 2), 1.0 + processes.rank), torch.tensor(10.0 * processes.rank)]
processes.sum_(grown)
assert torch.equal(grown[0], torch.full((2, 2), 3.0)) and grown[1] == 10
leave()
"""
    )
    done = subprocess.run([*torchrun(2), str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
