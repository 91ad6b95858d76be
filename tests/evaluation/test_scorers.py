"""Metrics: published figures of published images, identities, order, weights that stand in for absent ones."""

from __future__ import annotations

import csv
import hashlib
import os
import pickle
import shutil
import socket
from pathlib import Path
from unittest import mock

import numpy as np
import pyiqa
import pytest
import scipy.io
import skimage.data
import torch
import torchvision
from einops import rearrange
from PIL import Image
from pyiqa.archs import inception as inception_arch
from pyiqa.archs.fid_arch import get_folder_features
from scipy import ndimage
from torch import Tensor

from allosr2.errors import ConfigError, ModelError
from allosr2.evaluation.images import images_of
from allosr2.evaluation.measure import measure, pair_images
from allosr2.evaluation.metrics import METRICS, PAPER
from allosr2.evaluation.scorers import Scorer, _folder_of, load_scorers
from allosr2.evaluation.weights import Weights, loading_from
from allosr2.imaging.io import image_from_any, write_image
from allosr2.imaging.picture import Picture

CPU = torch.device("cpu")


def scorer(name: str, weights: Weights) -> Scorer:
    (made,), skipped = load_scorers([name], weights, CPU)
    assert not skipped
    return made


def score(made: Scorer, sr: Tensor, hr: Tensor | None = None) -> float:
    assert made.of_image is not None
    return made.of_image(sr, hr)


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """256 px of a cat's face."""
    return image_from_any(np.ascontiguousarray(skimage.data.chelsea()[20:276, 100:356]))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Random numbers in files as published: what can be computed offline, whatever it means."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    for part in ("checkpoints", "pyiqa"):
        (folder / part).mkdir()
    alexnet = torchvision.models.alexnet(weights=None).state_dict()
    torch.save(alexnet, folder / "checkpoints" / "alexnet-owt-7be5be79.pth")
    linear = {
        f"lin{layer}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for layer, channels in enumerate((64, 192, 384, 256, 256))
    }
    torch.save(linear, folder / "pyiqa" / "LPIPS_v0.1_alex-df73285e.pth")
    # NIQE's own covariance is one of features like these
    features = torch.randn(200, 36, generator=generator, dtype=torch.float64).numpy()
    niqe = folder / "niqe.npz"
    np.savez(niqe, mu_pris_param=features.mean(0)[None], cov_pris_param=np.cov(features.T))
    return Weights(folder=folder, niqe=niqe, offline=True)


def test_published_figures_of_published_images(shared_data):
    """OSEDiff's results for 20 RealSR images and its published row for each."""
    folder = shared_data / "realsr"
    with (folder / "osediff_published.csv").open(newline="") as file:
        published = {Path(row["image"]).stem: row for row in csv.DictReader(file)}
    sr = images_of(folder / "osediff")
    hr = {name: path for name, path in images_of(folder / "hr").items() if name in sr}
    niqe = shared_data / "perceptual" / "niqe_pristine.npz"
    scorers, _ = load_scorers(["psnr", "ssim", "niqe"], Weights(niqe=niqe, offline=True), CPU)
    measured = measure(pair_images(sr, hr), scorers)
    assert len(measured.images) == 20
    for name, values in measured.images.items():
        row = published[name]
        assert values["psnr"] == pytest.approx(float(row["psnr_y"]), abs=1e-4)
        assert values["ssim"] == pytest.approx(float(row["ssim_y"]), abs=1e-5)
        assert values["niqe"] == pytest.approx(float(row["niqe"]), rel=0.01)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ssim", 1.0),
        ("lpips", 0.0),
        ("sharpness", 1.0),
        ("psnr", 80.0),  # of pyiqa, whose mean squared error is never below 1e-8
    ],
)
def test_an_image_and_itself(photograph, weights, name, value):
    assert score(scorer(name, weights), photograph, photograph) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("name", ["psnr", "ssim", "lpips", "sharpness"])
@pytest.mark.parametrize("damage", ["noise", "blur"])
def test_it_gets_worse_with_noise_and_blur(photograph, weights, name, damage):
    made = scorer(name, weights)
    noise = torch.randn(photograph.shape, generator=torch.Generator().manual_seed(1))
    values: list[float] = []
    for level in (1, 2, 4, 8):
        if damage == "noise":
            image = photograph + 0.01 * level * noise
        else:
            blurred = ndimage.gaussian_filter(photograph.numpy(), (0, 0, level / 2, level / 2))
            image = torch.from_numpy(blurred)
        values.append(score(made, image.clamp(0, 1), photograph))
    better = sorted(values, reverse=not METRICS[name].lower_is_better)
    assert values == better
    assert len(set(values)) == 4


def test_noise_raises_niqe(photograph, shared_data):
    made = scorer("niqe", Weights(niqe=shared_data / "perceptual" / "niqe_pristine.npz"))
    noise = torch.randn(photograph.shape, generator=torch.Generator().manual_seed(1))
    values = [score(made, (photograph + level * noise).clamp(0, 1)) for level in (0, 0.1, 0.2, 0.4)]
    assert values == sorted(values)


