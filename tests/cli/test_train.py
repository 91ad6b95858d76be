"""`allosr2 train`: flags to configs, errors in one line, interruption. The loop has its own tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from allosr2.cli import main
from allosr2.cli.train import STARTED, bar_text
from allosr2.training.config import AlloSR2Training, CodecTraining, FlowTraining
from allosr2.training.interrupts import TimeIsUp
from allosr2.training.log import Status


@pytest.fixture
def started(monkeypatch):
    """The configs that the loop is started with; it reports two steps and exports nothing."""
    configs = []

    def run(config, report, started):
        configs.append(config)
        for step in (41, 42):
            report(
                Status(
                    step=step,
                    steps=42,
                    learning_rate=1e-3,
                    gradient_norm=1.0,
                    terms={"total": 0.5, "fatc": 0.25},
                )
            )
        return config.run.output / "model"

    monkeypatch.setattr("allosr2.training.loop.train", run)
    return configs


def test_a_recipe_as_it_is(started, capsys):
    from allosr2.training.recipes import recipes

    for name, kind in [
        ("mini-codec", CodecTraining),
        ("mini-flow", FlowTraining),
        ("mini", AlloSR2Training),
    ]:
        assert main(["train", name]) == 0
        assert isinstance(started[-1], kind)
        assert started[-1] == recipes()[name]()
        assert capsys.readouterr().out.strip() == str(started[-1].run.output / "model")


def test_overrides_of_every_part(started, tmp_path):
    arguments = ["--photos", "photographs", "--steps", "200", "--output", str(tmp_path / "run")]
    arguments += ["--perceptual", "lpips.st", "--learning-rate", "1e-4", "--atm-weight", "0.5"]
    arguments += ["--rank", "8", "--t-star", "0.3", "--no-compile"]
    assert main(["train", "mini", *arguments]) == 0
    (config,) = started
    assert config.images.photos == ("photographs",)
    assert config.run.steps == 200
    assert config.run.output == tmp_path / "run"
    assert config.run.compile is False
    assert config.perceptual.perceptual == Path("lpips.st")
    assert config.optimization.learning_rate == 1e-4
    assert config.loss.atm_weight == 0.5
    assert config.adapter.rank == 8
    assert config.t_star == 0.3


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--procedural", "3"], 2, "procedural is 3.0: use a fraction in [0, 1]"),
        (["--batch-size", "3", "--accumulation", "2"], 2, "accumulation is 2"),
        (["--minutes", "0"], 2, "minutes is 0.0: use a number above 0"),
        (["--t-star", "1.5"], 2, "t_star is 1.5"),
        (["--device", "warp"], 2, "device is warp"),
        (["--photos", "/no/photographs", "--device", "cpu"], 5, "/no/photographs: no such folder"),
    ],
)
def test_errors_are_one_line(arguments, code, word, capsys, tmp_path):
    assert main(["train", "mini", "--output", str(tmp_path / "run"), *arguments]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert line.startswith("allosr2: error: ")
    assert word in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("begun", [True, False])
def test_interruption_says_how_to_go_on(capsys, monkeypatch, tmp_path, begun):
    checkpoints = tmp_path / "run" / "checkpoints"

    def run(config, report, started):
        if begun:
            (checkpoints / "step_00000001").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("allosr2.training.loop.train", run)
    assert main(["train", "mini", "--output", str(tmp_path / "run")]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    if begun:
        assert line.endswith(f"run the same command again to resume from {checkpoints}")
    else:
        assert line == "allosr2: stopped; no step was saved yet"


def test_a_run_that_stops_for_time_says_so(capsys, monkeypatch, tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"

    def run(config, report, started):
        assert config.run.minutes == 9.5
        assert started == STARTED
        (checkpoints / "step_00000001").mkdir(parents=True)
        raise TimeIsUp

    monkeypatch.setattr("allosr2.training.loop.train", run)
    output = ["--output", str(tmp_path / "run")]
    assert main(["train", "mini", "--minutes", "9.5", *output]) == 0
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == (
        "allosr2: stopped, as 9.5 minutes are over; run the same command again to resume from "
        f"{checkpoints}\n"
    )


def test_being_terminated_is_an_interruption(capsys, monkeypatch, tmp_path):
    former = signal.getsignal(signal.SIGTERM)

    def run(config, report, started):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("allosr2.training.loop.train", run)
    assert main(["train", "mini", "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.startswith("allosr2: stopped; ")
    assert signal.getsignal(signal.SIGTERM) is former


def test_the_bar_has_speed_memory_and_the_losses():
    status = Status(
        step=1,
        steps=9,
        learning_rate=1e-3,
        gradient_norm=1.0,
        memory=3_210_000_000,
        terms={"reconstruction": 0.25, "total": 0.5, "fatc": 0.125, "atm": 1.0, "atm_cosine": 0.9},
    )
    line = "0.50 it/s  3.2 GB  total 0.5  reconstruction 0.25  fatc 0.125  atm 1"
    assert bar_text(status, 0.5) == line
    assert bar_text(status, None) == line.removeprefix("0.50 it/s  ")


def test_what_training_needs_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["train", "mini", "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("training needs torchvision: pip install 'allosr2[train]'")


@pytest.mark.parametrize("name", ["run", "run/below"])
def test_an_output_that_is_a_file_is_refused_before_anything_is_read(capsys, tmp_path, name):
    (tmp_path / "run").write_text("mine")
    arguments = ["--photos", str(tmp_path / "no photographs"), "--device", "cpu"]
    assert main(["train", "mini-codec", "--output", str(tmp_path / name), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"output is {tmp_path / name}: {tmp_path / 'run'} is no folder" in line
    assert "choose another" in line
    assert (tmp_path / "run").read_text() == "mine"
