"""`allosr2 bench`: a set checked in a line, and a synthetic one that is the same bytes whenever it is made."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.cli import main
from allosr2.data.degradation import degrade, preset, sample_degradation
from allosr2.evaluation import synthetic

SIZES = {"0801.png": (515, 530), "0802.png": (512, 512)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / name
        )
    return folder


def command(photos: Path, output: Path, *options: str) -> list[str]:
    paths = ["--source", str(photos), "--output", str(output)]
    return ["bench", "prepare", "div2k-val", *paths, "--crops", "3", *options]


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("made") / "deep" / "set"
    assert main(command(photos, output)) == 0
    return output


def contents(output: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != ".allosr2.lock"
    }


def test_what_is_made(photos, made):
    names = ["0801_pch00000.png", "0801_pch00002.png", "0802_pch00001.png"]
    expected = {f"{part}/{name}" for part in ("hr", "lr") for name in names} | {"set.json"}
    assert contents(made).keys() == expected
    for name in names:
        photo = np.asarray(Image.open(photos / f"{name[:4]}.png"))
        hr = Image.open(made / "hr" / name)
        assert (hr.size, hr.mode) == ((512, 512), "RGB")
        places = [
            (top, left)
            for top in range(photo.shape[0] - 511)
            for left in range(photo.shape[1] - 511)
            if np.array_equal(photo[top : top + 512, left : left + 512], np.asarray(hr))
        ]
        assert len(places) == 1
    assert not np.array_equal(*(np.asarray(Image.open(made / "hr" / name)) for name in names[:2]))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_lr_images_are_the_presets_degradations_by_seed_and_index(made, one_thread):
    for path in sorted((made / "hr").iterdir()):
        index = int(path.stem[-5:])
        levels = torch.from_numpy(np.asarray(Image.open(path)).copy())
        hr = levels.permute(2, 0, 1)[None].contiguous().float() / 255
        lr = degrade(hr, [sample_degradation(preset("stablesr"), 0, index)], 4)
        expected = (lr[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        assert np.array_equal(np.asarray(Image.open(made / "lr" / path.name)), expected)


def test_the_record(photos, made):
    record = json.loads((made / "set.json").read_text())
    note = record.pop("note")
    assert "not with published ones" in note
    assert record == {
        "set": "div2k-val",
        "preset": "stablesr",
        "seed": 0,
        "crops": 3,
        "hr_side": 512,
        "lr_side": 128,
        "allosr2": version("allosr2"),
        "sources": {
            name: hashlib.sha256((photos / name).read_bytes()).hexdigest() for name in SIZES
        },
        "complete": True,
    }


def test_again_elsewhere_and_with_other_threads_it_is_the_same_bytes(
    photos, made, tmp_path, capsys
):
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert main(command(photos, tmp_path / "again")) == 0
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "again") == contents(made)
    streams = capsys.readouterr()
    assert streams.err == ""
    (line,) = streams.out.splitlines()
    assert line.startswith(f"{tmp_path / 'again'}: 3 pairs, preset stablesr; crops of one's own: ")
    assert "not with published ones" in line


def test_a_pair_does_not_depend_on_how_many_there_are(photos, made, tmp_path):
    assert main(command(photos, tmp_path / "set", "--crops", "2")) == 0
    few, all_ = contents(tmp_path / "set"), contents(made)
    assert {name for name in all_ if name not in few} == {
        "hr/0801_pch00002.png",
        "lr/0801_pch00002.png",
    }
    del few["set.json"]
    assert few.items() <= all_.items()


def test_seed_and_preset_make_other_pairs(photos, made, tmp_path):
    before = contents(made)
    for options, parts in ((("--seed", "1"), ("hr", "lr")), (("--preset", "mild"), ("lr",))):
        output = tmp_path / options[1]
        assert main(command(photos, output, "--crops", "1", *options)) == 0
        changed = {name for name, content in contents(output).items() if content != before[name]}
        assert changed == {"set.json", *(f"{part}/0801_pch00000.png" for part in parts)}


@pytest.mark.parametrize("writes", [0, 1, 2, 5])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(
    photos, made, tmp_path, monkeypatch, capsys, writes
):
    """Stopped between two writes, each of which is whole or absent, as a kill would."""
    output = tmp_path / "set"
    written: list[Path] = []
    write_image = synthetic.write_image

    def write(target: Path, picture: object) -> None:
        if len(written) == writes:
            raise KeyboardInterrupt
        write_image(target, picture)
        written.append(target)

    monkeypatch.setattr(synthetic, "write_image", write)
    assert main(command(photos, output)) == 130
    assert json.loads((output / "set.json").read_text())["complete"] is False
    assert contents(made).items() >= {
        (name, content) for name, content in contents(output).items() if name != "set.json"
    }
    monkeypatch.undo()
    times = {path: path.stat().st_mtime_ns for path in written[: writes // 2 * 2]}
    capsys.readouterr()
    assert main(command(photos, output)) == 0
    assert contents(output) == contents(made)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    errors = capsys.readouterr().err.splitlines()
    assert errors == (
        [f"allosr2: {writes // 2} of 3 pairs were there already"] if writes > 1 else []
    )


def test_what_was_taken_out_is_made_again(photos, made, tmp_path, capsys):
    output = tmp_path / "set"
    shutil.copytree(made, output)
    (output / "lr" / "0802_pch00001.png").unlink()
    (output / "hr" / ".allosr2-99999999-ab.part").touch()  # of a process that is gone
    assert main(command(photos, output)) == 0
    assert contents(output) == contents(made)
    assert "2 of 3 pairs were there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "1"], "its pairs are of seed 0, and now 1; name another folder"),
        (["--preset", "mild"], "its pairs are of preset stablesr, and now mild; "),
        (["--crops", "4"], "its pairs are of crops 3, and now 4; "),
    ],
)
def test_other_settings_in_the_same_folder(photos, made, capsys, options, words):
    before = contents(made)
    assert main(command(photos, made, *options)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"allosr2: error: --output is {made}: ")
    assert words in line
    assert contents(made) == before


def test_other_photographs_or_another_version_in_the_same_folder(photos, made, tmp_path, capsys):
    others = tmp_path / "others"
    shutil.copytree(photos, others)
    Image.new("RGB", (512, 512)).save(others / "0802.png")
    assert main(command(others, made)) == 2
    assert "its pairs are of other photographs; name another folder" in capsys.readouterr().err
    output = tmp_path / "set"
    shutil.copytree(made, output)
    record = json.loads((output / "set.json").read_text())
    (output / "set.json").write_text(json.dumps({**record, "allosr2": "0.0.1"}))
    assert main(command(photos, output)) == 2
    assert "of allosr2 0.0.1, and now" in capsys.readouterr().err
    for broken in ("{", "[]"):
        (output / "set.json").write_text(broken)
        assert main(command(photos, output)) == 2
        assert f"{output / 'set.json'} cannot be read (" in capsys.readouterr().err
    (output / "set.json").unlink()
    assert main(command(photos, output)) == 2
    assert "0801_pch00000.png is there, and no set.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["realsr"], 2, "RealSR cannot be made, only downloaded, as it is part of the test sets"),
        (["div2k"], 2, "set 'div2k' is unknown: use div2k-val, "),
        (["div2k-val", "--crops", "0"], 2, "--crops is 0: use 1 or more"),
        (["div2k-val", "--seed", "-1"], 2, "--seed is -1: use 0 or more"),
        (["div2k-val", "--preset", "stable"], 2, "preset 'stable' is unknown: choose stablesr,"),
        (["div2k-val", "--source", "absent"], 5, "absent is no folder; name that of DIV2K's"),
        (["div2k-val", "--source", "empty"], 5, "empty holds no photograph; name that of"),
        (["div2k-val", "--source", "small"], 5, "small/b.png is 600 x 511 px, which holds no crop"),
        (["div2k-val", "--source", "torn"], 3, "torn/a.png is no readable image"),
        (["div2k-val", "--source", "set/hr"], 2, "would lie among the photographs; name another"),
        (["div2k-val", "--output", "file"], 2, "file cannot be made (Not a directory)"),
    ],
)
def test_refusals(photos, tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    Path("small").mkdir()
    for name, size in (("a", (512, 512)), ("b", (600, 511))):
        Image.new("RGB", size).save(f"small/{name}.png")
    Path("torn").mkdir()
    Path("torn/a.png").write_text("a text")
    before = sorted(tmp_path.rglob("*"))
    name, *options = arguments
    defaults = {"--source": str(photos), "--output": "set"}
    given = dict(zip(options[::2], options[1::2], strict=True))
    flat = [word for pair in (defaults | given).items() for word in pair]
    assert main(["bench", "prepare", name, *flat]) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert line.startswith("allosr2: error: ")
    assert words in line
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_prepared_is_all_there(made, capsys):
    assert main(["bench", "check", "div2k-val", "--folder", str(made)]) == 0
    line = f"DIV2K-Val: 3 images of 128 px in {made / 'lr'}, and of 512 px in {made / 'hr'}; "
    assert capsys.readouterr().out.startswith(f"{line}crops of one's own: ")


def test_check_names_what_is_wrong(made, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    next(iter((copy / "lr").iterdir())).unlink()
    assert main(["bench", "check", "div2k-val", "--folder", str(copy)]) == 5
    assert "has no partner in" in capsys.readouterr().err
    (copy / "set.json").unlink()
    shutil.rmtree(copy / "lr")
    shutil.copytree(made / "lr", copy / "lr")
    assert main(["bench", "check", "div2k-val", "--folder", str(copy)]) == 5
    assert capsys.readouterr().err.startswith(
        f"allosr2: error: {copy / 'lr'} holds 3 images, DIV2K-Val has 3000; "
    )
    assert main(["bench", "check", "div2k", "--folder", str(made)]) == 2


def test_check_says_what_is_there(tmp_path, capsys):
    for index in range(1, 251):
        save = tmp_path / "RealLQ250" / "lq" / f"{index:03d}.png"
        save.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (256, 256)).save(save)
    assert main(["bench", "check", "reallq250", "--folder", str(tmp_path)]) == 0
    line = f"RealLQ250: 250 images of 256 px in {tmp_path / 'RealLQ250' / 'lq'}"
    assert capsys.readouterr().out.splitlines() == [line]
    (tmp_path / "RealLQ250" / "set.json").write_text('{"crops": 250}')
    assert main(["bench", "check", "reallq250", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{line}; crops of one's own: ")


def test_check_realsr(shared_data, capsys):
    folder = shared_data / "realsr"
    assert main(["bench", "check", "realsr", "--folder", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"RealSR: 100 images of 128 px in {folder / 'lr'}, and of 512 px in {folder / 'hr'}"
    ]


def test_bench_needs_a_verb(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["bench"])
    assert exit_.value.code == 2
    assert "prepare" in capsys.readouterr().err
