"""Settings trained in turn on a tiny base: one t*, one seed, resumed and never trained twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from allosr2.backbones.lora import FILE_NAME
from allosr2.errors import AlloSR2Error, ConfigError
from allosr2.evaluation.ablation import SETTINGS, named_settings
from allosr2.evaluation.ablation_run import DONE, differences, measure_settings, train_settings
from allosr2.evaluation.summary import Measured
from allosr2.model import ModelConfig
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    ImagesConfig,
    OptimizationConfig,
    PerceptualConfig,
    RunConfig,
    WatchConfig,
)
from allosr2.training.log import Status
from allosr2.training.loop import train

NAMES = ("full", "without-fatc", "t-star-half")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(tiny_base: Path, tmp_path: Path) -> AlloSR2Training:
    (tmp_path / "photos").mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "photos" / "a.png")
    return AlloSR2Training(
        run=RunConfig(
            recipe="tiny",
            output=tmp_path / "ablation",
            steps=2,
            batch_size=1,
            seed=3,
            precision="float32",
            device="cpu",
        ),
        images=ImagesConfig(photos=(str(tmp_path / "photos"),), procedural=0.0, crop=32, workers=0),
        optimization=OptimizationConfig(learning_rate=1e-3, ema_decay=0.0),
        perceptual=PerceptualConfig(perceptual_weight=0.0),
        watch=WatchConfig(tracker="none", validate_every=0),
        base=str(tiny_base),
        guidance=1.0,
        adapter=AdapterConfig(rank=2, alpha=2),
        preset="mild",
        t_star_pairs=2,
    )


class Training:
    """The loop, which notes what it is asked for and stops where it is told to."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.asked: list[str] = []
        self.steps: list[int] = []
        self.stop_in = stop_in

    def __call__(self, config: AlloSR2Training) -> Path:
        name = config.run.output.name
        self.asked.append(name)

        def report(status: Status) -> None:
            self.steps.append(status.step)
            if name == self.stop_in:
                raise KeyboardInterrupt

        return train(config, report)


