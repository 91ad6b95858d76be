"""Results of methods: made once, timed, kept; made again when something has changed; nothing half-written."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from allosr2.errors import ConfigError, DataError
from allosr2.evaluation import results
from allosr2.evaluation.methods import Enlarge, Folder, Network, Program
from allosr2.evaluation.results import Made, make
from allosr2.imaging.io import write_image
from allosr2.imaging.picture import Picture

CPU = torch.device("cpu")
LEVELS = {"a": 10, "b": 20, "c d": 30}


def save(path: Path, level: int, side: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (level,) * 3).save(path)
    return path


def level_of(path: Path) -> int:
    """Of a picture of one color, and of the size that is due."""
    levels = np.asarray(Image.open(path))
    assert levels.shape == (8, 8, 3)
    assert levels.min() == levels.max()
    return int(levels[0, 0, 0])


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def lr(tmp_path: Path) -> dict[str, Path]:
    return {name: save(tmp_path / "lr" / f"{name}.png", level) for name, level in LEVELS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "method"
    path.mkdir()
    return path


class Adding:
    """A method that makes pictures lighter by some levels; it counts what it does."""

    def __init__(self, more: int) -> None:
        self.more = more
        self.loads: list[tuple[int, torch.device]] = []
        self.seen: list[int] = []

    def network(self, note: str = "") -> Network:
        return Network(name="adding", note=note or f"adding {self.more}", load=self.load)

    def load(self, scale: int, device: torch.device) -> Enlarge:
        self.loads.append((scale, device))

        def enlarge(lr: Tensor) -> Tensor:
            assert lr.shape == (1, 3, 4, 4)
            self.seen.append(round(255 * float(lr.mean())))
            return (lr + self.more / 255).repeat_interleave(scale, 2).repeat_interleave(scale, 3)

        return enlarge


def run(method: Network | Program | Folder, lr: dict[str, Path], folder: Path) -> Made:
    return make(method, lr, folder, scale=2, device=CPU)


def test_a_network_makes_each_result_once(lr, folder):
    adding = Adding(5)
    done: list[int] = []
    made = make(adding.network(), lr, folder, scale=2, device=CPU, progress=done.append)
    assert adding.loads == [(2, CPU)]
    assert adding.seen == [10, 10, 20, 30]  # the first one twice: once untimed
    assert done == [0, 1, 2, 3]
    assert list(made.images) == list(lr)
    assert {name: level_of(path) for name, path in made.images.items()} == {
        "a": 15,
        "b": 25,
        "c d": 35,
    }
    assert contents(folder) == {"made.json", *(f"results/{name}.png" for name in lr)}
    assert made.note.startswith("adding 5, ")
    seconds = [
        entry["seconds"]
        for entry in json.loads((folder / "made.json").read_text())["images"].values()
    ]
    assert len(seconds) == 3
    assert made.seconds == sorted(seconds)[1]
    assert 0 < made.seconds < 5

    again = run(adding.network(), lr, folder)
    assert again == made
    assert (len(adding.loads), len(adding.seen)) == (1, 4)


@pytest.mark.parametrize(
    "change",
    ["lr", "method", "scale", "result", "size", "torn result", "record", "torn record", "fields"],
)
def test_what_has_changed_is_made_again(lr, folder, change):
    adding = Adding(5)
    run(adding.network(), lr, folder)
    before = (folder / "results" / "a.png").stat().st_mtime_ns
    adding.seen.clear()
    method, record = adding.network(), folder / "made.json"
    match change:
        case "lr":
            save(lr["b"], 120)
        case "method":
            adding.more = 6
            method = adding.network()
        case "scale":
            fields = json.loads(record.read_text())
            record.write_text(json.dumps(fields | {"scale": 4}))
        case "result":
            (folder / "results" / "b.png").unlink()
        case "size":
            save(folder / "results" / "b.png", 25, 9)
        case "torn result":
            (folder / "results" / "b.png").write_bytes(b"no image")
        case "record":
            record.unlink()
        case "fields":
            record.write_text(record.read_text().replace("seconds", "time"))
        case _:
            record.write_text(record.read_text()[:-9])
    made = run(method, lr, folder)
    more = adding.more
    assert [level_of(path) for path in made.images.values()] == [
        10 + more,
        (120 if change == "lr" else 20) + more,
        30 + more,
    ]
    if change in ("lr", "result", "size", "torn result"):
        assert set(adding.seen) == {120 if change == "lr" else 20}
        assert made.images["a"].stat().st_mtime_ns == before
    else:
        assert set(adding.seen) == {10, 20, 30}


def test_more_and_fewer_images_cost_only_the_new_ones(lr, folder):
    adding = Adding(5)
    fewer = {name: path for name, path in lr.items() if name != "b"}
    assert list(run(adding.network(), fewer, folder).images) == ["a", "c d"]
    adding.seen.clear()
    assert list(run(adding.network(), lr, folder).images) == ["a", "b", "c d"]
    assert set(adding.seen) == {20}
    adding.seen.clear()
    assert list(run(adding.network(), fewer, folder).images) == ["a", "c d"]
    assert adding.seen == []


def test_the_note_names_what_the_seconds_are_of(lr, folder, monkeypatch):
    adding = Adding(5)
    monkeypatch.setattr(results, "describe_device", lambda _: "one thread")
    run(adding.network(), {"a": lr["a"]}, folder)
    monkeypatch.setattr(results, "describe_device", lambda _: "two threads")
    assert run(adding.network(), {"a": lr["a"]}, folder).note == "adding 5, one thread"
    assert run(adding.network(), lr, folder).note == "adding 5, one thread and two threads"
    assert run(adding.network(), {"b": lr["b"]}, folder).note == "adding 5, two threads"


def test_what_a_kill_has_left_is_cleared(lr, folder):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    save(folder / ".running-0" / "sr" / "a.png", 1)
    (folder / "results").mkdir()
    (folder / "results" / f".allosr2-{gone.pid}-0a.part").touch()
    run(Adding(5).network(), lr, folder)
    assert contents(folder) == {"made.json", *(f"results/{name}.png" for name in lr)}
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_stop_keeps_what_was_made(lr, folder, error):
    adding = Adding(5)

    def stop(done: int) -> None:
        if done == 2:
            raise error

    with pytest.raises(error):
        make(adding.network(), lr, folder, scale=2, device=CPU, progress=stop)
    assert contents(folder) == {"made.json", "results/a.png", "results/b.png"}
    adding.seen.clear()
    done: list[int] = []
    made = make(adding.network(), lr, folder, scale=2, device=CPU, progress=done.append)
    assert set(adding.seen) == {30}
    assert done == [2, 3]
    assert [level_of(path) for path in made.images.values()] == [15, 25, 35]
    assert made.seconds is not None


def test_a_kill_leaves_no_result_to_a_former_method(lr, folder, monkeypatch):
    """Killed when one result of another method is in its place, and nothing yet says so."""
    five, six = Adding(5), Adding(6)
    run(five.network(), lr, folder)

    def killed(target: Path, picture: Picture) -> None:
        write_image(target, picture)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_image", killed)
        with pytest.raises(KeyboardInterrupt):
            run(six.network(), lr, folder)
    assert level_of(folder / "results" / "a.png") == 16
    made = run(five.network(), lr, folder)
    assert [level_of(path) for path in made.images.values()] == [15, 25, 35]


def test_a_folder_that_cannot_be_written(lr, folder):
    (folder / "results").touch()
    for method in (Adding(5).network(), Program(name="x", command="true {lr} {sr}")):
        with pytest.raises(ConfigError, match=r"cannot be written \(.*\); choose another --output"):
            run(method, lr, folder)
    (folder / "results").unlink()
    (folder / "made.json").mkdir()
    with pytest.raises(ConfigError, match=r"method cannot be written \(Is a directory\); choose"):
        run(Adding(5).network(), lr, folder)


def test_a_folder_of_results(lr, folder, tmp_path):
    found = tmp_path / "found"
    paths = [save(found / name, 1, 8) for name in ("a.jpg", "b_x4.png", "c d.PNG", "e.png")]
    made = run(Folder(name="x", folder=found), lr, folder)
    assert made == Made(
        images=dict(zip(lr, paths, strict=False)), seconds=None, note=f"images in {found}"
    )
    assert contents(folder) == set()


def test_a_folder_without_all_results(lr, folder, tmp_path):
    found = tmp_path / "found"
    save(found / "b.png", 1, 8)
    with pytest.raises(DataError) as caught:
        run(Folder(name="x", folder=found), lr, folder)
    assert str(caught.value) == (
        f"{found}: no result named a (2 of 3 are missing); add it, or compare with --common on the images "
        "that all have"
    )


def test_a_folder_of_results_of_another_size(lr, folder, tmp_path):
    found = tmp_path / "found"
    for name, side in zip(lr, (8, 7, 16), strict=True):
        save(found / f"{name}.png", 1, side)
    with pytest.raises(DataError) as caught:
        run(Folder(name="x", folder=found), lr, folder)
    assert str(caught.value) == (
        f"{found / 'b.png'} is 7 x 7 px, 2 times its LR image is 8 x 8 (one of 2 such files); "
        "give results of that size"
    )


SCRIPT = """
import sys
from pathlib import Path
from PIL import Image

