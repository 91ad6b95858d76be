"""Trackers: what TensorBoard's own reader finds, what the others are told, and what failures come to."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from allosr2.errors import ConfigError
from allosr2.training.config import CodecTraining, WatchConfig
from allosr2.training.tracking import no_tracker, open_tracker, require_tracker

Configured = Callable[..., CodecTraining]


@pytest.fixture
def configured(parts: Callable[..., dict[str, Any]], tmp_path: Path) -> Configured:
    def build(tracker: str, output: Path = tmp_path / "run") -> CodecTraining:
        return CodecTraining(**parts(output) | {"watch": WatchConfig(tracker=tracker)})

    return build


def events(folder: Path):
    """TensorBoard's own reader of a folder of event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return accumulator


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_tensorboard_has_numbers_pictures_and_the_config(configured, tmp_path):
    config = configured("tensorboard")
    tracker = open_tracker(config, step=0)
    for step in (1, 2, 3):
        tracker.numbers({"loss/total": 0.5 * step, "run/memory": 7.0}, step)
    tracker.picture("validation/sheet", picture(20, 30), 3)
    tracker.close()
    found = events(tmp_path / "run")
    assert scalars(tmp_path / "run", "loss/total") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert set(found.Tags()["scalars"]) == {"loss/total", "run/memory"}
    image = found.Images("validation/sheet")[0]
    assert (image.step, image.width, image.height) == (3, 30, 20)
    assert image.encoded_image_string.startswith(b"\x89PNG")
    text = found.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| run.seed | `3` |" in text
    assert "| watch.tracker | `tensorboard` |" in text


def test_numbers_are_on_the_disk_at_once(configured, tmp_path):
    tracker = open_tracker(configured("tensorboard"), step=0)
    tracker.numbers({"a": 2.0}, 1)
    assert scalars(tmp_path / "run", "a") == [(1, 2.0)]  # read before anything is closed
    tracker.close()


@pytest.mark.parametrize(("resumed", "expected"), [(2, [1, 2, 30, 40]), (0, [30, 40])])
def test_steps_that_come_again_are_seen_once(configured, tmp_path, resumed, expected):
    config = configured("tensorboard")
    killed = open_tracker(config, step=0)
    for step in (1, 2, 3):
        killed.numbers({"a": step}, step)
    goes_on = open_tracker(config, step=resumed)
    for step in (3, 4):
        goes_on.numbers({"a": 10 * step}, step)
    goes_on.close()
    assert [value for _, value in scalars(tmp_path / "run", "a")] == expected


def test_opening_draws_no_random_number(configured):
    before = torch.get_rng_state()
    tracker = open_tracker(configured("tensorboard"), step=0)
    tracker.picture("sheet", picture(8, 8), 0)
    tracker.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_tensorboard_says_nothing(configured, tmp_path):
    """In a process of its own, where its packages are imported for the first time."""
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace\n"
        "from allosr2.training.recipes import mini_flow\n"
        "from allosr2.training.tracking import open_tracker\n"
        "config = mini_flow(); config = replace(config, run=replace(config.run, output=Path(sys.argv[1])))\n"
        "tracker = open_tracker(config, step=0); tracker.numbers({'a': 1.0}, 1); tracker.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "tensorboard" in line.lower()] == []
    assert scalars(tmp_path, "a") == [(1, 1.0)]


