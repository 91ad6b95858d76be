"""`examples/train_mini.py`: four stages in the time that there is, in pieces, and one archive of the result."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tarfile
from pathlib import Path

import mini_plan
import pytest
import torch
import train_mini
from mini_plan import Pace, Plan, Progress
from safetensors.torch import load_file
from train_mini import TrainMini, fitted, main, stages

from allosr2.backbones.base import load_transformer, load_vae
from allosr2.model import AlloSR2, model_folder
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    CodecTraining,
    DecoderTraining,
    FlowTraining,
    OptimizationConfig,
    WatchConfig,
)
from allosr2.training.log import Status
from allosr2.training.recipes import mini, mini_codec

STAGES = ["codec", "flow", "mini", "decoder"]


@pytest.fixture
def tiny(monkeypatch, parts, small_base):
    """Recipes of steps that take milliseconds, and a plan that is made after four of them."""
    settings = parts(Path("unused"))
    settings |= {
        "optimization": OptimizationConfig(learning_rate=1e-3, ema_decay=0.9),
        "watch": WatchConfig(tracker="none", validation_images=1),
    }
    of_flow = {name: part for name, part in settings.items() if name != "perceptual"}
    recipes = {
        "mini_codec": CodecTraining(**settings),
        "mini_flow": FlowTraining(**of_flow, codec=Path("unused")),
        "mini": AlloSR2Training(
            **settings,
            base="unused",
            embed_base=True,
            adapter=AdapterConfig(rank=2, alpha=2),
            preset="mild",
            t_star_pairs=4,
        ),
        "mini_decoder": DecoderTraining(**settings, model="unused"),
    }
    for name, recipe in recipes.items():
        monkeypatch.setattr(train_mini, name, lambda recipe=recipe: recipe)
    monkeypatch.setattr("allosr2.training.codec.mini_vae", lambda: load_vae(str(small_base)))
    monkeypatch.setattr(
        "allosr2.training.flow.mini_velocity", lambda: load_transformer(str(small_base))
    )
    monkeypatch.setattr(train_mini, "WARM_UP", 1)
    monkeypatch.setattr(mini_plan, "PROBE_STEPS", 2)
    monkeypatch.setattr(mini_plan, "PROBE_SECONDS", 0.0)


def arguments(photos: Path, output: Path, *options: str) -> list[str]:
    """No time at all: a stage gets one step more than those that it is timed by."""
    own = ["--photos", str(photos), "--output", str(output), "--hours", "1e-9", "--device", "cpu"]
    return [*own, *options]


def steps_of(output: Path, stage: str) -> list[int]:
    return [json.loads(line)["step"] for line in (output / stage / "log.jsonl").open()]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture
def whole(tiny, photos, tmp_path, capsys) -> Path:
    """What one command makes."""
    output = tmp_path / "whole"
    options = ["--held-out", str(photos), "--part-mib", "1"]
    assert main(arguments(photos, output, *options)) == 0
    assert capsys.readouterr().out == f"{output / 'mini.tar'}\n"
    return output


def test_one_command_trains_all_and_leaves_one_archive(whole, photos, tmp_path, capsys):
    plan = json.loads((whole / "plan.json").read_text())
    assert [(name, p["steps"], p["finished"]) for name, p in plan["stages"].items()] == [
        (name, 5, True) for name in STAGES
    ]
    for name in STAGES:
        assert steps_of(whole, name) == [1, 2, 3, 4, 5]

    # each stage has the weights of the one before
    def tensors(path):
        return load_file(next(path.glob("*.safetensors")))

    def same(one, other):
        a, b = tensors(one), tensors(other)
        return {key for key in a if torch.equal(a[key].float(), b[key].float())}

    vae = tensors(whole / "codec" / "model" / "vae")
    assert same(whole / "codec/model/vae", whole / "flow/model/vae") == vae.keys()
    flow = whole / "flow/model/transformer"
    assert same(flow, whole / "model/base/transformer") == tensors(flow).keys()
    kept = same(whole / "mini/model/base/vae", whole / "model/base/vae")
    assert {key for key in vae if key.startswith("encoder.")} <= kept
    assert not {key for key in vae if key.startswith("decoder.") and key.endswith("weight")} & kept
    AlloSR2.from_pretrained(whole / "model")

    settings = json.loads((whole / "model" / "allosr2.json").read_text())
    assert (settings["base"], settings["origin"]) == ("base", "allosr2/mini")
    provenance = settings["provenance"]
    assert provenance["initial"] is None
    assert provenance["data"]["sources"] == [photos.name]
    for name, trained in provenance["stages"].items():
        assert trained["minutes"] == round(plan["stages"][name]["seconds"] / 60, 1)
        assert (trained["steps"], trained["batch_size"], trained["crop"]) == (5, 2, 32)
        assert len(trained["machines"]) == 1
    assert '"stages"' in (whole / "model" / "README.md").read_text()
    assert str(tmp_path) not in (whole / "model" / "README.md").read_text()

    with tarfile.open(whole / "mini.tar") as tar:
        assert {(info.uid, info.uname) for info in tar} == {(0, "")}
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = files_of(tmp_path / "unpacked" / "mini")
    model = {f"model/{name}": content for name, content in files_of(whole / "model").items()}
    assert model.items() <= unpacked.items()
    records = {
        f"{stage}/{name}"
        for stage in STAGES
        # a look after every third step that is not timed, and after the last
        for name in ("log.jsonl", "validation.jsonl", "sheets/step_00000005.png")
    }
    assert unpacked.keys() == model.keys() | records
    parts = sorted((whole / "parts").iterdir())
    assert [path.name for path in parts] == [f"mini.tar.{n:03}" for n in range(len(parts))]
    assert b"".join(map(Path.read_bytes, parts)) == (whole / "mini.tar").read_bytes()
    assert {path.stat().st_size for path in parts[:-1]} <= {2**20}


def test_pieces_of_a_step_end_as_one_command_does(whole, photos, tmp_path, capsys):
    """By the same plan; and what a killed process left half-written is in nobody's way."""
    output = tmp_path / "pieces"
    output.mkdir()
    plan = json.loads((whole / "plan.json").read_text())
    for progress in plan["stages"].values():
        progress |= {"seconds": 0.0, "machines": [], "finished": False}
    (output / "plan.json").write_text(json.dumps(plan))
    command = arguments(photos, output, "--held-out", str(photos), "--piece", "1e-6")
    done: list[list[int]] = []
    for _ in range(
        19
    ):  # the last piece, which is the last stage's last step, is no longer than it has to be
        assert main(command) == 0
        streams = capsys.readouterr()
        assert streams.out == ""
        said = "train_mini: 1e-06 minutes are over; run the same command again"
        assert streams.err.splitlines()[-1] == said
        begun = [name for name in STAGES if (output / name / "log.jsonl").exists()]
        done.append([len(steps_of(output, name)) for name in begun])
    full, expected = [], []
    for _ in STAGES:
        expected += [[*full, step] for step in range(1, 6)]
        full = [*full, 5]
    assert done == expected[:-1]
    for name in (".model", ".parts"):
        shutil.copytree(whole / "model", output / name)
    (output / ".mini.tar").write_text("half")
    assert main([*command, "--part-mib", "1"]) == 0
    assert capsys.readouterr().out == f"{output / 'mini.tar'}\n"
    assert not [path for path in output.glob(".*") if path.name != ".allosr2.lock"]

    assert "run.minutes" not in (output / "model" / "allosr2.json").read_text()
    names = {path.relative_to(whole) for path in (whole / "model").rglob("*.safetensors")}
    assert len(names) == 4
    for name in names:
        found, wanted = load_file(output / name), load_file(whole / name)
        assert found.keys() == wanted.keys()
        assert [key for key in wanted if not torch.equal(found[key], wanted[key])] == []