lr, sr, suffix, *options = sys.argv[1:]
with Path(__file__).with_suffix(".calls").open("a") as calls:
    calls.write("call\\n")
print("enlarging", flush=True)
print("a warning", file=sys.stderr, flush=True)
for path in sorted(Path(lr).iterdir()):
    if path.stem in options:
        continue
    image = Image.open(path)
    side = 3 if "small" in options else 2
    place = Path(sr, "deep" if "deep" in options else "")
    place.mkdir(exist_ok=True)
    image.resize((side * image.width, 2 * image.height)).save(place / (path.stem + suffix))
if "twice" in options:
    image.save(Path(sr, path.stem + "_more.png"))
if "fail" in options:
    sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "enlarge it.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def program(script: Path) -> Callable[..., Program]:
    """The script as a method, with what it is told: what is added to names, and what goes wrong."""

    def of(*options: str) -> Program:
        words = [sys.executable, str(script)]
        rest = " ".join(map(shlex.quote, options))
        return Program(name="x", command=f"{shlex.join(words)} {{lr}} {{sr}} {rest}")

    return of


def calls(script: Path) -> int:
    return len(script.with_suffix(".calls").read_text().splitlines())


@pytest.mark.parametrize("options", [(".png",), ("_out.png",), ("_out_x2.webp", "deep")])
def test_a_program_is_run_once(lr, folder, script, program, options):
    method = program(*options)
    made = run(method, lr, folder)
    suffix = Path(f"image{options[0]}").suffix
    assert made.images == {name: folder / "results" / f"{name}{suffix}" for name in lr}
    if suffix == ".png":
        assert [level_of(path) for path in made.images.values()] == [10, 20, 30]
    assert (folder / "program.log").read_text() == "enlarging\na warning\n"
    assert contents(folder) == {
        "made.json",
        "program.log",
        *(f"results/{name}{suffix}" for name in lr),
    }
    assert made.note == method.command
    assert run(method, lr, folder) == made
    assert calls(script) == 1
    assert not list(folder.glob(".*"))


