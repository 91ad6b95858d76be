"""LPIPS on SqueezeNet against a transcription from the weights file, and against known figures."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from allosr2.errors import ModelError
from allosr2.losses.perceptual import LPIPS


@pytest.fixture(scope="module")
def weights(shared_data: Path) -> Path:
    path = shared_data / "perceptual" / "squeezenet1_1_caffe_lpips.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent: LPIPS weights are not part of the repository")
    return path


@pytest.fixture(scope="module")
def lpips(weights: Path) -> LPIPS:
    return LPIPS.from_file(weights)


def pixels(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        array = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array).movedim(2, 0)[None] / 255


def photograph(shared_data: Path) -> torch.Tensor:
    return pixels(min((shared_data / "realsr" / "lr").glob("*.png")))[..., :67, :90]


def transcription(weights: Path, image: torch.Tensor, reference: torch.Tensor) -> float:
    """LPIPS from the file's tensors: SqueezeNet 1.1's layer table and the paper's distance, in float64."""
    tensors = {name: value.double() for name, value in load_file(weights).items()}

    def convolve(x, name, **geometry):
        parameters = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return functional.conv2d(x, *parameters, **geometry).clamp(min=0)

    def fire(x, index):
        x = convolve(x, f"features.{index}.squeeze1x1")
        narrow = convolve(x, f"features.{index}.expand1x1")
        return torch.cat([narrow, convolve(x, f"features.{index}.expand3x3", padding=1)], dim=1)

    def pool(x):
        return functional.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)

    def activations(rgb):
        red, green, blue = (255 * rgb.double()).unbind(1)
        x = torch.stack([blue - 103.939, green - 116.779, red - 123.68], dim=1)
        taps = [convolve(x, "features.0", stride=2)]
        taps.append(fire(fire(pool(taps[-1]), 3), 4))
        taps.append(fire(fire(pool(taps[-1]), 6), 7))
        taps.append(fire(pool(taps[-1]), 9))
        for index in (10, 11, 12):
            taps.append(fire(taps[-1], index))
        return taps

    distance = 0.0
    for layer, (a, b) in enumerate(zip(activations(image), activations(reference), strict=True)):
        a = a / (a.square().sum(1, keepdim=True).sqrt() + 1e-10)
        b = b / (b.square().sum(1, keepdim=True).sqrt() + 1e-10)
        weight = tensors[f"lpips.lin{layer}.weight"]
        distance += float(((a - b).square() * weight).sum(1).mean())
    return distance


def test_equals_the_transcription(lpips, weights, shared_data):
    reference = photograph(shared_data)
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(0))
    for strength in (0.01, 0.1):
        image = (reference + strength * noise).clamp(0, 1)
        expected = transcription(weights, image, reference)
        assert float(lpips(image, reference)) == pytest.approx(expected, abs=1e-5)
        assert expected > 1e-3


def test_is_zero_for_equal_images_symmetric_and_grows_with_noise(lpips, shared_data):
    reference = photograph(shared_data)
    noise = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    images = torch.cat([reference + strength * noise for strength in (0, 0.02, 0.05, 0.1, 0.2)])
    distances = lpips(images, reference.expand(5, -1, -1, -1))
    assert distances.shape == (5,)
    assert distances[0].item() == pytest.approx(0, abs=1e-10)
    assert lpips(reference, reference).item() == 0
    assert bool((distances.diff() > 0).all())
    swapped = lpips(reference.expand(5, -1, -1, -1), images)
    torch.testing.assert_close(distances, swapped, rtol=1e-5, atol=1e-7)


def test_the_gradient_reaches_the_image_and_no_weight(lpips, shared_data):
    reference = photograph(shared_data)
    image = (reference * 0.9).requires_grad_(True)
    lpips(image, reference).sum().backward()
    assert float(image.grad.abs().sum()) > 0
    assert bool(image.grad.isfinite().all())
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_uniform_images_have_a_finite_gradient(lpips):
    # Black regions give activations of all zeros, whose norm has no derivative.
    image = torch.zeros(1, 3, 64, 64, requires_grad=True)
    lpips(image, torch.ones(1, 3, 64, 64)).sum().backward()
    assert bool(image.grad.isfinite().all())


def mean_distance(lpips: LPIPS, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    with torch.no_grad():
        return float(np.mean([float(lpips(image, reference)) for image, reference in pairs]))


@pytest.mark.slow
def test_bicubic_on_realsr_has_the_known_mean(lpips, shared_data):
    folder = shared_data / "realsr"

    def bicubic(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            enlarged = image.convert("RGB").resize((512, 512), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(enlarged, dtype=np.float32)).movedim(2, 0)[None] / 255

    pairs = [
        (bicubic(path), pixels(folder / "hr" / path.name))
        for path in sorted((folder / "lr").glob("*.png"))
    ]
    assert len(pairs) == 100
    assert mean_distance(lpips, pairs) == pytest.approx(0.2675, abs=5e-4)


@pytest.mark.slow
def test_ranks_osediff_s_images_as_the_published_lpips_does(lpips, shared_data):
    """Published: LPIPS on AlexNet, image by image; ours is on SqueezeNet, so only the order is common."""
    folder = shared_data / "realsr"
    with (folder / "osediff_published.csv").open(newline="") as rows:
        published = {row["image"]: float(row["lpips_alex"]) for row in csv.DictReader(rows)}
    paths = sorted((folder / "osediff").glob("*.png"))
    assert len(paths) == 20
    ours = [mean_distance(lpips, [(pixels(p), pixels(folder / "hr" / p.name))]) for p in paths]
    correlation = np.corrcoef(ours, [published[path.name] for path in paths])[0, 1]
    assert correlation > 0.9


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.safetensors: no LPIPS weights") as caught:
        LPIPS.from_file(tmp_path / "nowhere.safetensors")
    assert "\n" not in str(caught.value)


def test_a_folder_or_another_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no LPIPS weights"):
        LPIPS.from_file(tmp_path)
    path = tmp_path / "text.safetensors"
    path.write_text("not safetensors")
    with pytest.raises(ModelError, match=r"text\.safetensors: no LPIPS weights") as caught:
        LPIPS.from_file(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "alex.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(ModelError, match=r"alex\.safetensors: not LPIPS weights") as caught:
        LPIPS.from_file(path)
    assert "\n" not in str(caught.value)
