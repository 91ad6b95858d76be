"""The loop on a stage of four numbers, where every result can be computed by hand."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from allosr2.data.pairs import Batch
from allosr2.errors import AlloSR2Error, ConfigError, DataError, ModelError
from allosr2.training import interrupts, loop, plan, state
from allosr2.training.config import CodecTraining
from allosr2.training.distributed import Processes
from allosr2.training.log import Status, append
from allosr2.training.loop import train
from allosr2.training.noise import normal, sample_generators, uniform
from allosr2.training.state import TrainingState

Parts = Callable[..., dict[str, Any]]


class FourNumbers:
    """Fits a noisy mean color; `broken` steps have a gradient that is not finite."""

    degradation = None
    scale = 1
    fingerprint = "as it was"

    def __init__(self, broken: Sequence[int] = (), size: int = 4) -> None:
        self.module = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.module.weight)
        self.constants: dict[str, float] = {}
        self.broken = broken
        self.calls = 0

    def losses(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        color = batch.hr.mean((2, 3))  # b 3
        features = torch.cat([color, torch.ones(len(color), 1)], 1)
        loss = (self.module(features)[:, 0] - 1 - 0.1 * normal(generators, ())).square().mean()
        if self.calls in self.broken:
            loss = loss * torch.inf
        self.calls += 1
        return {"fit": loss, "total": loss}

    def export(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        torch.save(self.module.weight.detach().clone(), folder / "weight.pt")
        return folder


@pytest.fixture
def use_stage(monkeypatch: pytest.MonkeyPatch) -> Callable[[FourNumbers], FourNumbers]:
    def use(stage: FourNumbers) -> FourNumbers:
        monkeypatch.setattr(loop, "build_stage", lambda *_: stage)
        return stage

    return use


@pytest.fixture
def config(parts: Parts, tmp_path: Path) -> CodecTraining:
    return CodecTraining(**parts(tmp_path / "run", steps=8))


Use = Callable[[FourNumbers], FourNumbers]


def change(config: CodecTraining, **run: Any) -> CodecTraining:
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **run))


def log_of(config: CodecTraining) -> list[dict[str, Any]]:
    lines = (config.run.output / "log.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "memory")}
        for line in lines
    ]


def final_state(config: CodecTraining) -> dict[str, Tensor]:
    folder = config.run.output / "checkpoints" / f"step_{config.run.steps:08d}"
    return {
        f"{name}/{key}": tensor
        for name in ("weights", "average", "optimizer")
        for key, tensor in load_file(folder / f"{name}.safetensors").items()
    }


class Killed(BaseException):
    """Stands for a kill, after which nothing is done any more."""


class Stop:
    """Raises at a step, as a user or a machine would."""

    def __init__(self, step: int, error: type[BaseException]) -> None:
        self.step, self.error = step, error

    def __call__(self, status: Status) -> None:
        if status.step == self.step:
            raise self.error


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("error", "checkpoint_every", "resumed_from"),
    [(KeyboardInterrupt, 100, 5), (OSError, 100, 5), (Killed, 2, 4), (Killed, 100, 0)],
)
def test_a_stopped_run_ends_as_one_that_was_not(
    config: CodecTraining,
    use_stage: Use,
    tmp_path: Path,
    error: type[BaseException],
    checkpoint_every: int,
    resumed_from: int,
    accumulation: int,
) -> None:
    config = change(config, accumulation=accumulation, checkpoint_every=checkpoint_every)
    straight = change(config, output=tmp_path / "straight")
    use_stage(FourNumbers())
    train(straight)

    use_stage(FourNumbers())
    with pytest.raises(error):
        train(config, Stop(5, error))
    assert [line["step"] for line in log_of(config)] == [1, 2, 3, 4, 5]
    done: list[int] = []
    use_stage(FourNumbers())
    model = train(config, lambda status: done.append(status.step))

    assert done == list(range(resumed_from + 1, 9))
    assert log_of(config) == log_of(straight)
    expected = final_state(straight)
    assert final_state(config).keys() == expected.keys()
    assert all(torch.equal(final_state(config)[key], expected[key]) for key in expected)
    assert torch.equal(
        torch.load(model / "weight.pt"), torch.load(straight.run.output / "model" / "weight.pt")
    )


def test_a_line_that_was_cut_short_is_written_again(
    config: CodecTraining, use_stage: Use, tmp_path: Path
) -> None:
    use_stage(FourNumbers())
    with pytest.raises(KeyboardInterrupt):
        train(config, Stop(3, KeyboardInterrupt))
    log = config.run.output / "log.jsonl"
    log.write_text(log.read_text()[:-9])
    use_stage(FourNumbers())
    train(config)
    # step 3 is done and its line lost; no line is broken, none is there twice
    assert [line["step"] for line in log_of(config)] == [1, 2, 4, 5, 6, 7, 8]


def test_a_finished_run_is_only_exported_again(config: CodecTraining, use_stage: Use) -> None:
    use_stage(FourNumbers())
    model = train(config)
    exported = torch.load(model / "weight.pt")
    (model / "weight.pt").unlink()
    model.rmdir()
    done: list[int] = []
    use_stage(FourNumbers())
    train(config, lambda status: done.append(status.step))
    assert done == []
    assert torch.equal(torch.load(model / "weight.pt"), exported)


def test_an_interrupt_amid_an_optimizer_step_saves_nothing(
    config: CodecTraining, use_stage: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_stage(FourNumbers())
    config = change(config, checkpoint_every=2)
    original, calls = torch.optim.AdamW.step, 0

    def step(self: torch.optim.AdamW) -> None:
        nonlocal calls
        calls += 1
        original(self)
        if calls == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    folder = config.run.output / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step_00000002"]


def test_accumulation_changes_nothing(
    config: CodecTraining, use_stage: Use, tmp_path: Path
) -> None:
    logs: list[list[dict[str, Any]]] = []
    weights: list[Tensor] = []
    for accumulation in (1, 2, 4):
        changed = change(
            config, batch_size=4, accumulation=accumulation, output=tmp_path / str(accumulation)
        )
        use_stage(FourNumbers())
        weights.append(torch.load(train(changed) / "weight.pt"))
        logs.append(log_of(changed))
    for other, weight in zip(logs[1:], weights[1:], strict=True):
        torch.testing.assert_close(weight, weights[0])
        for line, reference in zip(other, logs[0], strict=True):
            assert line == pytest.approx(reference, rel=1e-5)


def test_checkpoints_are_kept_as_asked(config: CodecTraining, use_stage: Use) -> None:
    use_stage(FourNumbers())
    train(change(config, checkpoint_every=2, keep_checkpoints=3))
    names = sorted(path.name for path in (config.run.output / "checkpoints").iterdir())
    assert names == ["step_00000004", "step_00000006", "step_00000008"]


def test_the_average_follows_the_weights(config: CodecTraining, use_stage: Use) -> None:
    stage = use_stage(FourNumbers())
    weights: list[np.ndarray] = []
    exported = torch.load(
        train(config, lambda _: weights.append(stage.module.weight.detach().numpy().copy()))
        / "weight.pt"
    )
    average = np.zeros((1, 4))
    for number, weight in enumerate(weights):
        decay = min(0.9, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * weight
    np.testing.assert_allclose(exported.numpy(), average, rtol=1e-6)
    # the weights themselves are back after the export
    np.testing.assert_array_equal(stage.module.weight.detach().numpy(), weights[-1])


def test_without_an_average_the_weights_are_exported(config: CodecTraining, use_stage: Use) -> None:
    optimization = dataclasses.replace(config.optimization, ema_decay=0.0)
    stage = use_stage(FourNumbers())
    model = train(dataclasses.replace(config, optimization=optimization))
    assert torch.equal(torch.load(model / "weight.pt"), stage.module.weight)
    assert not any(key.startswith("average/") for key in final_state(config))


def test_the_first_step_is_as_long_as_the_learning_rate(
    config: CodecTraining, use_stage: Use
) -> None:
    """Adam's first step is the gradient's sign times the learning rate, here half of its peak."""
    stage = use_stage(FourNumbers())
    statuses: list[Status] = []
    with pytest.raises(KeyboardInterrupt):
        train(config, lambda status: (statuses.append(status), Stop(1, KeyboardInterrupt)(status)))
    assert statuses[0].learning_rate == pytest.approx(5e-4)
    assert stage.module.weight.detach().numpy() == pytest.approx(np.full((1, 4), 5e-4), rel=1e-4)


def test_a_step_without_finite_gradient_is_skipped(
    config: CodecTraining, use_stage: Use, caplog: pytest.LogCaptureFixture
) -> None:
    stage = use_stage(FourNumbers(broken=(2, 3)))
    weights: list[Tensor] = []
    with caplog.at_level(logging.WARNING):
        train(config, lambda _: weights.append(stage.module.weight.detach().clone()))
    assert torch.equal(weights[1], weights[2])
    assert torch.equal(weights[1], weights[3])
    moved = [not torch.equal(a, b) for a, b in pairwise(weights[3:])]
    assert all(moved)
    assert [record.getMessage() for record in caplog.records] == [
        f"step {step}: loss or gradient is not finite; left out, the {number}. so far"
        for number, step in enumerate((3, 4), start=1)
    ]
    lines = (config.run.output / "non_finite.jsonl").read_text().splitlines()
    # two samples a step
    assert [
        (line["step"], line["first_sample"], line["last_sample"]) for line in map(json.loads, lines)
    ] == [
        (3, 4, 5),
        (4, 6, 7),
    ]
    assert final_state(config)["optimizer/weight/step"] == 6


def test_a_run_that_is_lost_stops(config: CodecTraining, use_stage: Use) -> None:
    # four in a row are forgiven, five are not
    use_stage(FourNumbers(broken=(*range(4), *range(5, 20))))
    done: list[int] = []
    with pytest.raises(AlloSR2Error) as caught:
        train(change(config, steps=100, patience=5), lambda status: done.append(status.step))
    assert done[-1] == 9
    assert str(caught.value) == (
        f"{config.run.output}: 5 steps in a row were not finite, the last at step 10; their samples are in "
        "non_finite.jsonl; lower the learning rate, or use --precision float32, with --allow-changes"
    )
    written = (config.run.output / "non_finite.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == [1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_a_loss_that_is_not_finite_is_left_out_though_its_gradient_is(
    config: CodecTraining, use_stage: Use
) -> None:
    stage = use_stage(FourNumbers())
    losses = stage.losses

    def infinite_once(*arguments: Any) -> dict[str, Tensor]:
        terms = losses(*arguments)
        return terms | {"total": terms["total"] + (torch.inf if stage.calls == 3 else 0)}

    stage.losses = infinite_once
    weights: list[Tensor] = []
    statuses: list[Status] = []
    train(
        config,
        lambda s: (statuses.append(s), weights.append(stage.module.weight.detach().clone())),
    )
    assert [s.step for s in statuses if not s.is_finite] == [3]
    assert statuses[2].gradient_norm < 10
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])


def test_running_out_of_memory_names_what_to_lower(
    config: CodecTraining, use_stage: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = use_stage(FourNumbers())

    def too_much(*_: Any) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    stage.losses = too_much
    monkeypatch.setattr(plan, "savings", lambda _: [])
    with pytest.raises(AlloSR2Error) as caught:
        train(config)
    message = str(caught.value)
    assert re.match(r"out of memory on cpu, \d+\.\d GB in use; try a smaller --crop or", message)
    ways = [("--gradient-checkpointing", 12_340_000_000), ("--accumulation 16", 4_000_000)]
    monkeypatch.setattr(plan, "savings", lambda _: ways)
    with pytest.raises(AlloSR2Error) as caught:
        train(config)
    assert "try --gradient-checkpointing (12.3 GB less), --accumulation 16 (4 MB less); " in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_another_model_under_the_same_config_is_refused(
    config: CodecTraining, use_stage: Use
) -> None:
    use_stage(FourNumbers())
    train(config)
    use_stage(FourNumbers(size=5))
    with pytest.raises(ModelError, match="checkpoints hold other parameters than the model"):
        train(config)


def test_other_frozen_weights_under_the_same_config_are_refused_unless_told(
    config: CodecTraining, use_stage: Use, caplog: pytest.LogCaptureFixture
) -> None:
    use_stage(FourNumbers())
    with pytest.raises(KeyboardInterrupt):
        train(config, Stop(3, KeyboardInterrupt))
    use_stage(FourNumbers()).fingerprint = "another"
    with pytest.raises(ModelError, match=r"frozen weights are not those .* --allow-changes"):
        train(config)
    with caplog.at_level(logging.WARNING):
        train(change(config, allow_changes=True))
    assert "frozen weights are not those" in caplog.text


def test_noise_of_a_sample_depends_on_its_index_alone() -> None:
    cpu = torch.device("cpu")
    whole = normal(sample_generators(4, range(10, 16), cpu), (2, 3))
    parts = [
        normal(sample_generators(4, part, cpu), (2, 3))
        for part in ([10, 11], (12, 13), range(14, 16))
    ]
    assert whole.shape == (6, 2, 3)
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(normal(sample_generators(5, range(10, 16), cpu), (2, 3)), whole)


def test_noise_has_its_distribution() -> None:
    from scipy import stats

    generators = sample_generators(0, range(2000), torch.device("cpu"))
    assert stats.kstest(uniform(generators).numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal(generators, ()).numpy(), "norm").pvalue > 1e-3


def heard(request: pytest.FixtureRequest) -> None:
    """Undo that shells have SIGINT ignored in what they run in the background."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("when", ["losses", "update", "save"])