@pytest.mark.parametrize("name", ["psnr", "ssim", "lpips"])
def test_a_batch_changes_no_value(photograph, weights, name):
    """pyiqa's figures of two images at once are those of each alone, which is how they are measured."""
    other = photograph.flip(3) * 0.9 + 0.05
    alone = [
        score(scorer(name, weights), image, hr)
        for image, hr in ((photograph, other), (other, photograph))
    ]
    options = {} if name == "lpips" else {"test_y_channel": True, "color_space": "ycbcr"}
    with loading_from(weights):
        network = pyiqa.create_metric(name, device=CPU, **options)
    together = network(torch.cat([photograph, other]), torch.cat([other, photograph]))
    assert together.flatten().tolist() == pytest.approx(alone, rel=1e-5)


def test_lpips_by_hand(photograph, weights):
    """The published formula on the stand-in weights, written down again."""
    network = torchvision.models.alexnet(weights=None)
    network.load_state_dict(torch.load(weights.files("lpips")[0], weights_only=True))
    linear = torch.load(weights.files("lpips")[1], weights_only=True)
    other = (photograph + 0.1).clamp(0, 1)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, y = ((2 * image - 1 - shift) / scale for image in (photograph, other))
    distance, taps = 0.0, 0
    with torch.no_grad():
        for layer in network.features[:12]:
            x, y = (layer(image.clone()) for image in (x, y))
            if isinstance(layer, torch.nn.ReLU):
                unit_x, unit_y = (f / (f.square().sum(1, keepdim=True).sqrt()) for f in (x, y))
                weight = linear[f"lin{taps}.model.1.weight"]
                distance += float(((unit_x - unit_y).square().nan_to_num() * weight).sum(1).mean())
                taps += 1
    assert taps == 5
    assert score(scorer("lpips", weights), photograph, other) == pytest.approx(distance, rel=1e-4)


def test_both_kinds_of_file_hold_niqe(photograph, weights, tmp_path):
    with np.load(weights.niqe) as held:
        named = {"mu_prisparam": held["mu_pris_param"], "cov_prisparam": held["cov_pris_param"]}
    scipy.io.savemat(tmp_path / "niqe_modelparameters.mat", named)
    published = Weights(niqe=tmp_path / "niqe_modelparameters.mat")
    (tmp_path / "pyiqa").mkdir()
    shutil.copy(tmp_path / "niqe_modelparameters.mat", tmp_path / "pyiqa")
    values = {
        score(scorer("niqe", of), photograph)
        for of in (weights, published, Weights(folder=tmp_path, offline=True))
    }
    assert len(values) == 1


