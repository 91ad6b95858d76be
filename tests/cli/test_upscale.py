"""`allosr2 upscale`, run in process: where results go, and what a bad input costs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from allosr2.cli import main
from allosr2.model import AlloSR2
from allosr2.upscaler import Upscaler


def save_picture(path: Path, height: int = 6, width: int = 9) -> Path:
    path.parent.mkdir(exist_ok=True)
    levels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


@pytest.fixture
def run(tiny_model, capsys):
    """Run `allosr2 upscale`; gives exit code, lines of stdout and lines of stderr."""

    def upscale(*arguments: object, model: object = tiny_model) -> tuple[int, list[str], list[str]]:
        code = main(["upscale", *map(str, arguments), "--model", str(model), "--device", "cpu"])
        streams = capsys.readouterr()
        return code, streams.out.splitlines(), streams.err.splitlines()

    return upscale


def assert_refused(result, code: int, *words: str) -> None:
    """One line on stderr, this exit code, nothing on stdout."""
    found, results, errors = result
    assert found == code
    assert results == []
    assert len(errors) == 1
    assert errors[0].startswith("allosr2: error: ")
    for word in words:
        assert word in errors[0]


def test_one_file_to_a_file(run, tiny_model, tmp_path):
    source, target = save_picture(tmp_path / "lr.png"), tmp_path / "new" / "sr.webp"
    assert run(source, "--output", target) == (0, [str(target)], [])
    expected = Upscaler.from_pretrained(tiny_model, device="cpu")(Image.open(source))
    np.testing.assert_array_equal(np.asarray(Image.open(target)), np.asarray(expected))


def test_scale_and_seed(run, tmp_path):
    source = save_picture(tmp_path / "lr.png")
    once, twice = tmp_path / "a.png", tmp_path / "b.png"
    assert run(source, "--output", once, "--scale", 3)[0] == 0
    assert run(source, "--output", twice, "--scale", 3, "--seed", 5)[0] == 0
    assert Image.open(once).size == (27, 18)
    assert once.read_bytes() == twice.read_bytes()


def test_one_file_into_a_folder_keeps_its_name(run, tmp_path):
    source = save_picture(tmp_path / "lr.jpg")
    (tmp_path / "results").mkdir()
    target = tmp_path / "results" / "lr.png"
    assert run(source, "--output", target.parent)[:2] == (0, [str(target)])
    assert Image.open(target).size == (36, 24)


def test_a_bad_file_stops_no_other(run, tmp_path):
    for name in ("a.png", "c.png", "d.png"):
        save_picture(tmp_path / "lr" / name)
    (tmp_path / "lr" / "b.png").write_bytes(b"")
    whole = (tmp_path / "lr" / "d.png").read_bytes()
    (tmp_path / "lr" / "d.png").write_bytes(whole[: len(whole) // 2])
    code, results, errors = run(tmp_path / "lr", "--output", tmp_path / "sr")
    assert code == 3
    assert results == [str(tmp_path / "sr" / name) for name in ("a.png", "c.png")]
    assert sorted(path.name for path in (tmp_path / "sr").glob("[!.]*")) == ["a.png", "c.png"]
    assert len(errors) == 3
    assert "b.png is empty" in errors[0]
    assert "d.png cannot be decoded" in errors[1]
    assert re.fullmatch(r"allosr2: 2 of 4 images done, 2 failed, \d\.\d\d MP/s", errors[2])


def test_several_files_need_a_folder(run, tmp_path):
    sources = [save_picture(tmp_path / name) for name in ("a.png", "b.png")]
    target = tmp_path / "sr.png"
    assert_refused(run(*sources, "--output", target), 2, "--output", "2 images need a folder")
    assert not target.exists()


def test_results_of_one_name_are_refused(run, tmp_path):
    sources = [save_picture(tmp_path / name) for name in ("a.png", "a.jpg")]
    result = run(*sources, "--output", tmp_path / "sr")
    assert_refused(result, 2, str(sources[0]), str(sources[1]))
    assert not (tmp_path / "sr").exists()


@pytest.mark.parametrize("target", ["a.png", "."])
def test_an_input_is_never_replaced(run, tmp_path, target):
    source = save_picture(tmp_path / "a.png")
    before = source.read_bytes()
    assert_refused(run(source, "--output", tmp_path / target), 2, "would replace an input")
    assert source.read_bytes() == before


def test_inputs_that_are_no_inputs(run, tmp_path):
    save_picture(tmp_path / "lr" / "a.png")
    (tmp_path / "empty").mkdir()
    output = ("--output", tmp_path / "sr")
    assert_refused(run(*output), 2, "no input")
    assert_refused(run(tmp_path / "empty", *output), 2, "no image")
    assert_refused(run(tmp_path / "lr", tmp_path / "empty", *output), 2, "empty holds no image")
    assert not (tmp_path / "sr").exists()


def test_files_that_are_no_images(run, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image at all")
    whole = save_picture(tmp_path / "whole.png", 40, 40).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    target = tmp_path / "sr.png"
    for name, word in [
        ("missing.png", "does not exist"),
        ("empty.png", "is empty"),
        ("text.png", "no readable image"),
        ("truncated.png", "truncated"),
    ]:
        assert_refused(run(tmp_path / name, "--output", target), 3, name, word)
        assert not target.exists()


def test_targets_that_cannot_be_written(run, tmp_path):
    source = save_picture(tmp_path / "lr.png")
    assert_refused(run(source, "--output", tmp_path / "sr.xyz"), 2, "unknown suffix")
    result = run(source, "--output", source / "folder" / "sr.png")  # a file stands in its place
    assert_refused(result, 3, "Not a directory")
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]


def test_settings_that_cannot_work(run, tmp_path):
    source, target = save_picture(tmp_path / "lr.png"), tmp_path / "sr.png"
    for option, value, word in [
        ("--scale", 0, "scale is 0"),
        ("--scale", 100, "scale is 100"),
        ("--tile", 100, "multiple of 16"),
    ]:
        assert_refused(run(source, "--output", target, option, value), 2, word)
    assert not target.exists()


def test_a_mistyped_model_leaves_no_folder(run, tmp_path):
    source = save_picture(tmp_path / "lr.png")
    result = run(source, "--output", tmp_path / "new" / "sr.png", model=tmp_path / "typo")
    assert_refused(result, 4, "typo")
    assert not (tmp_path / "new").exists()


def copy_model(model: Path, folder: Path, **fields: object) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((folder / "allosr2.json").read_text()) | fields
    (folder / "allosr2.json").write_text(json.dumps(config))
    return folder


def test_models_that_cannot_be_loaded(run, tiny_model, tiny_base, tmp_path):
    from diffusers import FluxTransformer2DModel

    source, target = save_picture(tmp_path / "lr.png"), tmp_path / "sr.png"
    (tmp_path / "nothing").mkdir()

    other = shutil.copytree(tiny_base, tmp_path / "other_base")
    shape = FluxTransformer2DModel.load_config(tiny_base, subfolder="transformer")
    FluxTransformer2DModel.from_config(shape | {"num_attention_heads": 1}).save_pretrained(
        other / "transformer"
    )
    broken = shutil.copytree(tiny_base, tmp_path / "broken_base")
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["proj_out.bias"][0] = torch.nan
    save_file(tensors, weights, {"format": "pt"})

    for model, words in [
        ("no-such-model", ("no-such-model", "no such model")),
        (tmp_path / "nothing", ("nothing", "no allosr2.json")),
        (copy_model(tiny_model, tmp_path / "a", base=str(other)), ("do not fit the base",)),
        (copy_model(tiny_model, tmp_path / "b", base=str(broken)), ("proj_out.bias", "NaN")),
        (copy_model(tiny_model, tmp_path / "c", t_star=2), ("t_star",)),
        (copy_model(tiny_model, tmp_path / "d", base="/no/base"), ("/no/base",)),
    ]:
        assert_refused(run(source, "--output", target, model=model), 4, *words)
        assert not target.exists()


def test_interruption_leaves_nothing(run, tmp_path, monkeypatch):
    def interrupt(self, latents):
        raise KeyboardInterrupt

    monkeypatch.setattr(AlloSR2, "one_step", interrupt)
    source = save_picture(tmp_path / "lr.png")
    code, results, errors = run(source, "--output", tmp_path / "sr.png")
    assert (code, results, errors) == (130, [], ["allosr2: interrupted"])
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]


def test_a_result_that_is_not_finite_is_not_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(AlloSR2, "one_step", lambda _, latents: latents * float("nan"))
    source = save_picture(tmp_path / "lr.png")
    assert_refused(run(source, "--output", tmp_path / "sr.png"), 3, "lr.png", "not finite")
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]
