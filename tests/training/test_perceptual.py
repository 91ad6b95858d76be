"""LPIPS as a config asks for it, and where decoders show it their images."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from allosr2.losses.perceptual import LPIPS
from allosr2.training.config import PerceptualConfig
from allosr2.training.noise import sample_generators
from allosr2.training.perceptual import build_lpips, shifted

CPU = torch.device("cpu")


def test_without_a_file_lpips_is_left_out_and_that_is_said(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "allosr2"):
        assert build_lpips(PerceptualConfig(), CPU, compile=False) is None
    (record,) = caplog.records
    assert "--perceptual FILE" in record.message
    assert "\n" not in record.message


def test_without_a_weight_nothing_is_said(caplog: pytest.LogCaptureFixture, random_lpips: Path):
    config = PerceptualConfig(perceptual=random_lpips, perceptual_weight=0.0)
    assert build_lpips(config, CPU, compile=False) is None
    assert not caplog.records


def test_with_both_it_is_frozen(random_lpips: Path):
    lpips = build_lpips(PerceptualConfig(perceptual=random_lpips), CPU, compile=False)
    assert lpips is not None
    assert not any(parameter.requires_grad for parameter in lpips.parameters())


def coordinates(height: int, width: int) -> torch.Tensor:
    """Two images whose pixels say where they are."""
    down, across = torch.meshgrid(
        torch.arange(float(height)), torch.arange(float(width)), indexing="ij"
    )
    return torch.stack([down, across]).repeat(2, 1, 1, 1)


def test_a_shifted_part_is_16_px_shorter_and_the_same_of_every_image():
    images = coordinates(64, 80)
    first, second = shifted(sample_generators(0, range(2), CPU), images, -images)
    assert first.shape[-2:] == (48, 48)
    assert torch.equal(first, -second)
    for part in first:
        assert torch.equal(part - part[:, :1, :1], images[0, :, :48, :48])


def test_every_shift_comes_up():
    images = coordinates(48, 48)[:1]
    corners = {
        tuple(shifted([generator], images)[0][0, :, 0, 0].tolist())
        for generator in sample_generators(0, range(2000), CPU)
    }
    assert corners == {(float(top), float(left)) for top in range(16) for left in range(16)}


def test_of_small_images_all_is_seen():
    (part,) = shifted(sample_generators(0, range(1), CPU), coordinates(32, 32)[:1])
    assert part.shape[-2:] == (32, 32)


def test_shifts_even_out_what_strides_leave_unseen(random_lpips: Path):
    lpips = LPIPS.from_file(random_lpips)
    hr = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    image = hr.roll(1, 3).requires_grad_()

    def unevenness(parts: list[list[torch.Tensor]]) -> float:
        """Energy of LPIPS's gradient in the strongest of four columns over that in the weakest."""
        energy = torch.zeros(4)
        for pair in parts:
            (gradient,) = torch.autograd.grad(lpips(*pair).sum(), image)
            energy += gradient.square()[..., 16:-16, 16:-16].sum((0, 1, 2)).view(-1, 4).sum(0)
        return float(energy.max() / energy.min())

    generators = sample_generators(0, range(64), CPU)
    assert unevenness([[image, hr]]) > 2
    assert unevenness([shifted([generator], image, hr) for generator in generators]) < 1.3