def weights(output: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(output / name / "model" / FILE_NAME)


def test_settings_share_all_but_what_they_change(recipe: AlloSR2Training) -> None:
    settings = train_settings(recipe, named_settings(["all"]), Training())
    assert [trained.name for trained in settings] == list(SETTINGS)
    full = settings[0]
    assert full.config.t_star is None
    assert ModelConfig.read(full.model).t_star == full.t_star
    found = {trained.name: differences(full, trained) for trained in settings}
    half, more = found.pop("t-star-half"), found.pop("t-star-times-1.5")
    assert found == {
        "full": {},
        "without-fatc": {"loss.fatc_weight": 0.0},
        "without-atm": {"loss.atm_weight": 0.0},
        "reference-frozen": {"loss.atm_reference": "frozen"},
        "state-renoised": {"loss.atm_state": "renoised"},
        "target-decoded": {"loss.perceptual_target": "decoded"},
    }
    # models hold times that bfloat16 can tell apart: 8 bits
    assert half == {"t_star": pytest.approx(full.t_star / 2, rel=1 / 256)}
    assert more == {"t_star": pytest.approx(full.t_star * 1.5, rel=1 / 256)}
    assert len({trained.t_star for trained in settings}) == 3
    assert {trained.config.run.seed for trained in settings} == {3}
    assert {tuple(trained.fingerprints.items()) for trained in settings} == {
        tuple(full.fingerprints.items())
    }


def test_a_second_call_trains_nothing(recipe: AlloSR2Training) -> None:
    first = train_settings(recipe, NAMES, Training())
    again = Training()
    assert train_settings(recipe, NAMES, again) == first
    assert again.asked == []
    # nor do options that change no step
    run = replace(recipe.run, log_every=7, compile=True)
    train_settings(replace(recipe, run=run), NAMES, again)
    assert again.asked == []
    more = replace(recipe, run=replace(recipe.run, steps=3))
    train_settings(more, NAMES[:2], again)
    assert (again.asked, again.steps) == (["full", "without-fatc"], [3, 3])


def test_another_config_is_refused_by_name(recipe: AlloSR2Training) -> None:
    train_settings(recipe, NAMES[:1], Training())
    other = replace(recipe, run=replace(recipe.run, seed=4))
    with pytest.raises(ConfigError, match=r"run\.seed was 3, is 4"):
        train_settings(other, NAMES[:1], Training())


def test_a_stop_goes_on_where_it_was(recipe: AlloSR2Training, tmp_path: Path) -> None:
    straight = replace(recipe, run=replace(recipe.run, output=tmp_path / "straight"))
    train_settings(straight, NAMES, Training())
    with pytest.raises(KeyboardInterrupt):
        train_settings(recipe, NAMES, Training(stop_in="without-fatc"))
    assert not (recipe.run.output / "without-fatc" / DONE).exists()
    rest = Training()
    train_settings(recipe, NAMES, rest)
    assert rest.asked == ["without-fatc", "t-star-half"]
    assert rest.steps == [2, 1, 2]
    for name in NAMES:
        expected, found = weights(tmp_path / "straight", name), weights(recipe.run.output, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_model_that_is_gone_or_was_not_whole_is_exported_again(recipe: AlloSR2Training) -> None:
    output = recipe.run.output
    train_settings(recipe, NAMES[:2], Training())
    shutil.rmtree(output / "full" / "model")
    (output / "without-fatc" / DONE).write_text("{")
    again = Training()
    train_settings(recipe, NAMES[:2], again)
    assert (again.asked, again.steps) == (["full", "without-fatc"], [])
    assert weights(output, "full")
    assert json.loads((output / "without-fatc" / DONE).read_text())["config"]["run.seed"] == 3


def test_settings_of_other_weights_are_told_apart(recipe: AlloSR2Training) -> None:
    train_settings(recipe, NAMES[:2], Training())
    done = recipe.run.output / "without-fatc" / DONE
    fields = json.loads(done.read_text())
    fields["fingerprints"]["frozen weights"] = "0123"
    done.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=r"without-fatc: frozen weights are not those of .*full;"):
        train_settings(recipe, NAMES[:2], Training())


def test_what_was_measured_is_recorded_with_what_differs(recipe: AlloSR2Training) -> None:
    settings = train_settings(recipe, NAMES, Training())
    asked: list[tuple[str, Path]] = []

    def evaluate(name: str, model: Path) -> Measured:
        asked.append((name, model))
        return Measured(
            images={"a": {"psnr": 20.0}, "b": {"psnr": 20.0 + len(name)}},
            of_set={"fid": 3.0},
            skipped={"dists": "no weights"},
        )

    fields = json.loads(json.dumps(measure_settings(settings, evaluate).fields()))
    assert asked == [(name, recipe.run.output / name / "model") for name in NAMES]
    assert (fields["recipe"], fields["seed"], fields["steps"]) == ("tiny", 3, 2)
    assert fields["t_star"] == settings[0].t_star == fields["full"]["t_star"]
    assert fields["fingerprints"].keys() == {"frozen weights", "photographs"}
    assert fields["versions"].keys() == {"allosr2", "torch", "diffusers"}
    assert fields["settings"]["without-fatc"] == {
        "model": str(recipe.run.output / "without-fatc" / "model"),
        "differs": {"loss.fatc_weight": 0.0},
        "images": 2,
        "means": {"psnr": 26.0, "fid": 3.0},
        "skipped": {"dists": "no weights"},
    }


def test_what_training_refuses_comes_out_as_it_is(recipe: AlloSR2Training) -> None:
    with pytest.raises(AlloSR2Error, match="guidance is None"):
        train_settings(replace(recipe, guidance=None), NAMES, Training())