def test_what_is_finished_is_not_trained_again(whole, photos, monkeypatch, capsys):
    monkeypatch.setattr(train_mini, "train_with_bar", None)
    before = files_of(whole)
    assert main(arguments(photos, whole, "--hours", "9", "--piece", "1e-6")) == 0
    assert capsys.readouterr().out == f"{whole / 'mini.tar'}\n"
    assert files_of(whole) == before


def test_a_piece_that_is_too_short_to_time_a_stage_is_planned_by_what_it_had(
    tiny, photos, tmp_path, capsys
):
    """A step a piece: after the first one of each stage the plan, after the second one the next stage."""
    command = arguments(photos, tmp_path / "run", "--piece", "1e-6")
    for _ in range(2 * len(STAGES)):
        assert capsys.readouterr().out == ""
        assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'mini.tar'}\n"
    assert [steps_of(tmp_path / "run", name) for name in STAGES] == [[1, 2]] * 4


def test_a_stage_gets_its_share_of_what_is_left(tmp_path):
    """100 hours, of which codec and flow took 20 and 12: mini has 8 thirteenths of the rest."""
    plan = Plan.read(tmp_path / "plan.json", {})
    plan.stages["codec"].seconds, plan.stages["flow"].seconds = 20 * 3600, 12 * 3600
    plan.stages["mini"].seconds = 1000
    pace = Pace(skipped=0, step=30, sure=True, times=[0, 60, 64, 68])
    left = (97 - 20 - 12) * 3600 * 0.4 / 0.65 - 1000
    assert plan.fix_steps("mini", pace, hours=100) == 30 + int(left / 4)
    read = Plan.read(tmp_path / "plan.json", {})
    assert read == plan
    assert read.stages["mini"].seconds_a_step == 4
    assert read.stages["decoder"] == Progress()