def test_a_signal_stops_the_run_after_its_step(
    config: CodecTraining,
    use_stage: Use,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    when: str,
) -> None:
    """Wherever it comes, twice as torchrun sends it, amid a checkpoint too: the state is whole and goes on."""
    heard(request)
    straight = change(config, output=tmp_path / "straight")
    use_stage(FourNumbers())
    train(straight)

    owner: Any = {"losses": FourNumbers, "update": torch.optim.AdamW, "save": state}[when]
    attribute = {"losses": "losses", "update": "step", "save": "save_checkpoint"}[when]
    original, calls = getattr(owner, attribute), 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == (3 if when != "save" else 1):
            signal.raise_signal(signal.Signals[name])
            signal.raise_signal(signal.Signals[name])
        return original(*arguments)

    config = change(config, checkpoint_every=3)
    use_stage(FourNumbers())
    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config, lambda status: done.append(status.step))
    # processes agree when they exchange gradients: what comes later is heard with the next step's
    stopped = 3 if when == "losses" else 4
    assert done == list(range(1, stopped + 1))
    newest = max((config.run.output / "checkpoints").iterdir())
    assert newest.name == f"step_0000000{stopped}"
    with pytest.raises(KeyboardInterrupt):  # later ones are heard as before
        signal.raise_signal(signal.SIGINT)
    use_stage(FourNumbers())
    train(config)
    expected = final_state(straight)
    assert all(torch.equal(final_state(config)[key], expected[key]) for key in expected)


