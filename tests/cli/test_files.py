"""Where results go: names, trees, patterns, streams, and what is refused before any work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.cli import main
from allosr2.cli.files import Naming, Plan, plan, plan_jobs, sort_out
from allosr2.errors import ConfigError
from allosr2.model import AlloSR2
from allosr2.pipeline import Job
from allosr2.storage import located


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """photos/{a.png,b.jpg,notes.txt,.hidden.png}, photos/deep/{a.webp,er/c.PNG}, photos/empty; the cwd."""
    for name in (
        "a.png",
        "b.jpg",
        "notes.txt",
        ".hidden.png",
        "deep/a.webp",
        "deep/er/c.PNG",
        ".cache/d.png",
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos" / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(plan: Plan) -> dict[str, str]:
    return {str(job.source): str(job.target) for job in plan.jobs}


def planned(*inputs: str, output: str = "sr", **naming: object) -> dict[str, str]:
    return pairs(plan_jobs([Path(path) for path in inputs], Path(output), Naming(**naming)))


def planned_after(
    made: dict[str, str], *inputs: str, output: str, **naming: object
) -> dict[str, str]:
    """As `planned`, with results of earlier runs and what they were made from."""
    source_of = {located(Path(name)): located(Path(source)) for name, source in made.items()}
    paths = [Path(path) for path in inputs]
    found = plan_jobs(
        paths, Path(output), Naming(**naming), lambda path: source_of.get(located(path))
    )
    return pairs(found)


def test_a_folder(tree):
    assert planned("photos") == {"photos/a.png": "sr/a.png", "photos/b.jpg": "sr/b.png"}


def test_a_tree_is_mirrored(tree):
    found = plan_jobs([Path("photos")], Path("sr"), Naming(recursive=True))
    assert pairs(found) == {
        "photos/a.png": "sr/a.png",
        "photos/b.jpg": "sr/b.png",
        "photos/deep/a.webp": "sr/deep/a.png",
        "photos/deep/er/c.PNG": "sr/deep/er/c.png",
    }
    assert found.folder == Path("sr")


def test_a_loop_of_links_is_not_followed(tree):
    (tree / "photos" / "deep" / "loop").symlink_to(tree / "photos")
    assert len(planned("photos", recursive=True)) == 4


def test_the_output_inside_the_input_is_no_input(tree):
    (tree / "photos" / "sr" / "deep").mkdir(parents=True)
    (tree / "photos" / "sr" / "deep" / "a.png").touch()
    found = planned("photos", output="photos/sr", recursive=True)
    names = ["a.png", "b.jpg", "deep/a.webp", "deep/er/c.PNG"]
    assert list(found) == [f"photos/{name}" for name in names]


def test_known_results_beside_their_inputs_are_no_inputs(tree):
    (tree / "photos" / "a_x4.png").touch()
    expected = {"photos/a.png": "photos/a_x4.png", "photos/b.jpg": "photos/b_x4.png"}
    made = {"photos/a_x4.png": "photos/a.png"}
    assert planned_after(made, "photos", output="photos", suffix="_x4") == expected
    assert planned_after(made, "photos/*.*", output="photos", suffix="_x4") == expected
    listed = sorted(str(path) for path in Path("photos").glob("[!.]*.[jp]*"))  # as a shell does
    assert "photos/a_x4.png" in listed
    assert planned_after(made, *listed, output="photos", suffix="_x4") == expected
    assert planned_after(
        made, "photos/a_x4.png", "photos/b.jpg", output="photos", suffix="_x4"
    ) == {
        "photos/a_x4.png": "photos/a_x4_x4.png",
        "photos/b.jpg": "photos/b_x4.png",
    }
    with pytest.raises(
        ConfigError, match=r"photos/\*4\.png: nothing but results of earlier runs; name one"
    ):
        planned_after(made, "photos/*4.png", output="photos", suffix="_x4")


def test_results_in_a_folder_that_a_pattern_searches(tree):
    (tree / "photos" / "sr" / "deep").mkdir(parents=True)
    (tree / "photos" / "sr" / "deep" / "a.png").touch()
    (tree / "photos" / "sr" / "c.png").touch()
    (tree / "photos" / "deep" / "a.webp").rename(tree / "photos" / "deep" / "e.webp")
    expected = {
        "photos/a.png": "photos/sr/a.png",
        "photos/b.jpg": "photos/sr/b.png",
        "photos/deep/e.webp": "photos/sr/e.png",
        "photos/deep/er/c.PNG": "photos/sr/c.png",
    }
    assert planned("photos/**/*", output="photos/sr") == expected
    assert planned(f"{tree}/photos/**/*", output="photos/sr").keys() == {
        f"{tree}/{name}" for name in expected
    }
    # what is searched is the output itself: it is asked for
    assert planned("photos/sr/*.png", output="photos/sr", suffix="_x4") == {
        "photos/sr/c.png": "photos/sr/c_x4.png"
    }
    # a shell names the folder of results with its inputs
    made = {"photos/sr/c.png": "photos/c.png", "photos/sr/deep/a.png": "photos/deep/a.png"}
    listed = ["photos/a.png", "photos/sr"]
    assert planned_after(made, *listed, output="photos/sr", recursive=True) == {
        "photos/a.png": "photos/sr/a.png"
    }


def test_patterns_folders_and_files_together(tree):
    (tree / "one.bmp").touch()
    assert planned("one.bmp", "photos/*.*") == {
        "one.bmp": "sr/one.png",
        "photos/a.png": "sr/a.png",
        "photos/b.jpg": "sr/b.png",
    }
    assert planned("photos/**/*.PNG", "photos/deep/er") == {"photos/deep/er/c.PNG": "sr/c.png"}


def test_a_pattern_of_folders(tree):
    assert planned("photos/d*", "photos/b*") == {
        "photos/deep/a.webp": "sr/a.png",
        "photos/b.jpg": "sr/b.png",
    }
    assert planned("photos/[de]*", recursive=True) == {
        "photos/deep/a.webp": "sr/a.png",
        "photos/deep/er/c.PNG": "sr/er/c.png",
    }
    with pytest.raises(ConfigError, match="matches no image"):
        planned("photos/emp*")


def test_a_folder_of_results_is_held_but_for_a_single_file_that_is_named(tree):
    (tree / "there").mkdir()
    for inputs, output, folder in [
        (["photos/a.png"], "there", None),
        (["photos/*.jpg"], "there", Path("there")),
        (["photos/*.jpg"], "sr", Path("sr")),
        (["photos"], "sr", Path("sr")),
        (["photos/a.png", "photos/b.jpg"], "there", Path("there")),
        (["-"], "there", None),
        (["photos/a.png"], "sr.png", None),
        (["photos/*.jpg"], "sr.png", None),
        (["photos/a.png"], "-", None),
    ]:
        assert plan_jobs([Path(name) for name in inputs], Path(output)).folder == folder


def test_a_name_that_looks_like_a_pattern(tree):
    (tree / "a[1].png").touch()
    assert planned("a[1].png", output="sr.png") == {"a[1].png": "sr.png"}


def test_a_pattern_of_one_image(tree):
    assert planned("photos/*.jpg") == {"photos/b.jpg": "sr/b.png"}
    assert planned("photos/*.jpg", output="sr.webp") == {"photos/b.jpg": "sr.webp"}


def test_names_of_results(tree):
    assert planned("photos", suffix="_x4", format="same", recursive=True) == {
        "photos/a.png": "sr/a_x4.png",
        "photos/b.jpg": "sr/b_x4.jpg",
        "photos/deep/a.webp": "sr/deep/a_x4.webp",
        "photos/deep/er/c.PNG": "sr/deep/er/c_x4.PNG",
    }
    suffixes = {
        name: Path(planned("photos/a.png", "photos/b.jpg", format=name)["photos/a.png"]).suffix
        for name in ("jpeg", "webp", "tiff", "bmp", "avif")
    }
    assert suffixes == {
        "jpeg": ".jpg",
        "webp": ".webp",
        "tiff": ".tif",
        "bmp": ".bmp",
        "avif": ".avif",
    }


def test_streams(tree):
    assert plan_jobs([Path("-")], Path("-")) == Plan(
        jobs=(Job(source=None, target=None),), folder=None
    )
    assert plan_jobs([Path("-")], Path("sr.png")).jobs == (Job(source=None, target=Path("sr.png")),)
    assert plan_jobs([Path("photos/a.png")], Path("-")).jobs == (
        Job(source=Path("photos/a.png"), target=None),
    )
    (tree / "sr").mkdir()
    assert plan_jobs([Path("-")], Path("sr"), Naming(suffix="_x4")).jobs == (
        Job(source=None, target=Path("sr/stdin_x4.png")),
    )
    for several in (["photos"], ["photos/a.png", "-"], ["photos/*"]):
        with pytest.raises(ConfigError, match="stdout takes one image"):
            planned(*several, output="-")
    with pytest.raises(ConfigError, match="for `upscale`"):
        plan([Path("-")], Path("sr.png"))


def test_results_of_one_name(tree):
    (tree / "photos" / "a.jpg").touch()
    with pytest.raises(
        ConfigError, match=r"photos/a\.jpg and photos/a\.png would both .* or add --format same$"
    ):
        planned("photos")
    assert len(planned("photos", format="same")) == 3
    (tree / "photos" / "A.jpg").touch()
    with pytest.raises(
        ConfigError, match=r"photos/A\.jpg and photos/a\.jpg would both be written"
    ) as error:
        planned("photos", format="same")
    assert str(error.value).endswith("; rename one, or give each a folder of results")


def test_an_input_named_twice_is_done_once(tree):
    assert planned("photos/a.png", "photos", "photos/./a.png") == {
        "photos/a.png": "sr/a.png",
        "photos/b.jpg": "sr/b.png",
    }


def test_an_input_in_two_spellings_is_done_once(tree):
    (tree / "link").symlink_to("photos")
    spellings = [f"{tree}/photos/a.png", "photos/../photos/a.png", "link/a.png"]
    for spelling in spellings:
        assert planned("photos/a.png", spelling) == {"photos/a.png": "sr/a.png"}
        assert planned(spelling, "photos/a.png", output="sr.png") == {spelling: "sr.png"}
    assert planned("link", *spellings, "photos") == {
        "link/a.png": "sr/a.png",
        "link/b.jpg": "sr/b.png",
    }
    assert plan_jobs([Path("-"), Path("-")], Path("sr.png")).jobs == (
        Job(source=None, target=Path("sr.png")),
    )
    # two files for whoever made them
    os.link(tree / "photos" / "a.png", tree / "photos" / "c.png")
    (tree / "photos" / "d.png").symlink_to("a.png")
    assert list(planned("photos").values()) == ["sr/a.png", "sr/b.png", "sr/c.png", "sr/d.png"]


def test_a_result_never_replaces_an_input(tree):
    with pytest.raises(ConfigError, match="would replace an input"):
        planned("photos", output="photos")
    with pytest.raises(ConfigError, match="would replace an input"):
        planned("photos/a.png", output="photos/a.png")
    os.link(tree / "photos" / "a.png", tree / "same.png")
    with pytest.raises(ConfigError, match="would replace an input"):
        planned("photos/a.png", output="same.png")
    assert planned("photos", output="photos", suffix="_x4")["photos/a.png"] == "photos/a_x4.png"


@pytest.mark.parametrize(
    ("inputs", "output", "naming", "words"),
    [
        (["photos/empty"], "sr", {}, "photos/empty holds no image; .*-r"),
        (["photos/empty"], "sr", {"recursive": True}, "name a folder with images"),
        (["photos/*.gif"], "sr", {}, r"photos/\*\.gif matches no file"),
        (["photos/*.txt"], "sr", {}, "matches no image"),
        (["photos"], "sr.png", {}, "2 images need a folder"),
        (["photos"], "sr", {"suffix": "../x"}, "--suffix is ../x: use no slash"),
        (["photos/a.png"], "sr.png", {"suffix": "_x4"}, "--suffix is _x4"),
        (
            ["photos/a.png"],
            "sr.png",
            {"format": "jpeg"},
            "--format is jpeg, but --output is sr.png",
        ),
        (
            ["photos/a.png"],
            "large/",
            {},
            r"^--output: no folder large; make it, or name a file such as large\.png$",
        ),
        (["photos/a.png"], "x.xyz", {}, r"^--output is x\.xyz: unknown suffix; use one of \.png, "),
        (["photos/a.png"], "photos/notes.txt", {}, "unknown suffix"),
        (["photos/*.jpg"], "photos/notes.txt", {}, "unknown suffix"),
        (["photos"], "photos/notes.txt", {}, "photos/notes.txt: 2 images need a folder; name one"),
        (["photos/deep"], "photos/notes.txt", {}, "the images of a folder need a folder"),
    ],
)
def test_refusals(tree, inputs, output, naming, words):
    with pytest.raises(ConfigError, match=words):
        planned(*inputs, output=output, **naming)


def test_a_format_for_a_name_that_says_none(tree):
    for name in ("webp", "same"):
        assert planned("photos/a.png", output="result", format=name) == {"photos/a.png": "result"}


def sorted_out(
    existing: str, done: set[str] = frozenset()
) -> tuple[list[str], list[tuple[str, ...]]]:
    jobs = plan_jobs([Path("photos")], Path("sr"), Naming(recursive=True)).jobs
    to_do, passed_over = sort_out(jobs, existing, lambda _, target: target.name in done)
    names = [(outcome.job.target.name, outcome.status, *outcome.notes) for outcome in passed_over]
    return [job.target.name for job in to_do], names


def test_existing_results(tree):
    assert sorted_out("error") == (["a.png", "b.png", "a.png", "c.png"], [])
    (tree / "sr").mkdir()
    (tree / "sr" / "b.png").touch()
    assert sorted_out("overwrite") == (["a.png", "b.png", "a.png", "c.png"], [])
    assert sorted_out("skip") == (["a.png", "a.png", "c.png"], [("b.png", "skipped", "exists")])
    with pytest.raises(
        ConfigError, match=r"^sr/b\.png would be replaced; add --existing overwrite"
    ):
        sorted_out("error")
    (tree / "sr" / "a.png").touch()
    with pytest.raises(ConfigError, match=r"^sr/a\.png and 1 more would be replaced"):
        sorted_out("error")
    for existing in ("error", "overwrite", "skip"):
        assert sorted_out(existing, {"a.png", "b.png"}) == (
            ["a.png", "c.png"],
            [("a.png", "skipped", "done before"), ("b.png", "skipped", "done before")],
        )


# ------------------------------------------------------------------------- with a model, twice


@pytest.fixture
def upscale(tiny_model, tmp_path, monkeypatch, capfd) -> Callable[..., tuple[int, list[str], str]]:
    """Run `allosr2 upscale` where g holds a.png, b.png and deep/c.png: exit code, results, errors."""
    for index, name in enumerate(["a.png", "b.png", "deep/c.png"], start=6):
        (tmp_path / "g" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((index, 7, 3), 99, np.uint8)).save(tmp_path / "g" / name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, list[str], str]:
        code = main(["upscale", *arguments, "--model", str(tiny_model), "--device", "cpu"])
        streams = capfd.readouterr()
        return code, streams.out.splitlines(), streams.err

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["g/*.png", "--output", "g", "--suffix", "_x4"], ["g/a_x4.png", "g/b_x4.png"]),
        (["g/**/*", "--output", "g/large"], [f"g/large/{name}.png" for name in "abc"]),
        (["g/[a]*", "--output", "there"], ["there/a.png"]),
        (["g", "--output", "link", "--suffix", "_x4"], ["link/a_x4.png", "link/b_x4.png"]),
    ],
)
def test_the_same_command_again(upscale, tmp_path, arguments, expected):
    Path("there").mkdir()
    Path("link").symlink_to("g")
    assert upscale(*arguments)[:2] == (0, expected)
    code, results, errors = upscale(*arguments)
    assert (code, results) == (0, [])
    assert "skipped" in errors
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("g", "there", "link"):
        shutil.move(name, moved / name)
    os.chdir(moved)
    assert upscale(*arguments)[:2] == (0, [])


def test_the_same_list_of_a_shell_again(upscale):
    def listed() -> list[str]:
        return sorted(str(path) for path in Path("g").glob("*.png"))

    options = ["--output", "g", "--suffix", "_x4"]
    assert upscale(*listed(), *options)[:2] == (0, ["g/a_x4.png", "g/b_x4.png"])
    assert len(listed()) == 4
    assert upscale(*listed(), *options)[:2] == (0, [])


def test_a_single_file_clears_what_a_kill_left_beside_it(upscale, tmp_path):
    left, theirs = f".allosr2-{os.getpid()}-0.part", f".allosr2-{os.getppid()}-0.part"
    new = f".allosr2-{os.getpid()}-1.part"  # maybe of another container, at work right now
    for name in (left, theirs, new):
        (tmp_path / name).touch()
    os.utime(tmp_path / left, (0, 0))
    assert upscale("g/a.png", "--output", "a.png")[:2] == (0, ["a.png"])
    assert {path.name for path in tmp_path.iterdir()} == {"g", "a.png", theirs, new}


def test_a_single_file_that_fails_leaves_no_folder(upscale, tmp_path):
    code, results, errors = upscale("missing.png", "--output", "new/sub/x.png")
    assert (code, results) == (3, [])
    assert "missing.png does not exist" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["g"]
    assert upscale("g/a.png", "--output", "new/sub/x.png")[:2] == (0, ["new/sub/x.png"])


@pytest.mark.parametrize("existing", ["error", "skip", "overwrite"])
def test_what_appears_during_the_run(upscale, monkeypatch, existing):
    target, one_step = Path("x.png"), AlloSR2.one_step

    def meanwhile(self, latents):
        if latents.device.type != "meta":  # no measurement of what a tile takes
            target.write_bytes(b"theirs")
        return one_step(self, latents)

    monkeypatch.setattr(AlloSR2, "one_step", meanwhile)
    code, results, errors = upscale("g/a.png", "--output", "x.png", "--existing", existing)
    if existing == "overwrite":
        assert (code, results) == (0, ["x.png"])
        assert Image.open(target).size == (28, 24)
    else:
        assert (code, results) == (3, [])
        assert "cannot write x.png: it exists by now; " in errors
        assert target.read_bytes() == b"theirs"
