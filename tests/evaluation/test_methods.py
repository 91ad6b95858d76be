"""What a word of the command line stands for, and that each method does what others do by its name."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact

from allosr2.errors import ConfigError, ModelError
from allosr2.evaluation.methods import Enlarge, Folder, Network, Program, method_named
from allosr2.imaging.io import image_from_any, to_array
from allosr2.upscaler import Upscaler

CPU = torch.device("cpu")


def levels(height: int = 13, width: int = 17, span: tuple[int, int] = (0, 256)) -> np.ndarray:
    return np.random.default_rng(0).integers(*span, (height, width, 3), dtype=np.uint8)


def loaded(text: str, scale: int = 4) -> Enlarge:
    method = method_named(text)
    assert isinstance(method, Network)
    return method.load(scale, CPU)


def compact(scale: int = 4, channels: int = 3) -> Compact:
    """A tiny network of the kind of realesr-general-x4v3, with random weights."""
    torch.manual_seed(0)
    network = Compact(
        num_in_ch=channels, num_out_ch=channels, num_feat=4, num_conv=2, upscale=scale
    )
    return network.eval()


def complaint(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        method_named(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_words_and_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/osediff").mkdir(parents=True)
    Path("odd=name").mkdir()
    Path("net.v2.pth").write_bytes(b"")
    names = {
        "bicubic": "bicubic",
        "Lanczos 3=lanczos": "Lanczos 3",
        "runs/osediff": "osediff",
        "runs/osediff/": "osediff",
        "SinSR=runs/osediff": "SinSR",
        "./odd=name": "odd=name",
        ".": tmp_path.name,
        "net.v2.pth": "net.v2",
        "mini": "mini",
        "unsere Größe=mini": "unsere Größe",
        "x=python s.py --lr={lr} --sr={sr}": "x",
        "a - b, one-step=lanczos": "a - b, one-step",
    }
    assert {text: method_named(text).name for text in names} == names
    assert method_named("runs/osediff") == Folder(name="osediff", folder=Path("runs/osediff"))
    command = "python 'my script.py' -i {lr} --out={sr}"
    assert method_named(f"x={command}") == Program(name="x", command=command)


def test_what_is_embedded_is_not_hidden_by_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()
    assert isinstance(method_named("mini"), Network)
    assert method_named("./mini/../mini") == Folder(name="mini", folder=Path("mini/../mini"))


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "results").mkdir()
    assert method_named("~/results") == Folder(name="results", folder=tmp_path / "results")


@pytest.mark.parametrize("text", ["bicubik", "x=bicubik", "x=", "", "a/b/c", "no such file.pth"])
def test_an_unknown_word(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text:
        what = "bicubik" if text == "x=bicubik" else text
        hint = "; a name has none of = / { } and no word like -x" if text == "x=" else ""
        assert complaint(text) == (
            f"method {text!r}: {what} is no file or folder; name one, bicubic, lanczos, mini, a model of the "
            f'hub, or a command, "NAME=program -i {{lr}} -o {{sr}}"{hint}'
        )
    else:
        assert method_named(text) == Folder(name=tmp_path.name, folder=Path())


@pytest.mark.parametrize(
    "text",
    [
        "x=program {lr}",
        "x=program {sr}",
        "program -i {lr} -o {sr}",
        "program --lr={lr} --sr={sr}",
        "program --scale=4 -i {lr} -o {sr}",
        "program file -s=4 -i {lr} -o {sr}",
        "/bin/program --lr={lr} " + "very " * 1000 + "{sr}",
    ],
)
def test_a_command_without_a_name_or_a_folder(text):
    assert complaint(text).endswith(
        'a command is named and takes both folders, "NAME=program -i {lr} -o {sr}"'
    )


def test_a_command_that_no_shell_would_take():
    assert complaint("x=program 'a {lr} {sr}").endswith(
        ": No closing quotation; close its quotation marks"
    )


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("name", ["lanczos", "bicubic"])
def test_interpolation_is_pillows(name, scale):
    filter_, size = Image.Resampling[name.upper()], (17 * scale, 13 * scale)
    image = levels()
    enlarged = loaded(name, scale)(image_from_any(image))
    assert enlarged.shape == (1, 3, 13 * scale, 17 * scale)
    bands = [
        Image.fromarray(band.astype(np.float32)).resize(size, filter_)
        for band in np.moveaxis(image, 2, 0)
    ]
    expected = np.stack([np.asarray(band) for band in bands]).clip(0, 255) / 255
    np.testing.assert_allclose(enlarged[0].numpy(), expected, atol=1e-5)
    # with 8 bits it rounds, and clips, between the two directions
    soft = levels(span=(80, 176))
    of_levels = np.asarray(Image.fromarray(soft).resize(size, filter_)).astype(int)
    of_soft = to_array(loaded(name, scale)(image_from_any(soft))).astype(int)
    assert np.abs(of_soft - of_levels).max() <= 1


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_networks_that_spandrel_reads(tmp_path, suffix):
    network, path = compact(), tmp_path / f"net{suffix}"
    if suffix == ".pth":  # as Real-ESRGAN publishes its own
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    lr = image_from_any(levels())
    with torch.inference_mode():
        expected = network(lr).clamp(0, 1)
    enlarged = loaded(str(path))(lr)
    torch.testing.assert_close(enlarged, expected)
    assert 0 <= enlarged.min() < enlarged.max() <= 1


def test_the_note_of_a_network_says_its_weights(tmp_path):
    path = tmp_path / "net.safetensors"
    network = compact()
    save_file(network.state_dict(), path)
    first = method_named(str(path))
    assert method_named(f"other={path}").note == first.note
    with torch.no_grad():
        network.body[0].bias[0] += 1e-6
    save_file(network.state_dict(), path)
    assert method_named(str(path)).note != first.note


def test_networks_that_cannot_be_used(tmp_path):
    save_file(compact(2).state_dict(), tmp_path / "x2.safetensors")
    save_file(compact(channels=1).state_dict(), tmp_path / "gray.safetensors")
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.pth").write_text("a text")
    (tmp_path / "text.safetensors").write_text("a text")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    words = {
        "x2.safetensors": "enlarges by 2, the images are of scale 4; name another file",
        "gray.safetensors": "a RealESRGAN Compact does not enlarge RGB images; name another file",
        **dict.fromkeys(
            ["other.safetensors", "text.pth", "text.safetensors", "empty.pth", "image.png"],
            "no network that spandrel knows (",
        ),
    }
    for name, expected in words.items():
        with pytest.raises(ModelError) as caught:
            loaded(str(tmp_path / name))
        assert str(caught.value).startswith(f"{tmp_path / name}: {expected}")
        assert "\n" not in str(caught.value)


class _Writes:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize("save", ["torch", "former torch", "pickle"])
def test_no_code_in_a_pickle_is_run(tmp_path, suffix, save):
    path, written = tmp_path / f"net{suffix}", tmp_path / "written"
    held = {**compact().state_dict(), "more": _Writes(written)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(held))
    else:
        torch.save(held, path, _use_new_zipfile_serialization=save == "torch")
    with pytest.raises(ModelError, match="no network that spandrel knows") as caught:
        loaded(str(path))
    assert "\n" not in str(caught.value)
    assert not written.exists()


def test_a_model_folder_is_what_the_upscaler_makes_of_it(tiny_model, tmp_path):
    folder = tmp_path / "ours"
    shutil.copytree(tiny_model, folder)
    method = method_named(str(folder))
    assert isinstance(method, Network)
    assert method.name == "ours"
    assert "t* 0.4, sha256 " in method.note
    lr = image_from_any(levels(16, 24))
    expected = Upscaler.from_pretrained(tiny_model, device="cpu")(lr, 4)
    enlarged = method.load(4, CPU)(lr)
    assert enlarged.shape == (1, 3, 64, 96)
    torch.testing.assert_close(enlarged, expected)


def test_the_note_of_a_model_says_its_weights(tiny_model, tmp_path):
    folder = tmp_path / "ours"
    shutil.copytree(tiny_model, folder)
    first = method_named(str(folder)).note
    assert method_named(f"{folder}/").note == first
    (folder / "README.md").write_text("not a weight")
    assert method_named(str(folder)).note == first
    weights = next(iter(sorted(folder.rglob("*.safetensors"))))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert method_named(str(folder)).note != first


def test_a_broken_model_folder(tmp_path):
    (tmp_path / "allosr2.json").write_text("{}")
    with pytest.raises(ModelError, match=str(tmp_path)):
        method_named(str(tmp_path))


def test_a_model_of_the_hub_without_a_network(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def reach(*_: object) -> Path:
        raise ModelError("somebody/model: no network")

    monkeypatch.setattr("allosr2.model.reach", reach)
    with pytest.raises(ModelError, match=r"somebody/model: no network"):
        method_named("ours=somebody/model")
