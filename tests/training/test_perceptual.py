"""LPIPS as a config asks for it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from allosr2.training.config import PerceptualConfig
from allosr2.training.perceptual import build_lpips

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