def test_the_seconds_of_a_program_are_shared(lr, folder, program, monkeypatch):
    clock = SimpleNamespace(perf_counter=iter((10.0, 16.0)).__next__)
    monkeypatch.setattr(results, "time", clock)
    assert run(program(".png"), lr, folder).seconds == 2.0


def test_a_program_is_run_again_when_something_has_changed(lr, folder, script, program):
    run(program(".png"), lr, folder)
    save(lr["b"], 99)
    assert level_of(run(program(".png"), lr, folder).images["b"]) == 99
    assert calls(script) == 2
    (folder / "results" / "a.png").unlink()
    run(program(".png"), lr, folder)
    assert calls(script) == 3
    made = run(program(".bmp"), lr, folder)
    assert calls(script) == 4
    assert {path.name for path in (folder / "results").iterdir()} == {"a.bmp", "b.bmp", "c d.bmp"}
    fewer = {name: path for name, path in lr.items() if name != "b"}
    assert run(program(".bmp"), fewer, folder).images == {
        name: path for name, path in made.images.items() if name != "b"
    }
    assert calls(script) == 4


def test_a_program_is_run_again_when_the_scale_or_a_size_is_another(lr, folder, script, program):
    method = program(".png")
    run(method, lr, folder)
    save(folder / "results" / "a.png", 1, 9)
    assert level_of(run(method, lr, folder).images["a"]) == 10
    assert calls(script) == 2
    record = folder / "made.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"scale": 3}))
    run(method, lr, folder)
    assert calls(script) == 3
    with pytest.raises(DataError, match="8 x 8 px, 3 times its LR image is 12 x 12"):
        make(method, lr, folder, scale=3, device=CPU)


