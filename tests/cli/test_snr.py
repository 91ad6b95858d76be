"""`allosr2 snr` against Eq. 6 for one pair, with diffusers' VAE used by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.cli import main


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "pairs"
    rng = np.random.default_rng(0)
    for part in ("lr", "hr"):
        (folder / part).mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png"):
        lr = rng.integers(0, 256, (12, 15, 3), dtype=np.uint8)
        Image.fromarray(lr).save(folder / "lr" / name)
        hr = np.asarray(Image.fromarray(lr).resize((60, 48), Image.Resampling.LANCZOS))
        noisy = hr + rng.normal(0, 30, hr.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "hr" / name)
    return folder


def pair_time(base, folder, name) -> float:
    """t = sigma / (1 + sigma), sigma the RMS of z_lr - z_hr, of the 48 x 56 px that the VAE takes."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")

    def tensor(path):
        return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255

    lr = torch.nn.functional.interpolate(
        tensor(folder / "lr" / name), scale_factor=4, mode="bicubic", antialias=True
    ).clamp(0, 1)
    with torch.no_grad():
        z_lr, z_hr = (
            (vae.encode(image[..., :48, :56] * 2 - 1).latent_dist.mean - 0.1159) * 0.3611
            for image in (lr, tensor(folder / "hr" / name))
        )
    sigma = (z_lr - z_hr).square().mean().sqrt()
    return float(sigma / (1 + sigma))


def rows(shown: str) -> dict[str, float]:
    cells = [line.split("│")[1:3] for line in shown.splitlines() if line.startswith("│")]
    return {name.strip(): float(value) for name, value in cells}


def test_one_pair(pairs, tiny_model, tiny_base, capsys):
    for part in ("lr", "hr"):
        for name in ("b.png", "c.png"):
            (pairs / part / name).unlink()
    assert main(["snr", "--pairs", str(pairs), "--model", str(tiny_model), "--device", "cpu"]) == 0
    shown = rows(capsys.readouterr().out)
    expected = pair_time(tiny_base, pairs, "a.png")
    assert shown.pop(f"t* of {tiny_model} (preset mild)") == 0.4
    assert shown.pop("t* (Eq. 6, grid of 1000)") == pytest.approx(expected, abs=1e-3)
    assert len(shown) == 6
    assert list(shown.values()) == pytest.approx([expected] * 6, abs=1e-4)


def test_spread_and_plot(pairs, tiny_model, tiny_base, tmp_path, capsys):
    plot = tmp_path / "snr.png"
    arguments = ["snr", "--pairs", str(pairs), "--model", str(tiny_model), "--device", "cpu"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(plot)
    times = [pair_time(tiny_base, pairs, name) for name in ("a.png", "b.png", "c.png")]
    shown = rows("\n".join(printed.splitlines()[:-1]))
    for percent in (5, 25, 50, 75, 95):
        expected = np.percentile(times, percent)
        assert shown[f"t of single pairs, percentile {percent}"] == pytest.approx(
            expected, abs=1e-4
        )
    assert min(times) - 1e-4 <= shown["t* (Eq. 6, exact)"] <= max(times) + 1e-4
    image = np.asarray(Image.open(plot).convert("L"))
    assert image.shape[0] > 300
    assert 0.01 < (image < 200).mean() < 0.5


def test_pairs_that_cannot_be_used(pairs, tiny_model, tmp_path, capsys):
    def refused(folder, *options) -> str:
        arguments = ["snr", "--pairs", str(folder), "--model", str(tiny_model), "--device", "cpu"]
        assert main([*arguments, *options]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no folder lr" in refused(tmp_path / "absent")
    (tmp_path / "empty" / "lr").mkdir(parents=True)
    assert "no folder hr" in refused(tmp_path / "empty")
    (tmp_path / "empty" / "hr").mkdir()
    assert "no image" in refused(tmp_path / "empty")
    Image.new("RGB", (10, 10)).save(pairs / "lr" / "b.png")
    assert "hr/b.png is 60 x 48 px, no whole multiple of its LR image's 10 x 10" in refused(pairs)
    (pairs / "hr" / "b.png").unlink()
    assert "lr/b.png has no partner" in refused(pairs)


def test_plot_without_matplotlib(pairs, tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    plot = tmp_path / "snr.png"
    arguments = ["snr", "--pairs", str(pairs), "--model", str(tiny_model), "--plot", str(plot)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'allosr2[train]'" in line
    assert not plot.exists()
