"""`allosr2 train RECIPE --dry-run`: what it prints, when it refuses. Plans have tests of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from allosr2.cli import main


@pytest.fixture(autouse=True)
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without photographs, weights or runs, no network, no GPU, and no torchvision."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in ("training.step", "training.loop", "training.allosr2", "losses.perceptual"):
        monkeypatch.delitem(sys.modules, f"allosr2.{name}", raising=False)
    return tmp_path


def test_a_plan_has_parameters_memory_and_flops(nothing_here: Path, capsys) -> None:
    assert main(["train", "mini", "--dry-run"]) == 0
    streams = capsys.readouterr()
    rows = [line.split("│")[1:-1] for line in streams.out.splitlines() if line.startswith("│")]
    found = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert found["parameters, transformer"] == ["4,206,480"]
    # a 3x3 convolution from 128 to 64 channels and one of 1x1 back, in each of twelve blocks
    assert found["blocks.conv1"] == [f"{12 * 64 * (9 * 128 + 128):,}"]
    assert found["tokens of a step"] == ["8,192 in 8 sequences"]  # four images, two sequences each
    assert found["AdamW"][0].endswith(" GB")
    assert found["backward: transformer"][0].endswith(" TFLOP")
    assert "fits in 80.00 GB (an A100" in streams.out.splitlines()[-1]
    assert streams.err == ""
    assert not any(nothing_here.iterdir())


def test_options_of_the_recipe_count(capsys) -> None:
    assert main(["train", "mini", "--crop", "128", "--dry-run", "--rank", "8"]) == 0
    out = capsys.readouterr().out
    assert "trainable, rank 8" in out
    assert "2,048 in 8 sequences" in out


def test_a_run_that_does_not_fit_is_told_what_helps(capsys) -> None:
    command = ["train", "mini", "--perceptual", "lpips.safetensors", "--batch-size", "4"]
    assert main([*command, "--dry-run", "--fits", "2 GB"]) == 0
    verdict, *lines = capsys.readouterr().out.splitlines()[-7:]
    assert verdict.endswith("does not fit in 2.00 GB (as asked)")
    remedies = dict(line.strip().split(": ") for line in lines)
    *single, every = remedies
    assert single == [
        "--gradient-checkpointing",
        "--perceptual-crop 128",
        "--accumulation 4",
        "--base-precision nf4",
        "--optimizer adamw-8bit",
    ]
    assert every == " ".join(single)
    assert remedies["--base-precision nf4"].endswith("not enough")
    assert remedies[every].endswith(" fits")


def test_a_run_without_lpips_says_so(capsys) -> None:
    words = "without LPIPS"
    assert main(["train", "mini", "--dry-run"]) == 0
    assert words in capsys.readouterr().out
    assert main(["train", "mini", "--dry-run", "--perceptual-weight", "0"]) == 0
    assert words not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("size", "verdict"), [("1.7GB", "does not fit in 1.70 GB"), ("1.7GiB", "GB fits in 1.83 GB")]
)
def test_sizes_have_two_units(size: str, verdict: str, capsys) -> None:
    # 1.8 GB
    command = ["train", "mini", "--perceptual-crop", "None", "--dry-run", "--fits", size]
    assert main(command) == 0
    assert verdict in capsys.readouterr().out


def test_the_run_s_own_gpu_is_measured(capsys, monkeypatch) -> None:
    class Properties:
        total_memory = 25_000_000_000
        name = "NVIDIA GeForce RTX 4090"

    asked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties", lambda index: asked.append(index) or Properties
    )
    assert main(["train", "mini", "--dry-run", "--device", "cuda:1"]) == 0
    assert "fits in 25.00 GB (NVIDIA GeForce RTX 4090)" in capsys.readouterr().out
    assert asked == [1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["mini-codec", "--dry-run"], 2, "recipe is mini-codec: --dry-run knows recipes"),
        (["mini-flow", "--dry-run"], 2, "recipe is mini-flow: --dry-run knows recipes"),
        (["mini", "--fits", "24GB"], 2, "fits is 24GB: it belongs to --dry-run"),
        (["mini", "--dry-run", "--fits", "much"], 2, "fits is much: write a size such as 24GB"),
        (["mini", "--dry-run", "--base", "user/base"], 4, "user/base: no folder here"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, words: str, capsys) -> None:
    assert main(["train", *arguments]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    line = streams.err.splitlines()[-1]
    assert line.startswith("allosr2: error: ")
    assert words in line