def test_a_run_whose_time_is_up_again_and_again_ends_as_one_that_was_not_stopped(
    config: CodecTraining, use_stage: Use, tmp_path: Path
) -> None:
    """A step each time, the last of which is the end: there is nothing left to stop."""
    straight = change(config, output=tmp_path / "straight")
    use_stage(FourNumbers())
    train(straight)
    done: list[int] = []
    for step in range(1, 8):
        use_stage(FourNumbers())
        with pytest.raises(interrupts.TimeIsUp):
            # another time each time, which a resumed run does not mind
            train(change(config, minutes=1e-6 / step), lambda status: done.append(status.step))
        assert done == list(range(1, step + 1))
        newest = max((config.run.output / "checkpoints").glob("step_*"))
        assert newest.name == f"step_{step:08d}"
    use_stage(FourNumbers())
    model = train(change(config, minutes=1e-6))
    assert log_of(config) == log_of(straight)
    expected = final_state(straight)
    assert final_state(config).keys() == expected.keys()
    assert all(torch.equal(final_state(config)[key], expected[key]) for key in expected)
    assert torch.equal(
        torch.load(model / "weight.pt"), torch.load(straight.run.output / "model" / "weight.pt")
    )


def test_minutes_count_from_the_start_of_the_command(config: CodecTraining, use_stage: Use) -> None:
    """It began half an hour before training did: 15 minutes are over, 40 are not."""
    started = time.monotonic() - 30 * 60
    use_stage(FourNumbers())
    with pytest.raises(interrupts.TimeIsUp):
        train(change(config, minutes=15), started=started)
    use_stage(FourNumbers())
    done: list[int] = []
    train(change(config, minutes=40), lambda s: done.append(s.step), started=started)
    assert done == list(range(2, 9))


