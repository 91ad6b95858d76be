"""`allosr2 diagnose` on a tiny model: its numbers against the model used by hand, its files, its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.cli import main
from allosr2.imaging.quality import psnr_y
from allosr2.model import AlloSR2, load_frozen_codec

PLOTS = ("straightness.png", "steps.png", "t_star.png", "snr.png")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    rng = np.random.default_rng(0)
    for part, size in (("lr", (9, 12, 3)), ("hr", (36, 48, 3))):
        (folder / part).mkdir(parents=True)
        for name in ("a.png", "b.png", "c.png", "d.png"):
            levels = rng.integers(96, 160, size, dtype=np.uint8)
            Image.fromarray(levels).save(folder / part / name)
    return folder


def test_numbers_plots_and_table(pairs: Path, tiny_model: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "new" / "diagnosis"
    arguments = ["diagnose", "--model", str(tiny_model), "--pairs", str(pairs), "--device", "cpu"]
    assert main([*arguments, "--output", str(output), "--limit", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [str(output / name) for name in (*PLOTS, "diagnosis.json")]
    assert {path.name for path in output.iterdir()} == {*PLOTS, "diagnosis.json"}
    fields = json.loads((output / "diagnosis.json").read_text())
    assert list(fields["pairs"]) == ["b", "d"]  # spread evenly
    assert fields["model"]["preset"] == "mild"
    assert len(fields["model"]["fingerprint"]) == 16
    assert fields["versions"].keys() == {"allosr2", "torch", "diffusers"}
    assert fields["t_star"]["of_the_model"] == 0.4

    model, frozen = AlloSR2.from_pretrained(tiny_model), load_frozen_codec(tiny_model)
    small = torch.from_numpy(np.array(Image.open(pairs / "lr" / "d.png"))) / 255
    hr = torch.from_numpy(np.array(Image.open(pairs / "hr" / "d.png"))) / 255
    lr = torch.nn.functional.interpolate(
        small.permute(2, 0, 1)[None], scale_factor=4, mode="bicubic", antialias=True
    )[..., :32, :]
    hr = hr.permute(2, 0, 1)[None, :, :32]
    with torch.no_grad():
        sr, z_lr, z_hr = model(lr), model.codec.encode(lr), frozen.encode(hr)
        error = (model.one_step(z_lr) - z_hr).square().mean().sqrt()
        sigma = (frozen.encode(lr) - z_hr).square().mean().sqrt()
    found = fields["pairs"]["d"]
    assert found["psnr_y"]["1"] == pytest.approx(float(psnr_y(sr, hr)), abs=0.01)
    assert found["error"]["1"] == pytest.approx(float(error), rel=1e-3)
    assert found["error_at"][4] == found["error"]["1"]
    assert found["t_frozen"] == pytest.approx(float(sigma / (1 + sigma)), rel=1e-3)

    (row,) = (line for line in lines if line.startswith("│ PSNR-Y"))
    shown = [float(cell) for cell in row.split("│")[2:7]]
    assert shown == pytest.approx(list(fields["means"]["psnr_y"].values()), abs=0.006)


def test_errors_are_one_line_and_leave_nothing(
    pairs: Path, tiny_model: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "output"

    def refused(code: int, folder: Path = pairs, *options: str) -> str:
        arguments = ["diagnose", "--model", str(tiny_model), "--pairs", str(folder)]
        arguments += ["--output", str(output), "--device", "cpu", *options]
        assert main(arguments) == code
        streams = capsys.readouterr()
        (line,) = streams.err.splitlines()
        assert streams.out == ""
        assert not output.is_dir()
        return line

    assert "no folder lr in it" in refused(5, tmp_path / "absent")
    assert "limit is 0: use 1 or more" in refused(2, pairs, "--limit", "0")
    assert "nobody" in refused(4, pairs, "--model", str(tmp_path / "nobody"))
    for part, size in (("lr", (12, 9)), ("hr", (48, 36))):  # of one color: equal latents
        Image.new("RGB", size).save(pairs / part / "a.png")
    line = refused(5)
    assert "hr/a.png: " in line
    assert "equal or non-finite LR and HR latents; remove the pair" in line
    Image.new("RGB", (40, 36)).save(pairs / "hr" / "b.png")
    assert "hr/b.png is 40 x 36 px, no whole multiple of its LR image's 12 x 9" in refused(5)
    output.write_text("mine")
    assert f"output is {output}: {output} is no folder that can be written in" in refused(2)
    assert output.read_text() == "mine"


def test_what_it_needs_is_named(pairs: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["diagnose", "--pairs", str(pairs), "--output", str(tmp_path / "output")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'allosr2[eval]'" in line
    assert not (tmp_path / "output").exists()