@pytest.mark.parametrize("tracker", [no_tracker, None], ids=["no_tracker", "none"])
def test_none_writes_nothing(configured, tmp_path, tracker):
    told = tracker() if tracker else open_tracker(configured("none"), step=0)
    told.numbers({"a": 1.0}, 1)
    told.picture("sheet", picture(8, 8), 1)
    told.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tracker", "package", "extra"),
    [
        ("tensorboard", "torch.utils.tensorboard", "train"),
        ("wandb", "wandb", "trackers"),
        ("trackio", "trackio", "trackers"),
    ],
)
def test_a_missing_package_is_named(configured, monkeypatch, tracker, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as caught:
        open_tracker(configured(tracker), step=0)
    assert str(caught.value) == (
        f"tracker is {tracker}: it needs pip install 'allosr2[{extra}]'; or use --tracker none"
    )


def test_a_tracker_that_cannot_start_is_refused(configured, monkeypatch):
    def init(**_: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    with pytest.raises(ConfigError) as caught:
        open_tracker(configured("wandb"), step=0)
    assert str(caught.value) == (
        "tracker is wandb: it cannot start (No API key configured. Use `wandb login` to log in.); "
        "put that right, or use --tracker none"
    )


def test_before_anything_is_loaded_it_is_asked_for(configured, monkeypatch, tmp_path):
    for tracker in ("tensorboard", "none"):
        require_tracker(configured(tracker))
    for tracker, extra in (("tensorboard", "train"), ("wandb", "trackers")):
        monkeypatch.setitem(sys.modules, tracker, None)
        with pytest.raises(ConfigError) as caught:
            require_tracker(configured(tracker))
        assert str(caught.value) == (
            f"tracker is {tracker}: it needs pip install 'allosr2[{extra}]'; or use --tracker none"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_folder_that_cannot_be_written_is_said_in_one_line(
    configured, monkeypatch, tmp_path, name
):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandB(0))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / {"tensorboard": name, "wandb": "tracker_id"}[name]).mkdir()
    if name == "tensorboard":
        (tmp_path / "run" / name).rmdir()
        (tmp_path / "run" / name).touch()
    with pytest.raises(ConfigError, match=f"tracker is {name}: it cannot start") as caught:
        open_tracker(configured(name), step=0)
    assert "\n" not in str(caught.value)


def test_one_that_fails_later_is_warned_of_once_and_left(tmp_path):
    """A disk that is full: in a process of its own, as files of others must grow."""
    pytest.importorskip("resource")
    script = (
        "import logging, resource, sys; from dataclasses import replace; from pathlib import Path\n"
        "import numpy as np\n"
        "from allosr2.training.recipes import mini_flow\n"
        "from allosr2.training.tracking import open_tracker\n"
        "logging.basicConfig(format='%(message)s')\n"
        "config = mini_flow(); config = replace(config, run=replace(config.run, output=Path(sys.argv[1])))\n"
        "tracker = open_tracker(config, step=0); tracker.numbers({'a': 1.0}, 1)\n"
        "noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "for step in (2, 3): tracker.picture('sheet', noise, step); tracker.numbers({'a': 1.0}, step)\n"
        "tracker.close()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == [
        "tensorboard failed ([Errno 27] File too large); training goes on without"
    ]
    assert scalars(tmp_path, "a") == [(1, 1.0)]


def test_ctrl_c_is_no_failure_of_a_tracker(configured, monkeypatch):
    from torch.utils.tensorboard import RecordWriter

    def interrupted(*_):
        raise KeyboardInterrupt

    tracker = open_tracker(configured("tensorboard"), step=0)
    monkeypatch.setattr(RecordWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tracker.numbers({"a": 1.0}, 1)
    tracker.close()


class FakeWandB:
    """What of wandb is used; `starting_step` is where the server says that the run goes on."""

    def __init__(self, starting_step: int) -> None:
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.finished = False
        self.starting_step = starting_step

    def Settings(self, **fields: Any) -> dict[str, Any]:  # noqa: N802
        return fields

    def Image(self, array: np.ndarray) -> tuple[str, tuple[int, ...]]:  # noqa: N802
        return ("image", array.shape)

    def init(self, **fields: Any) -> FakeWandB:
        self.started = fields
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


def test_wandb_goes_on_with_the_run_of_the_output_folder(configured, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    runs = []
    for step, starting_step in ((0, 0), (2, 4), (0, 0)):
        wandb = FakeWandB(starting_step)
        monkeypatch.setitem(sys.modules, "wandb", wandb)
        tracker = open_tracker(configured("wandb"), step=step)
        tracker.numbers({"a": 1.0}, step + 1)
        tracker.picture("sheet", picture(8, 9), step + 2)
        tracker.close()
        runs.append(wandb)
    first, resumed, anew = runs
    assert first.started["id"] == resumed.started["id"] != anew.started["id"]
    assert len(first.started["id"]) == 8
    assert [run.started["resume"] for run in runs] == ["allow"] * 3
    assert first.started["dir"] == tmp_path / "run"
    assert (first.started["project"], first.started["name"]) == ("allosr2", "run")
    assert first.started["config"]["run.seed"] == 3
    assert first.logged == [({"a": 1.0}, 1), ({"sheet": ("image", (8, 9, 3))}, 2)]
    assert resumed.logged == [({"sheet": ("image", (8, 9, 3))}, 4)]  # step 3 is there already
    assert all(run.finished for run in runs)


def test_wandb_s_own_project_setting_holds(configured, monkeypatch):
    wandb = FakeWandB(0)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    open_tracker(configured("wandb"), step=0)
    assert wandb.started["project"] == "elsewhere"


class FakeTrackio:
    """What of trackio is used; it writes to stdout, as the real one does."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, Any], int]] = []

    def Image(self, array: np.ndarray) -> tuple[int, ...]:  # noqa: N802
        return array.shape

    def init(self, **fields: Any) -> None:
        sys.stdout.write("* project initialized\n")
        self.started.append(fields)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        sys.stdout.write("* finished\n")


def test_trackio_goes_on_under_the_same_name_and_leaves_stdout_alone(
    configured, monkeypatch, capsys
):
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for step in (0, 2):
        tracker = open_tracker(configured("trackio"), step=step)
        tracker.numbers({"a": 0.5}, step + 1)
        tracker.picture("sheet", picture(8, 9), step + 1)
        tracker.close()
    first, resumed = trackio.started
    assert first["name"] == resumed["name"]
    assert first["name"].startswith("run-")
    assert first["resume"] == resumed["resume"] == "allow"
    assert trackio.logged == [
        *[({"a": 0.5}, 1), ({"sheet": (8, 9, 3)}, 1)],
        *[({"a": 0.5}, 3), ({"sheet": (8, 9, 3)}, 3)],
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("*") == 4


def test_another_output_folder_is_another_run(configured, monkeypatch, tmp_path):
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    for name in ("a", "b"):
        config = configured("trackio")
        run = dataclasses.replace(config.run, output=tmp_path / name / "run")
        open_tracker(dataclasses.replace(config, run=run), step=0)
    assert trackio.started[0]["name"] != trackio.started[1]["name"]
