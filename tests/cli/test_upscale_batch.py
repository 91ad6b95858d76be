"""`allosr2 upscale` on many files: trees, what exists, going on, reports, streams, several devices."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cli.pictures import save_noise
from PIL import Image

from allosr2.cli import main
from allosr2.imaging.size import OutputSize
from allosr2.manifest import LOCK, MANIFEST, locked
from allosr2.model import AlloSR2
from allosr2.upscaler import Upscaler


def snapshot(folder: Path) -> dict[str, bytes]:
    """The results in a folder by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("[!.]*"))
        if path.is_file()
    }


@pytest.fixture
def run(tiny_model, capfd):
    """Run `allosr2 upscale` on the CPU; gives exit code, stdout and lines of stderr."""

    def upscale(*arguments: object, device: str = "cpu") -> tuple[int, str, list[str]]:
        options = ["--model", str(tiny_model), "--device", device]
        code = main(["upscale", *map(str, arguments), *options])
        streams = capfd.readouterr()
        return code, streams.out, streams.err.splitlines()

    return upscale


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four pictures of different sizes, one in a folder inside."""
    folder = tmp_path / "photos"
    for height, name in enumerate(["a.png", "b.png", "c.png", "deep/d.png"], start=6):
        save_noise(folder / name, height)
    return folder


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """Heights of the latents that the model makes, one a picture here."""
    heights: list[int] = []
    one_step = AlloSR2.one_step

    def counted(self, latents):
        if latents.device.type != "meta":  # no measurement of what a tile takes
            heights.append(latents.shape[-2])
        return one_step(self, latents)

    monkeypatch.setattr(AlloSR2, "one_step", counted)
    return heights


def test_a_tree(run, photos, tmp_path, tiny_model):
    code, results, errors = run(photos, "-r", "--output", tmp_path / "sr", "--suffix", "_x4")
    names = ["a_x4.png", "b_x4.png", "c_x4.png", "deep/d_x4.png"]
    assert code == 0
    assert results.splitlines() == [str(tmp_path / "sr" / name) for name in names]
    assert re.fullmatch(r"allosr2: 4 of 4 images done, \d\.\d\d MP/s", *errors)
    assert sorted(snapshot(tmp_path / "sr")) == names
    expected = Upscaler.from_pretrained(tiny_model, device="cpu")(Image.open(photos / "deep/d.png"))
    found = np.asarray(Image.open(tmp_path / "sr/deep/d_x4.png"))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_the_same_command_again_does_nothing(run, photos, tmp_path, made):
    command = photos, "--output", tmp_path / "sr"
    assert run(*command)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sr").glob("[!.]*")}
    made.clear()
    code, results, errors = run(*command)
    assert (code, results, errors) == (0, "", ["allosr2: 0 of 3 images done, 3 skipped"])
    assert made == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_going_on_makes_what_is_missing_or_changed(run, photos, tmp_path, made):
    command = photos, "--output", tmp_path / "sr", "--existing", "overwrite"
    assert run(*command)[0] == 0
    before = snapshot(tmp_path / "sr")
    (tmp_path / "sr" / "a.png").unlink()
    save_noise(photos / "b.png", 11)
    made.clear()
    code, results, _ = run(*command)
    assert code == 0
    assert [Path(line).name for line in results.splitlines()] == ["a.png", "b.png"]
    assert len(made) == 2
    after = snapshot(tmp_path / "sr")
    assert (after["a.png"], after["c.png"]) == (before["a.png"], before["c.png"])
    assert Image.open(tmp_path / "sr" / "b.png").size == (36, 44)


def test_other_settings_are_another_run(run, photos, tmp_path):
    command = photos, "--output", tmp_path / "sr"
    assert run(*command)[0] == 0
    before = snapshot(tmp_path / "sr")
    code, results, errors = run(*command, "--scale", 2)
    assert (code, results) == (2, "")
    assert f"{tmp_path / 'sr' / 'a.png'} and 2 more would be replaced" in errors[0]
    assert snapshot(tmp_path / "sr") == before
    assert run(*command, "--scale", 2, "--existing", "skip")[0] == 0
    assert snapshot(tmp_path / "sr") == before
    assert run(*command, "--scale", 2, "--existing", "overwrite")[0] == 0
    assert Image.open(tmp_path / "sr" / "a.png").size == (18, 12)


def test_an_existing_file_is_refused_before_a_model_is_loaded(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Upscaler, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    target = save_noise(tmp_path / "sr" / "b.png")
    before = target.read_bytes()
    for output, inputs in ((target.parent, photos), (target, photos / "a.png")):
        code, results, errors = run(inputs, "--output", output)
        assert (code, results, len(errors)) == (2, "", 1)
        assert f"{target} would be replaced; add --existing overwrite" in errors[0]
    assert target.read_bytes() == before
    assert [path.name for path in target.parent.iterdir()] == ["b.png"]


def test_a_single_file_that_exists(run, photos, tmp_path):
    target = tmp_path / "sr.png"
    assert run(photos / "a.png", "--output", target)[0] == 0
    before = target.read_bytes()
    code, results, errors = run(photos / "b.png", "--output", target, "--existing", "skip")
    assert (code, results, errors) == (0, "", [f"allosr2: {target}: skipped, exists"])
    assert target.read_bytes() == before
    assert run(photos / "b.png", "--output", target, "--existing", "overwrite")[0] == 0
    assert target.read_bytes() != before
    assert not (tmp_path / MANIFEST).exists()


def test_results_beside_their_inputs(run, photos):
    command = photos, "--output", photos, "--suffix", "_x4"
    assert run(*command)[0] == 0
    once = snapshot(photos)
    assert len(once) == 7
    assert run(*command)[0] == 0
    assert snapshot(photos) == once


def test_a_failed_file_is_tried_again(run, photos, tmp_path):
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:60])
    command = photos, "--output", tmp_path / "sr"
    assert run(*command)[0] == 3
    (photos / "b.png").write_bytes(whole)
    code, results, errors = run(*command)
    assert (code, results) == (0, f"{tmp_path / 'sr' / 'b.png'}\n")
    assert errors[-1].startswith("allosr2: 1 of 3 images done, 2 skipped")


def test_one_run_a_folder(run, photos, tmp_path):
    (tmp_path / "sr").mkdir()
    with locked(tmp_path / "sr"):
        code, _, errors = run(photos, "--output", tmp_path / "sr")
    assert code == 2
    assert "another run is writing into" in errors[0]


def test_several_devices_make_the_same_files(run, photos, tmp_path):
    assert run(photos, "-r", "--output", tmp_path / "one")[0] == 0
    code, results, _ = run(photos, "-r", "--output", tmp_path / "two", device="cpu,cpu")
    assert code == 0
    assert len(results.splitlines()) == 4
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
    code, _, errors = run(photos, "--output", tmp_path / "three", device="cpu,cuda")
    assert code == 2
    assert "name one kind" in errors[0]


def test_the_report(run, photos, tmp_path):
    (photos / "b.png").write_bytes(b"")
    (tmp_path / "sr").mkdir()
    save_noise(tmp_path / "sr" / "c.png")
    report = tmp_path / "report.json"
    command = photos, "--output", tmp_path / "sr", "--existing", "skip", "--quality", 90
    assert run(*command, "--json", report)[0] == 3
    found = json.loads(report.read_text())
    first, second, third = found["files"]
    assert first.pop("seconds") > 0
    assert first == {
        "source": str(photos / "a.png"),
        "target": str(tmp_path / "sr" / "a.png"),
        "status": "done",
        "error": None,
        "input": {"width": 9, "height": 6},
        "output": {"width": 36, "height": 24},
        "bytes": (tmp_path / "sr" / "a.png").stat().st_size,
        "notes": [],
    }
    assert (second["status"], second["output"]) == ("failed", None)
    assert "b.png is empty" in second["error"]
    assert (third["status"], third["notes"]) == ("skipped", ["exists"])
    totals = found["totals"]
    assert (totals["done"], totals["skipped"], totals["failed"]) == (1, 1, 1)
    assert totals["megapixels"] == 36 * 24 / 1e6
    assert found["settings"]["tile"] % 16 == 0  # what `auto` came to
    assert found["settings"]["quality"] == 90
    assert set(found["versions"]) == {"allosr2", "torch", "python"}
    assert found["interrupted"] is False

    _, results, _ = run(*command, "--json", "-")  # the document alone
    assert [file["status"] for file in json.loads(results)["files"]] == [
        "skipped",
        "failed",
        "skipped",
    ]
    assert run(*command, "--json", tmp_path / "new" / "report.json")[0] == 3
    assert json.loads((tmp_path / "new" / "report.json").read_text())["files"]


@pytest.mark.parametrize("report", ["photos/a.png", "sr/a.png", "other.jpg", "sr", "photos"])
def test_a_report_that_would_replace_an_image_or_a_folder(run, photos, tmp_path, report):
    before = snapshot(photos)
    (tmp_path / "sr").mkdir()
    command = photos / "a.png", "--output", tmp_path / "sr" / "a.png", "--json", tmp_path / report
    code, results, errors = run(*command)
    assert (code, results) == (2, "")
    assert re.search(r"--json is .*: that is (an image|a folder); name a file", *errors)
    assert snapshot(photos) == before
    assert snapshot(tmp_path / "sr") == {}


def test_a_report_that_cannot_be_written_hides_no_failure(run, photos, tmp_path):
    (photos / "b.png").write_bytes(b"")
    (tmp_path / "file").touch()
    report = tmp_path / "file" / "report.json"
    code, _, errors = run(photos, "--output", tmp_path / "sr", "--json", report)
    assert code == 2
    assert "b.png is empty" in errors[0]
    assert f"{report} cannot be written" in errors[1]


def test_a_report_goes_with_a_run(run, photos, tmp_path):
    code, _, errors = run(photos, "--output", tmp_path / "sr", "--dry-run", "--json", "-")
    assert (code, len(errors)) == (2, 1)
    assert "--dry-run is none" in errors[0]


def test_a_dry_run(run, photos, tmp_path, tiny_model):
    (photos / "b.png").write_bytes(b"no image")
    (tmp_path / "sr").mkdir()
    save_noise(tmp_path / "sr" / "c.png")
    command = photos, "--output", tmp_path / "sr", "--existing", "skip", "--dry-run"
    code, results, errors = run(*command, "--tile", 32)
    assert code == 3
    assert "b.png" in errors[0]
    first, second, last = results.splitlines()
    target = tmp_path / "sr" / "a.png"
    plan = Upscaler.from_pretrained(tiny_model, device="cpu", tile=32).plan(6, 9, OutputSize())
    assert plan.tiles > 1
    expected = rf"{photos}/a\.png -> {target}: 36 x 24 px, {plan.tiles} tiles, \d+\.\d GB, \d+ s"
    assert re.fullmatch(expected, first)
    assert second == f"{photos}/c.png -> {tmp_path}/sr/c.png: skipped, exists"
    most = f"in tiles of {plan.tile[1]} x {plan.tile[0]} px at most"
    assert last.startswith(f"1 to do, 1 skipped, 1 unreadable: 0.0 MP {most}, ")
    assert [path.name for path in (tmp_path / "sr").iterdir()] == ["c.png"]

    assert run(photos / "a.png", "--output", tmp_path / "none" / "a.png", "--dry-run")[0] == 0
    assert not (tmp_path / "none").exists()


def test_stdin_and_stdout(photos, tmp_path, tiny_model, monkeypatch, capfdbinary):
    picture = (photos / "a.png").read_bytes()
    target = tmp_path / "sr.png"
    options = ["--model", str(tiny_model), "--device", "cpu"]
    assert main(["upscale", str(photos / "a.png"), "--output", str(target), *options]) == 0
    assert capfdbinary.readouterr().out == f"{target}\n".encode()

    for output, format_options in (("-", []), ("-", ["--format", "same"])):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(picture)))
        assert main(["upscale", "-", "--output", output, *format_options, *options]) == 0
        assert capfdbinary.readouterr() == (target.read_bytes(), b"")

    arguments = [str(photos / "a.png"), "--output", "-", "--format", "webp"]
    assert main(["upscale", *arguments, *options]) == 0
    found = Image.open(io.BytesIO(capfdbinary.readouterr().out))
    assert found.format == "WEBP"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(Image.open(target)))

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(picture[:50])))
    assert main(["upscale", "-", "--output", "-", *options]) == 3
    assert capfdbinary.readouterr().out == b""


def test_stdout_takes_one_thing(run, photos):
    code, _, errors = run(photos / "a.png", "--output", "-", "--json", "-")
    assert code == 2
    assert "stdout takes one" in errors[0]


def test_stdout_that_is_a_terminal(run, photos, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, results, errors = run(photos / "a.png", "--output", "-")
    assert (code, results) == (2, "")
    assert "a terminal here" in errors[0]


def test_formats(run, photos, tmp_path):
    assert run(photos, "--output", tmp_path / "sr", "--format", "jpeg")[0] == 0
    assert sorted(snapshot(tmp_path / "sr")) == ["a.jpg", "b.jpg", "c.jpg"]
    assert Image.open(tmp_path / "sr" / "a.jpg").format == "JPEG"
    assert run(photos / "a.png", "--output", tmp_path / "result", "--format", "webp")[0] == 0
    assert Image.open(tmp_path / "result").format == "WEBP"
    assert run(photos / "a.png", "--output", tmp_path / "as_it_was", "--format", "same")[0] == 0
    assert Image.open(tmp_path / "as_it_was").format == "PNG"


def test_metadata_is_stripped(run, tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    source = tmp_path / "lr.jpg"
    Image.fromarray(np.full((6, 9, 3), 99, np.uint8)).save(source, exif=exif)
    for name, options, camera in (("a", (), "a camera"), ("b", ("--strip-metadata",), None)):
        assert run(source, "--output", tmp_path / f"{name}.png", *options)[0] == 0
        assert Image.open(tmp_path / f"{name}.png").getexif().get(0x010F) == camera


def test_inputs_that_ask_too_much(run, photos, tmp_path):
    code, _, errors = run(photos, "--output", tmp_path / "sr", "--max-megapixels", 60e-6)
    assert code == 3
    assert [name for name in ("a.png", "b.png", "c.png") if name in "".join(errors[:-1])] == [
        "b.png",
        "c.png",
    ]
    assert sorted(snapshot(tmp_path / "sr")) == ["a.png"]
    limits = [f"--max-{name}" for name in ("megapixels", "megabytes", "seconds")]
    everything = [word for limit in limits for word in (limit, "inf")]
    assert run(photos, "--output", tmp_path / "all", *everything)[0] == 0
    for limit in limits:
        for value in ("0", "-5", "nan"):
            code, _, errors = run(photos, "--output", tmp_path / "none", f"{limit}={value}")
            assert code == 2
            assert re.search(r"limit of \w+ is .*: use a number above 0, or inf", *errors)


def test_a_result_that_memory_cannot_hold(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("allosr2.upscaler.free_memory", lambda _: 36 * 24 * 3 - 1)
    code, _, errors = run(photos / "a.png", "--output", tmp_path / "a.png")
    assert code == 3
    assert (
        "the result, 36 x 24 px, takes 0.0 GB and 0.0 GB are free; ask for a smaller" in errors[0]
    )
    assert not (tmp_path / "a.png").exists()


def test_names_that_stdout_cannot_encode(photos, tmp_path, tiny_model):
    (photos / "a.png").rename(photos / "ä 日本.png")
    target = tmp_path / "sr"
    command = [sys.executable, "-m", "allosr2", "upscale", photos, "--output", target]
    done = subprocess.run(
        [*map(str, command), "--model", str(tiny_model), "--device", "cpu"],
        env=os.environ | {"PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=True,
        text=True,
    )
    assert f"{target}/\\xe4 \\u65e5\\u672c.png" in done.stdout.splitlines()
    assert sorted(snapshot(target)) == ["b.png", "c.png", "ä 日本.png"]


def test_the_tile_of_an_interrupted_run_is_taken_again(run, photos, tmp_path):
    command = photos, "--output", tmp_path / "sr"
    assert run(*command)[0] == 0
    manifest = tmp_path / "sr" / MANIFEST
    lines = manifest.read_text().splitlines()
    begun = json.loads(lines[0])
    begun["begun"]["tile"] = 32  # as if there had been less memory then
    manifest.write_text("\n".join([json.dumps(begun), *lines[1:]]) + "\n")
    (tmp_path / "sr" / "a.png").unlink()
    assert run(*command)[0] == 0
    alone = tmp_path / "alone.png"
    assert run(photos / "a.png", "--output", alone, "--tile", 32)[0] == 0
    assert (tmp_path / "sr" / "a.png").read_bytes() == alone.read_bytes()


def test_an_interrupted_folder_says_how_to_go_on(run, photos, tmp_path, monkeypatch):
    one_step, calls = AlloSR2.one_step, []

    def interrupt(self, latents):
        calls.append(latents)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return one_step(self, latents)

    report = tmp_path / "report.json"
    with monkeypatch.context() as patched:
        patched.setattr(AlloSR2, "one_step", interrupt)
        code, _, errors = run(photos, "--output", tmp_path / "sr", "--json", report)
    assert code == 130
    assert len(errors) == 1
    assert re.fullmatch(
        r"allosr2: interrupted, [01] of 3 images done.*; the same command goes on from there",
        errors[0],
    )
    assert json.loads(report.read_text())["interrupted"] is True
    assert run(photos, "--output", tmp_path / "sr")[0] == 0
    assert run(photos, "--output", tmp_path / "undisturbed")[0] == 0
    assert snapshot(tmp_path / "sr") == snapshot(tmp_path / "undisturbed")
    hidden = {path.name for path in (tmp_path / "sr").glob(".*")}
    assert MANIFEST in hidden <= {LOCK, MANIFEST}
