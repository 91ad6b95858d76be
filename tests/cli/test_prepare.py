"""`allosr2 prepare`: the file that it writes, and that nothing is lost where it cannot write one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from allosr2.cli import main


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_flux import save_flux

    return save_flux(tmp_path_factory.mktemp("flux") / "FLUX.1-dev")


@pytest.fixture
def no_encoding(monkeypatch):
    """Encoders that must not be loaded."""

    def fail(*_):
        raise AssertionError("encoders were loaded")

    monkeypatch.setattr("allosr2.backbones.prompt.encode_prompt", fail)


def test_the_file_is_what_t5_and_clip_make_of_no_text(flux, tmp_path, capsys):
    from tiny_pipelines import CLIP_IDS, t5_ids
    from transformers import CLIPTextModel, T5EncoderModel

    from allosr2.model import load_conditioning

    output = tmp_path / "new" / "prompt.safetensors"
    arguments = ["prepare", "--base", str(flux), "--output", str(output), "--tokens", "7"]
    assert main(arguments) == 0
    streams = capsys.readouterr()
    t5 = T5EncoderModel.from_pretrained(flux / "text_encoder_2", dtype=torch.bfloat16)
    clip = CLIPTextModel.from_pretrained(flux / "text_encoder", dtype=torch.bfloat16)
    with torch.no_grad():
        prompt = t5(torch.tensor([t5_ids(7)])).last_hidden_state[0]
        pooled = clip(torch.tensor([CLIP_IDS])).pooler_output[0]
    found = load_conditioning(output)
    assert torch.equal(found.prompt, prompt.float())
    assert torch.equal(found.pooled, pooled.float())
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    assert streams.out.splitlines() == [str(output)]
    logged = " ".join(streams.err.split())
    assert "7 tokens of width 24, pooled embedding of width 10" in logged
    assert "FLUX.1 [dev] Non-Commercial License" in logged


def test_the_file_suits_the_transformer_of_its_base(flux, tmp_path, monkeypatch):
    from allosr2.backbones.base import load_transformer, velocity_of
    from allosr2.model import load_conditioning

    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--base", str(flux)]) == 0
    conditioning = load_conditioning(tmp_path / "conditioning.safetensors")
    assert conditioning.prompt.shape == (512, 24)
    velocity = velocity_of(load_transformer(str(flux)), conditioning, guidance=1.0)
    with torch.no_grad():
        v = velocity(torch.zeros(1, 4, 4, 4), torch.tensor([0.5]))
    assert v.shape == (1, 4, 4, 4)


def test_transformer_and_vae_may_be_absent(flux, tmp_path, capsys):
    base = shutil.copytree(flux, tmp_path / "base")
    shutil.rmtree(base / "transformer")
    shutil.rmtree(base / "vae")
    output = tmp_path / "prompt.safetensors"
    assert main(["prepare", "--base", str(base), "--output", str(output), "--tokens", "3"]) == 0
    assert output.is_file()


def test_permissions_are_those_of_any_new_file(flux, tmp_path):
    (tmp_path / "any").write_text("")
    output = tmp_path / "prompt.safetensors"
    assert main(["prepare", "--base", str(flux), "--output", str(output), "--tokens", "1"]) == 0
    assert output.stat().st_mode == (tmp_path / "any").stat().st_mode


def refusal(base: Path | str, output: Path, capsys, *options: str) -> tuple[int, str]:
    """Exit code and error of a run that prints nothing but one line."""
    code = main(["prepare", "--base", str(base), "--output", str(output), *options])
    streams = capsys.readouterr()
    assert streams.out == ""
    (line,) = streams.err.splitlines()
    assert line.startswith("allosr2: error: ")
    return code, line


def test_an_output_in_no_folder_is_refused_before_encoders_are_loaded(
    flux, tmp_path, capsys, no_encoding
):
    (tmp_path / "file").write_text("mine")
    output = tmp_path / "file" / "prompt.safetensors"
    code, line = refusal(flux, output, capsys)
    assert code == 2
    assert f"--output is {output}: " in line
    assert "choose a folder that is writable" in line


def test_an_output_in_a_folder_that_cannot_be_written_is_refused_likewise(
    flux, tmp_path, capsys, no_encoding, monkeypatch
):
    def read_only(*_, **__):  # permissions do not stop root, who may run this
        raise PermissionError(13, "Permission denied")

    # the package has a function of this name
    module = import_module("allosr2.cli.prepare")
    monkeypatch.setattr(module, "TemporaryFile", read_only)
    code, line = refusal(flux, tmp_path / "prompt.safetensors", capsys)
    assert code == 2
    assert "Permission denied" in line


def test_only_a_file_is_replaced(flux, tmp_path, capsys, no_encoding):
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    for output in (folder, pipe):
        code, line = refusal(flux, output, capsys)
        assert code == 2
        assert f"--output is {output}: that is no file; name one" in line
    assert folder.is_dir()
    assert pipe.is_fifo()


def test_a_former_file_is_replaced(flux, tmp_path):
    from allosr2.model import load_conditioning

    output = tmp_path / "prompt.safetensors"
    output.write_text("former")
    assert main(["prepare", "--base", str(flux), "--output", str(output), "--tokens", "2"]) == 0
    assert load_conditioning(output).prompt.shape == (2, 24)


def test_a_full_disk_leaves_the_former_file(flux, tmp_path, capsys, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    output = tmp_path / "prompt.safetensors"
    output.write_text("former")
    monkeypatch.setattr(os, "fsync", full)
    code, line = refusal(flux, output, capsys)
    assert code == 2
    assert f"--output is {output}: No space left on device" in line
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [
        (output.name, "former")
    ]


@pytest.mark.parametrize("tokens", ["0", "600"])
def test_lengths_that_cannot_be_are_refused(flux, tmp_path, capsys, tokens):
    output = tmp_path / "prompt.safetensors"
    code, line = refusal(flux, output, capsys, "--tokens", tokens)
    assert (code, line) == (2, f"allosr2: error: tokens is {tokens}: use 1 to 512")
    assert not output.exists()


def test_a_truncated_encoder_is_one_line_and_writes_nothing(flux, tmp_path, capsys):
    base = shutil.copytree(flux, tmp_path / "base")
    weights = base / "text_encoder_2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    output = tmp_path / "prompt.safetensors"
    code, line = refusal(base, output, capsys)
    assert code == 4
    assert f"{base}: its text_encoder_2 cannot be loaded (" in line
    assert not output.exists()


def test_minis_base_needs_no_prompt(tmp_path, capsys):
    from allosr2.model import EMBEDDED, model_folder

    code, line = refusal(model_folder(EMBEDDED) / "base", tmp_path / "prompt.safetensors", capsys)
    assert code == 4
    assert "such as mini's, needs no prompt: train with no --conditioning" in line


def test_other_libraries_show_no_bars_where_there_is_no_terminal(flux, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "allosr2", "prepare", "--base", str(flux)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"},
    )
    assert done.stdout == "conditioning.safetensors\n"
    tokens, license_line = done.stderr.splitlines()
    assert tokens == "allosr2: 512 tokens of width 24, pooled embedding of width 10"
    assert "NON-COMMERCIAL" in license_line
