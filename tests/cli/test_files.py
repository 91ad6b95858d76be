"""Where results go: names, trees, patterns, streams, and what is refused before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from allosr2.cli.files import Naming, Plan, plan, plan_jobs, sort_out
from allosr2.errors import ConfigError
from allosr2.pipeline import Job


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
    naming = Naming(suffix="_x4")
    photos = Path("photos")
    found = plan_jobs([photos], photos, naming, is_result=lambda path: path.name == "a_x4.png")
    assert pairs(found) == {"photos/a.png": "photos/a_x4.png", "photos/b.jpg": "photos/b_x4.png"}


def test_patterns_folders_and_files_together(tree):
    (tree / "one.bmp").touch()
    assert planned("one.bmp", "photos/*") == {
        "one.bmp": "sr/one.png",
        "photos/a.png": "sr/a.png",
        "photos/b.jpg": "sr/b.png",
    }
    assert planned("photos/**/*.PNG", "photos/deep/er") == {"photos/deep/er/c.PNG": "sr/c.png"}


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
        ConfigError, match=r"photos/a\.jpg and photos/a\.png would both .* --format same"
    ):
        planned("photos")
    assert len(planned("photos", format="same")) == 3
    (tree / "photos" / "A.jpg").touch()
    with pytest.raises(ConfigError, match=r"photos/A\.jpg and photos/a\.jpg would both be written"):
        planned("photos", format="same")


def test_an_input_named_twice_is_done_once(tree):
    assert planned("photos/a.png", "photos", "photos/./a.png") == {
        "photos/a.png": "sr/a.png",
        "photos/b.jpg": "sr/b.png",
    }


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
    ],
)
def test_refusals(tree, inputs, output, naming, words):
    with pytest.raises(ConfigError, match=words):
        planned(*inputs, output=output, **naming)


def test_a_format_for_a_name_that_says_none(tree):
    assert planned("photos/a.png", output="result", format="webp") == {"photos/a.png": "result"}


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
