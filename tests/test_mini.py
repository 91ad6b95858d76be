"""The model in the box: small, self-contained, deterministic, and sharper than bicubic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from allosr2 import Upscaler
from allosr2.imaging.io import find_images, image_from_any, read_rgb
from allosr2.imaging.quality import periodicity, psnr_y
from allosr2.model import ModelConfig, model_folder

LARGEST_GRID = 1.05
"""Strength of an 8 or 16 px grid beside the HR's own."""
LARGEST = 25 * 10**6
"""Bytes that the embedded model may take."""


@pytest.fixture(scope="module")
def mini() -> Upscaler:
    return Upscaler.from_pretrained("mini", device="cpu")


def test_it_is_small_and_holds_no_pickle():
    files = [path for path in model_folder("mini").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


def test_its_base_travels_inside():
    assert ModelConfig.read(model_folder("mini")).base == "base"


def test_it_says_nothing_of_the_machine_that_trained_it():
    for path in model_folder("mini").rglob("*.json"):
        assert '"/' not in path.read_text(), path


@pytest.mark.parametrize("name", ["coffee.png", "astronaut.png"])
def test_it_is_sharper_than_bicubic_and_keeps_the_colors(mini, name):
    photograph = Path(skimage.data.__file__).with_name(name)
    hr = Image.open(photograph).convert("RGB").crop((120, 40, 376, 296))
    lr = hr.reduce(4)
    sr = mini(lr)
    bicubic = lr.resize(sr.size, Image.Resampling.BICUBIC)

    def sharpness(image: Image.Image) -> float:
        return float(np.abs(np.diff(np.asarray(image.convert("L"), dtype=float))).mean())

    def colors(image: Image.Image) -> np.ndarray:
        return np.asarray(image, dtype=float).mean((0, 1))

    assert sharpness(sr) > 1.05 * sharpness(bicubic)
    assert np.abs(colors(sr) - colors(bicubic)).max() < 1
    assert np.array_equal(np.asarray(mini(lr)), np.asarray(sr))


@pytest.fixture(scope="module")
def realsr(mini, shared_data) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Results and HR images of five RealSR pairs spread over the set."""
    folder = shared_data / "realsr"
    return [
        (
            mini(image_from_any(read_rgb(folder / "lr" / path.name))),
            image_from_any(read_rgb(path)),
        )
        for path in find_images(folder / "hr")[::20]
    ]


def test_it_is_faithful_on_realsr(realsr):
    assert torch.cat([psnr_y(sr, hr) for sr, hr in realsr]).mean() > 24


def test_it_shows_no_grid_on_realsr(realsr):
    ratios = torch.cat([periodicity(sr) / periodicity(hr) for sr, hr in realsr])
    assert ratios.mean() < LARGEST_GRID
