"""`allosr2 ablate`: flags to settings, errors in one line, interruption. Training in turn has its own tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.cli import main
from allosr2.imaging.io import image_from_any, read_rgb
from allosr2.imaging.quality import psnr_y, ssim_y
from allosr2.training.recipes import flux_dev_x4, mini


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for part, size in (("lr", (8, 8)), ("hr", (32, 32))):
        (tmp_path / "pairs" / part).mkdir(parents=True)
        Image.new("RGB", size).save(tmp_path / "pairs" / part / "a.png")
    return tmp_path / "pairs"


@pytest.fixture
def asked(monkeypatch):
    """The configs that the loop is started with; it is interrupted at once."""
    configs = []

    def run(config, report, **_):
        configs.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("allosr2.training.loop.train", run)
    return configs


def test_recipes_options_and_interruption(pairs: Path, asked, capsys) -> None:
    arguments = ["--pairs", str(pairs), "--metrics", "psnr"]
    assert main(["ablate", "mini", *arguments]) == 130
    streams = capsys.readouterr()
    assert streams.err.splitlines() == ["allosr2: stopped; run the same command again to go on"]
    assert streams.out == ""
    (full,) = asked
    assert full.run.output == Path("runs/mini-ablation/full")
    assert full.run.recipe == "mini-full"
    assert (full.loss.fatc_weight, full.loss.atm_weight) == (1, 1)
    assert full.images == mini().images
    options = ["--settings", "all", "--steps", "7", "--rank", "8", "--output", "elsewhere"]
    assert main(["ablate", "flux-dev-x4", *arguments, *options]) == 130
    config = asked[-1]
    assert (config.run.steps, config.adapter.rank) == (7, 8)
    assert config.run.output == Path("elsewhere/full")
    assert config.loss == flux_dev_x4().loss


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (
            ["--settings", "without-fact"],
            2,
            "settings has without-fact, which is none: use without",
        ),
        (["--scale", "2"], 5, "HR images are x4 of their LR images, the model is of x2"),
        (["--metrics", "psrn"], 2, "metric psrn is unknown: did you mean psnr"),
        (["--t-star", "1.5"], 2, "t_star is 1.5"),
        (
            ["--metrics", "ssim", "grid-8"],
            3,
            "a.png, enlarged by 4, is 32 x 32 px, grid 8 px needs",
        ),
        (["--pairs", "/no/pairs"], 5, "/no/pairs: no folder lr in it"),
    ],
)
def test_errors_are_one_line_before_anything_is_trained(
    pairs: Path, asked, capsys, options: list[str], code: int, words: str
) -> None:
    assert main(["ablate", "mini", "--pairs", str(pairs), *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("allosr2: error: ")
    assert words in line
    assert asked == []


def test_several_processes_are_refused(pairs: Path, asked, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["ablate", "mini", "--pairs", str(pairs)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "WORLD_SIZE is 2: settings are trained one after the other by one process" in line
    assert asked == []


def test_only_whole_recipes_of_the_method(capsys) -> None:
    for name in ("mini-codec", "flux-dev-x4-without-atm"):
        with pytest.raises(SystemExit):
            main(["ablate", name, "--pairs", "pairs"])
        assert name in capsys.readouterr().err


def test_settings_are_trained_measured_and_written(
    tiny_base: Path, pairs: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    pairs = pairs.rename(tmp_path / "realsr")
    photos, output = tmp_path / "photos", tmp_path / "ablation"
    photos.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(levels).save(photos / "a.png")
    options = {
        "pairs": pairs,
        "photos": photos,
        "output": output,
        "base": tiny_base,
        "base-precision": "float32",
        "precision": "float32",
        "conditioning": "None",
        "perceptual": "None",
        "crop": 32,
        "workers": 0,
        "steps": 1,
        "batch-size": 1,
        "accumulation": 1,
        "rank": 2,
        "t-star-pairs": 2,
        "tracker": "none",
        "validate-every": 0,
        "device": "cpu",
    }
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    arguments += ["--no-gradient-checkpointing", "--settings", "reference-frozen", "without-atm"]
    arguments += ["--metrics", "psnr", "ssim"]
    names = ["full", "reference-frozen", "without-atm"]
    results = [output / name / "results" / "a.png" for name in names]
    written: list[int] = []
    for _ in range(2):
        assert main(["ablate", "flux-dev-x4", *arguments]) == 0
        lines = capsys.readouterr().out.splitlines()
        files = [str(output / name) for name in ("table.md", "table.tex", "ablation.json")]
        assert lines[-3:] == files
        assert "\n".join(lines).startswith((output / "table.md").read_text().rstrip())
        written += [path.stat().st_mtime_ns for path in results]
        monkeypatch.setattr("allosr2.training.loop.train", None)  # it is not needed again
    assert written[:3] == written[3:]
    fields = json.loads((output / "ablation.json").read_text())
    assert list(fields["settings"]) == names
    assert fields["settings"]["without-atm"]["differs"] == {"loss.atm_weight": 0.0}
    hr = image_from_any(read_rgb(pairs / "hr" / "a.png"))
    for name, path in zip(fields["settings"], results, strict=True):
        sr = image_from_any(read_rgb(path))
        means = fields["settings"][name]["means"]
        assert means["psnr"] == pytest.approx(psnr_y(sr, hr).item(), abs=1e-4)
        assert means["ssim"] == pytest.approx(ssim_y(sr, hr).item(), abs=1e-5)
    table = (output / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:5]]
    # as in Table 2, though the full method comes first when settings are trained
    assert rows == [
        ["realsr, not as published", "w/o ATM"],
        ["", "Full"],
        ["", "reference-frozen"],
    ]
    latex = (output / "table.tex").read_text()
    assert latex.index("w/o ATM") < latex.index("Full") < latex.index("reference-frozen")