@pytest.mark.parametrize(
    ("skipped", "ends", "seconds"),
    [
        (2, [50, 60, 62, 64, 66, 68, 72], 2.5),  # after two, four of eight seconds at least
        (9, [50, 60, 62], 6),  # too few
        (9, [50], 50),  # one alone
    ],
)
def test_the_pace(monkeypatch, skipped, ends, seconds):
    monkeypatch.setattr(mini_plan, "PROBE_SECONDS", 8)
    clock = iter([0, *ends])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    pace = Pace(skipped=skipped)
    for step, _ in enumerate(ends, start=11):
        status = Status(step=step, steps=99, learning_rate=1, gradient_norm=1, terms={"total": 1})
        if step == 17:
            with pytest.raises(train_mini.TimeIsUp):
                pace.note(status)
        else:
            pace.note(status)
    assert pace.seconds == seconds
    assert pace.step == 10 + len(ends)


def test_a_gpu_is_fed_by_many_processes(monkeypatch):
    options = TrainMini(photos=("a",), output=Path("run"), hours=1, procedural=0.0)
    codec = dataclasses.replace(
        mini_codec(), images=dataclasses.replace(mini_codec().images, cache_gigabytes=4.0)
    )
    own = fitted("codec", codec, options, Progress())
    assert own.images == dataclasses.replace(codec.images, photos=("a",), procedural=0.0)
    monkeypatch.setattr(train_mini, "resolve_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(train_mini, "free_memory", lambda _: 1000 * 2**30)
    for cores, workers in ((96, 14), (8, 7), (1, 1)):
        monkeypatch.setattr(train_mini, "cores", lambda cores=cores: cores)
        images = fitted("codec", codec, options, Progress()).images
        assert (images.workers, images.cache_gigabytes) == (workers, 4 * workers)
    assert codec.run.compile
    assert not fitted("codec", codec, options, Progress()).run.compile
    monkeypatch.setattr(train_mini, "free_memory", lambda _: 8 * 2**30)
    assert fitted("codec", codec, options, Progress()).images.cache_gigabytes == 2


def test_last_weights_are_trained_on(tmp_path):
    options = TrainMini(photos=("a",), output=tmp_path, hours=1, initial="mini")
    configs = stages(options)
    base = model_folder("mini") / "base"
    assert (configs["codec"].initial, configs["flow"].initial) == (base, base)
    assert configs["mini"] == dataclasses.replace(
        mini(), base=str(tmp_path / "flow/model"), initial="mini"
    )


def test_a_codec_is_taken_as_it_is(tmp_path):
    options = TrainMini(photos=("a",), output=tmp_path, hours=1, codec="mini")
    configs = stages(options)
    assert list(configs) == STAGES[1:]
    assert configs["flow"].codec == model_folder("mini") / "base"
    assert configs["flow"].initial is None


@pytest.mark.parametrize(("gigabytes", "factor"), [(141, 8), (16, 5), (2, 1)])
def test_batches_are_larger_on_a_gpu_and_stay_as_they_began(
    tiny, tmp_path, monkeypatch, gigabytes, factor
):
    options = TrainMini(photos=("a",), output=tmp_path, hours=1)
    plan = Plan.read(tmp_path / "plan.json", {})
    config = stages(options)["flow"]
    sizes = []
    monkeypatch.setattr(
        train_mini, "_train", lambda config, *_: sizes.append(config.run.batch_size)
    )
    plan.stages["flow"].steps = 1
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(train_mini, "resolve_device", lambda _, d=device: torch.device(d))
        monkeypatch.setattr(train_mini, "describe_device", str)
        monkeypatch.setattr(train_mini, "free_memory", lambda _: gigabytes * 10**9)
        train_mini.train_stage("flow", config, options, plan, hurried=False)
    assert sizes == [factor * config.run.batch_size] * 2


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--hours", "0"], 2, "hours is 0.0: use a number above 0"),
        (["--piece", "-1"], 2, "piece is -1.0: use a number above 0"),
        (["--part-mib", "0"], 2, "part_mib is 0: use a number above 0"),
        (["--output", "file/run"], 2, "file/run cannot be written ([Errno 20] Not a directory"),
        (["--photos", "absent"], 5, "absent: no such folder of photographs"),
        (["--initial", "absent"], 4, "absent: no such model"),
        (["--output", "begun"], 2, "seed is 0: begun was begun with 1; use that, or another"),
        (["--output", "damaged"], 2, "damaged/plan.json cannot be read"),
    ],
)
def test_refusals(tiny, photos, tmp_path, monkeypatch, capsys, options, code, words):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("damaged").mkdir()
    Path("damaged/plan.json").write_text("{")
    Path("begun").mkdir()
    settings = {"photos": [str(photos)], "procedural": None, "perceptual": None, "initial": None}
    Plan.read(Path("begun/plan.json"), settings | {"seed": 1}).save()
    assert main(arguments(photos, Path("run"), *options)) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    line = streams.err.splitlines()[-1]
    assert line.startswith("train_mini: error: ")
    assert words in line


def test_an_interruption_says_how_to_go_on(tiny, photos, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_mini, "train_with_bar", interrupt)
    assert main(arguments(photos, tmp_path / "run")) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "train_mini: stopped; run the same command again"
