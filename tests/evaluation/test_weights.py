"""Large networks with random numbers in files as published: the files are found, and used as they should be."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torchvision
from huggingface_hub import constants
from PIL import Image
from pyiqa.archs import maniqa_arch
from safetensors.torch import save_file
from torch import Tensor, nn

from allosr2.evaluation.measure import Pair, measure
from allosr2.evaluation.scorers import Scorer, load_scorers
from allosr2.evaluation.weights import Weights
from allosr2.imaging.io import image_from_any, read_rgb

CPU = torch.device("cpu")


def scorer(name: str, weights: Weights) -> Scorer:
    (made,), skipped = load_scorers([name], weights, CPU)
    assert not skipped
    return made


def score(made: Scorer, sr: Tensor, hr: Tensor | None = None) -> float:
    assert made.of_image is not None
    return made.of_image(sr, hr)


def pairs(folder: Path, count: int, side: int) -> dict[str, Pair]:
    """Crops of a photograph, each with itself turned upside down."""
    made: dict[str, Pair] = {}
    for number in range(count):
        crop = skimage.data.chelsea()[10 * number :, 30 * number :][:side, :side]
        paths = [folder / f"{part}{number}.png" for part in ("sr", "hr")]
        for path, levels in zip(paths, (crop, crop[::-1]), strict=True):
            Image.fromarray(levels).save(path)
        made[str(number)] = Pair(sr=paths[0], hr=paths[1])
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """DISTS's two files."""
    folder = tmp_path_factory.mktemp("dists")
    for part in ("checkpoints", "pyiqa"):
        (folder / part).mkdir()
    torch.manual_seed(0)
    with torch.device("meta"):
        network = torchvision.models.vgg16()
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if name.startswith("features") and name.endswith("weight"):
            state[name] = torch.empty(value.shape)
            nn.init.kaiming_normal_(state[name])
        else:
            state[name] = torch.zeros(1).expand(value.shape)  # one number in the file
    torch.save(state, folder / "checkpoints" / "vgg16-397923af.pth")
    channels = 3 + 64 + 128 + 256 + 512 + 512
    shares = {name: torch.rand(1, channels, 1, 1) for name in ("alpha", "beta")}
    torch.save(shares, folder / "pyiqa" / "DISTS_weights-f5e65c96.pth")
    return Weights(folder=folder, offline=True)


@pytest.fixture(scope="module")
def dists(files: Weights) -> Scorer:
    """DISTS, loaded once."""
    return scorer("dists", files)


def test_dists_by_hand(files, dists):
    """The published formula (arXiv:2004.07728) on the stand-in weights, written down again."""
    x = image_from_any(np.ascontiguousarray(skimage.data.chelsea()[20:84, 100:164]))
    y = (0.7 * x + 0.2).roll(3, 2)
    assert score(dists, x, x) == pytest.approx(0, abs=1e-5)

    held = torch.load(files.files("dists")[0], weights_only=True)
    convolutions = [held[name] for name in held if name.startswith("features") and "weight" in name]
    # squared, blurred by Hanning's window, every second sample, rooted
    tap = torch.tensor([1.0, 2.0, 1.0])
    window = (tap[:, None] * tap / 16)[None, None]

    def features(image: Tensor) -> list[Tensor]:
        mean, std = (
            torch.tensor(levels).view(1, 3, 1, 1)
            for levels in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        )
        z, found = (image - mean) / std, [image]
        for place, kernel in enumerate(convolutions, 1):
            z = nn.functional.conv2d(z, kernel, padding=1).relu()
            if place in (2, 4, 7, 10, 13):  # the last of each stage
                found.append(z)
                depth = z.shape[1]
                blurred = nn.functional.conv2d(
                    z.square(), window.expand(depth, 1, 3, 3), stride=2, padding=1, groups=depth
                )
                z = (blurred + 1e-12).sqrt()
        return found

    structure, texture = [], []
    for f, g in zip(features(x), features(y), strict=True):
        f, g = f.double().flatten(2)[0], g.double().flatten(2)[0]
        means = f.mean(1), g.mean(1)
        covariance = (f * g).mean(1) - means[0] * means[1]
        variances = f.var(1, correction=0) + g.var(1, correction=0)
        texture.append((2 * means[0] * means[1] + 1e-6) / (means[0] ** 2 + means[1] ** 2 + 1e-6))
        structure.append((2 * covariance + 1e-6) / (variances + 1e-6))
    shares = torch.load(files.files("dists")[1], weights_only=True)
    alpha, beta = (shares[name].flatten().double() for name in ("alpha", "beta"))
    similarity = (alpha * torch.cat(texture)).sum() + (beta * torch.cat(structure)).sum()
    expected = 1 - float(similarity / (alpha.sum() + beta.sum()))
    assert 0.05 < expected < 1
    assert score(dists, x, y) == pytest.approx(expected, rel=1e-4)


def test_two_workers_measure_what_one_does(tmp_path, files, dists):
    scorers = [scorer("psnr", files), scorer("ssim", files), dists]
    of_one, of_two = (
        measure(pairs(tmp_path, 6, 64), scorers, workers=workers).images for workers in (1, 2)
    )
    assert list(of_one) == list(of_two)
    for name, values in of_one.items():
        assert of_two[name] == pytest.approx(values, rel=1e-5)
    assert len({values["dists"] for values in of_one.values()}) == 6


def first_crop(image: Tensor, crop_size: int, crop_num: int) -> Tensor:
    """In place of all 20 of an image, which take minutes."""
    assert crop_num == 20
    return image[..., :crop_size, :crop_size]


@pytest.mark.slow
def test_maniqa_in_several_threads(tmp_path, monkeypatch):
    """It keeps what its layers give in one list, where images measured at a time must not mix.

    Its transformer's file lies in the cache of Hugging Face's hub.
    """
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(maniqa_arch, "uniform_crop", first_crop)
    torch.manual_seed(0)
    random = partial(timm.create_model, pretrained=False)
    with mock.patch.object(timm, "create_model", lambda name, **_: random(name)):
        network = maniqa_arch.MANIQA(pretrained=False).half()
    (tmp_path / "pyiqa").mkdir()
    torch.save(network.state_dict(), tmp_path / "pyiqa" / "MANIQA_PIPAL-ae6d356b.pth")
    repository = tmp_path / "hub" / "models--timm--vit_base_patch8_224.augreg2_in21k_ft_in1k"
    for part in ("snapshots/0", "refs"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / "main").write_text("0")
    transformer = {name: value.clone() for name, value in network.vit.state_dict().items()}
    save_file(transformer, repository / "snapshots" / "0" / "model.safetensors")

    made = scorer("maniqa", Weights(folder=tmp_path, offline=True))
    assert list(made.weights) == ["MANIQA_PIPAL-ae6d356b.pth", "model.safetensors"]
    images = pairs(tmp_path, 3, 224)
    measured = measure(images, [made], workers=3).images
    network.float().eval()
    with torch.inference_mode():
        alone = [float(network(image_from_any(read_rgb(pair.sr)))) for pair in images.values()]
    assert [values["maniqa"] for values in measured.values()] == pytest.approx(alone, rel=1e-4)
    assert min(alone) > 0
    assert np.ptp(alone) > 1e-3 * max(alone)