def test_weights_are_named_by_their_hash(weights):
    held = scorer("lpips", weights).weights
    file = weights.place / "checkpoints" / "alexnet-owt-7be5be79.pth"
    assert held[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert set(held) == {"alexnet-owt-7be5be79.pth", "LPIPS_v0.1_alex-df73285e.pth"}
    assert scorer("psnr", weights).weights == {}


def test_the_color_shift_is_of_the_channels_means(photograph, weights):
    """Red 3 levels up and blue 6 down, of a smaller LR image."""
    lr = torch.full((1, 3, 8, 8), 0.5)
    sr = lr.repeat(1, 1, 4, 4) + torch.tensor([3.0, 0.0, -6.0]).view(1, 3, 1, 1) / 255
    assert score(scorer("color-shift", weights), sr, lr) == pytest.approx(3, abs=1e-4)
    assert METRICS["color-shift"].against == "lr"


def test_what_lacks_weights_is_skipped_by_name(tmp_path):
    scorers, skipped = load_scorers(PAPER, Weights(folder=tmp_path, offline=True), CPU)
    assert [made.metric.name for made in scorers] == ["psnr", "ssim"]
    assert list(skipped) == ["lpips", "dists", "fid", "niqe", "musiq", "maniqa", "clipiqa"]
    assert skipped["lpips"] == "its weights are absent (checkpoints/alexnet-owt-7be5be79.pth)"
    assert skipped["clipiqa"] == "its weights are absent (clip/RN50.pt)"


def test_a_broken_file_of_weights_is_skipped_by_name(tmp_path):
    (tmp_path / "pyiqa").mkdir()
    (tmp_path / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth").write_bytes(b"no weights")
    scorers, skipped = load_scorers(["musiq"], Weights(folder=tmp_path, offline=True), CPU)
    assert not scorers
    assert skipped["musiq"].startswith("its weights cannot be used (")


def test_a_pickle_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / "pyiqa").mkdir()
    with (tmp_path / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth").open("wb") as file:
        pickle.dump(Trap(), file)
    scorers, skipped = load_scorers(["musiq"], Weights(folder=tmp_path, offline=True), CPU)
    assert not scorers
    assert "musiq" in skipped
    assert not (tmp_path / "sprung").exists()


def test_loading_leaves_no_setting_behind(weights):
    before = (torch.hub.get_dir(), socket.getdefaulttimeout(), dict(os.environ))
    scorer("lpips", weights)
    assert (torch.hub.get_dir(), socket.getdefaulttimeout(), dict(os.environ)) == before


def test_a_name_that_does_not_exist():
    with pytest.raises(ConfigError, match="metric lpisp is unknown: did you mean lpips or"):
        load_scorers(["lpisp"], Weights(), CPU)
    with pytest.raises(ConfigError, match="There are psnr, ssim"):
        load_scorers(["qqqq"], Weights(), CPU)


@pytest.mark.parametrize("content", ["absent", "text", "shapes"])
def test_a_file_that_does_not_hold_niqe(tmp_path, content):
    path = tmp_path / "niqe.npz"
    if content == "text":
        path.write_text("no parameters")
    elif content == "shapes":
        np.savez(path, mu_pris_param=np.zeros(3), cov_pris_param=np.zeros((3, 3)))
    with pytest.raises(ModelError, match=r"niqe\.npz: no (such file|NIQE parameters)"):
        load_scorers(["niqe"], Weights(niqe=path), CPU)


def test_lpips_on_squeezenet_needs_a_file(tmp_path):
    assert list(load_scorers(["lpips-squeeze"], Weights(), CPU)[1]) == ["lpips-squeeze"]
    with pytest.raises(ModelError, match="no LPIPS weights can be read there"):
        load_scorers(["lpips-squeeze"], Weights(perceptual=tmp_path / "absent"), CPU)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """FID's network with random weights."""
    folder = tmp_path_factory.mktemp("inception")
    (folder / "pyiqa").mkdir()
    with mock.patch.object(inception_arch, "load_pretrained_network"):
        network = inception_arch.fid_inception_v3()
    torch.save(network.state_dict(), folder / "pyiqa" / "pt_inception-2015-12-05-6726825d.pth")
    return Weights(folder=folder, offline=True)


def test_fid_sees_the_pixels_that_others_see(tmp_path):
    """16-bit gray of level 20 is level 20; what Pillow reads alike is linked, not written again."""
    write_image(tmp_path / "deep.png", Picture(color=np.full((8, 8, 1), 20 * 257, np.uint16)))
    write_image(tmp_path / "plain.png", Picture(color=np.full((8, 8, 3), 30, np.uint8)))
    turned = Image.new("RGB", (8, 4), (1, 2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    files = [tmp_path / f"{name}.png" for name in ("deep", "plain", "turned")]
    with _folder_of(files) as folder:
        places = sorted(Path(folder).iterdir())
        pixels = [np.asarray(Image.open(place).convert("RGB")) for place in places]
        assert [place.is_symlink() for place in places] == [False, True, False]
    assert (pixels[0] == 20).all()
    assert (pixels[1] == 30).all()
    assert pixels[2].shape == (8, 4, 3)


def test_a_file_of_clip_that_is_not_the_published_one_is_not_fetched_again(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "RN50.pt").write_bytes(b"torn")
    scorers, skipped = load_scorers(["clipiqa"], Weights(folder=tmp_path, offline=True), CPU)
    assert not scorers
    assert skipped == {"clipiqa": "its weights are absent (clip/RN50.pt)"}
    assert (tmp_path / "clip" / "RN50.pt").read_bytes() == b"torn"


@pytest.mark.slow
def test_fid_of_folders(tmp_path, photograph, inception):
    """0 of a set and itself; else Frechet's distance of Gaussians that fit the network's features."""
    made = scorer("fid", inception)
    assert made.of_set is not None
    files: dict[str, list[Path]] = {"sr": [], "hr": []}
    for number in range(4):
        levels = rearrange(photograph[0], "c h w -> h w c").roll(40 * number, 0).mul(255).byte()
        for part, color in (("sr", levels // 2), ("hr", levels)):
            (tmp_path / part).mkdir(exist_ok=True)
            files[part].append(tmp_path / part / f"{number}.png")
            write_image(files[part][-1], Picture(color=color.numpy()))
    assert made.of_set(files["hr"], files["hr"]) == pytest.approx(0, abs=1e-2)
    with loading_from(inception):
        network = pyiqa.create_metric("fid", device=CPU).net.model
    of_sr, of_hr = (
        get_folder_features(str(tmp_path / part), network, num_workers=0, device=CPU, verbose=False)
        for part in ("sr", "hr")
    )
    # tr sqrt(A A' B B') is the sum of the singular values of A' B
    roots = [(f - f.mean(0)).T / np.sqrt(len(f) - 1) for f in (of_sr, of_hr)]
    overlap = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    expected = np.square(of_sr.mean(0) - of_hr.mean(0)).sum()
    expected += sum(np.square(root).sum() for root in roots) - 2 * overlap
    assert made.of_set(files["sr"], files["hr"]) == pytest.approx(expected, rel=1e-2)


def test_musiq_with_weights_that_stand_in(tmp_path, photograph):
    network = pyiqa.create_metric("musiq", device=CPU, pretrained=False)
    (tmp_path / "pyiqa").mkdir()
    torch.save(network.net.state_dict(), tmp_path / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth")
    made = scorer("musiq", Weights(folder=tmp_path, offline=True))
    assert score(made, photograph) == pytest.approx(float(network(photograph)), rel=1e-5)