def test_results_go_to_the_longest_name_that_fits(folder, program, tmp_path):
    lr = {
        name: save(tmp_path / "in" / f"{name}.png", 10 * i) for i, name in enumerate(("a", "a_b"))
    }
    made = run(program("_out.png"), lr, folder)
    assert [level_of(path) for path in made.images.values()] == [0, 10]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["fail"],
            "its command ended with code 3 and said last: a warning; all of it is in {log}",
        ),
        (
            ["b"],
            "0 images were written for b, 2 in all, one is due; what its command wrote is in {rejected}, "
            "what it said in {log}",
        ),
        (["twice"], "2 images were written for c d, 4 in all, one is due; what its "),
        (
            ["small"],
            "{rejected}/a_out.png is 12 x 8 px, 2 times its LR image is 8 x 8 (one of 3 such files); ",
        ),
    ],
)
def test_a_program_that_fails(lr, folder, script, program, options, words):
    for times in (1, 2):  # what failed is tried again
        with pytest.raises((ConfigError, DataError)) as caught:
            run(program("_out.png", *options), lr, folder)
        message = str(caught.value)
        assert message.startswith("method x: ")
        assert words.format(log=folder / "program.log", rejected=folder / "rejected") in message
        assert "\n" not in message
        assert calls(script) == times
    assert (folder / "program.log").read_text() == "enlarging\na warning\n"
    # no part of its results counts; what was made, for hours perhaps, can be looked at
    kept = {name for name in contents(folder) if not name.startswith("rejected/")}
    assert kept <= {"program.log", "made.json"}
    due = {"fail": 0, "b": 2, "twice": 4, "small": 3}[options[0]]
    assert len(contents(folder) - kept) == due
    assert not list(folder.glob(".*"))
    assert len(run(program("_out.png"), lr, folder).images) == 3


def test_a_program_that_cannot_be_run(lr, folder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        run(Program(name="x", command="no-such-program -i {lr} -o {sr}"), lr, folder)
    assert str(caught.value) == (
        "method x: no-such-program cannot be run (No such file or directory); check the command"
    )
    with pytest.raises(ConfigError, match=r"cannot be run \(Permission denied\); check"):
        run(Program(name="x", command=f"{tmp_path} -i {{lr}} -o {{sr}}"), lr, folder)


def test_a_program_whose_results_are_no_images(lr, folder, script):
    script.write_text(SCRIPT + "\nPath(sr, 'a.png').write_text('a text')\n")
    command = f"{shlex.join([sys.executable, str(script)])} {{lr}} {{sr}} .png"
    with pytest.raises(DataError, match=r"method x: .*rejected/a\.png is no readable image"):
        run(Program(name="x", command=command), lr, folder)
    rejected = {f"rejected/{name}.png" for name in lr}
    assert contents(folder) <= {"program.log", "made.json", *rejected}