def test_the_time_of_another_process_is_up(
    config: CodecTraining, use_stage: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes know by their sums, in which another's flag stands as soon as its own step is done."""
    sums = Processes.sum_terms
    calls = 0

    def with_another(self: Processes, terms: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        others = {"late": float(calls == 3)}
        return {name: value + others.get(name, 0) for name, value in sums(self, terms).items()}

    monkeypatch.setattr(Processes, "sum_terms", with_another)
    use_stage(FourNumbers())
    done: list[int] = []
    with pytest.raises(interrupts.TimeIsUp):
        train(change(config, minutes=100), lambda status: done.append(status.step))
    assert done == [1, 2, 3]
    assert not {"late", "asked"} & set(log_of(config)[0])


def test_a_second_signal_later_on_stops_at_once(
    config: CodecTraining,
    use_stage: Use,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    heard(request)
    monkeypatch.setattr(interrupts, "ECHO", 0.0)
    stage = use_stage(FourNumbers())
    losses = stage.losses

    def impatient(*arguments: Any) -> dict[str, Tensor]:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    stage.losses = lambda *a: impatient(*a) if stage.calls == 2 else losses(*a)
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(config, lambda status: done.append(status.step))
    assert done == [1, 2]


def test_nothing_is_saved_while_the_average_stands_in(
    config: CodecTraining, use_stage: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that a checkpoint would hold then are not those that training goes on with."""
    use_stage(FourNumbers())
    put, calls = TrainingState._put, 0

    def interrupted(self: TrainingState, tensors: Any) -> None:
        nonlocal calls
        calls += 1
        put(self, tensors)
        if calls == 2:  # the weights come back
            raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "_put", interrupted)
    monkeypatch.setattr(loop.Watch, "is_due", lambda _, step: step == 2)
    monkeypatch.setattr(loop.Watch, "inspect", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert not list((config.run.output / "checkpoints").glob("step_*"))


def test_two_runs_do_not_share_a_folder(config: CodecTraining, use_stage: Use) -> None:
    use_stage(FourNumbers())

    def again(status: Status) -> None:
        if status.step == 2:
            with pytest.raises(ConfigError, match="another run is writing into"):
                train(config)

    train(config, again)


def test_an_average_can_be_begun_later(config: CodecTraining, use_stage: Use) -> None:
    without = dataclasses.replace(config.optimization, ema_decay=0.0)
    stage = use_stage(FourNumbers())
    weights: list[Tensor] = []
    with pytest.raises(KeyboardInterrupt):
        train(dataclasses.replace(config, optimization=without), Stop(7, KeyboardInterrupt))
    weights.append(stage.module.weight.detach().clone())
    stage = use_stage(FourNumbers())
    exported = torch.load(train(change(config, allow_changes=True)) / "weight.pt")
    weights.append(stage.module.weight.detach())
    decay = (1 + 7) / (10 + 7)
    torch.testing.assert_close(exported, decay * weights[0] + (1 - decay) * weights[1])


def test_other_photographs_under_the_same_names_are_refused(
    config: CodecTraining, use_stage: Use, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(config.images.photos[0], folder)
    images = dataclasses.replace(config.images, photos=(str(folder),))
    config = dataclasses.replace(config, images=images)
    use_stage(FourNumbers())
    with pytest.raises(KeyboardInterrupt):
        train(config, Stop(2, KeyboardInterrupt))
    next(folder.iterdir()).unlink()
    use_stage(FourNumbers())
    with pytest.raises(ModelError, match="photographs are not those that the run began with"):
        train(config)


def test_a_full_disk_costs_lines_of_the_log_and_not_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    append(Path("/dev/full"), {"step": 1, "total": 0.5})
    assert "/dev/full: a line is lost ([Errno 28] No space left on device" in caplog.text


def test_a_line_is_json_whatever_its_numbers_are(tmp_path: Path) -> None:
    append(tmp_path / "log", {"step": 1, "total": float("nan"), "fatc": float("inf")})
    line = json.loads((tmp_path / "log").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "total": "nan", "fatc": "inf"}


def test_a_broken_line_of_the_log_ends_it(config: CodecTraining, use_stage: Use) -> None:
    use_stage(FourNumbers())
    with pytest.raises(KeyboardInterrupt):
        train(config, Stop(4, KeyboardInterrupt))
    log = config.run.output / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", *lines[3:]]))
    use_stage(FourNumbers())
    train(config)
    assert [line["step"] for line in log_of(config)] == [1, 2, 5, 6, 7, 8]


def test_a_loading_process_that_dies_is_said_and_leaves_a_checkpoint(
    config: CodecTraining, use_stage: Use
) -> None:
    use_stage(FourNumbers())
    images = dataclasses.replace(config.images, workers=1)

    def kill(status: Status) -> None:
        if status.step == 3:
            for child in psutil.Process().children():
                child.kill()
            time.sleep(5)  # PyTorch's error comes here, amid what has nothing to do with loading

    with pytest.raises(DataError, match=r"a loading process stopped .* lower --workers"):
        train(dataclasses.replace(config, images=images), kill)
    names = [path.name for path in (config.run.output / "checkpoints").iterdir()]
    assert names == ["step_00000003"]
