"""LPIPS as a training config asks for it."""

from __future__ import annotations

import logging

import torch

from allosr2.losses.perceptual import LPIPS
from allosr2.training.config import PerceptualConfig

logger = logging.getLogger(__name__)


def build_lpips(config: PerceptualConfig, device: torch.device, *, compile: bool) -> LPIPS | None:  # noqa: A002
    """LPIPS from the config's file, frozen; None where its weight is 0 or it has no file. Raises ModelError."""
    if not config.perceptual_weight:
        return None
    if config.perceptual is None:
        logger.warning(
            "perceptual is None: training without LPIPS, which the results need; name a file of its weights "
            "with --perceptual FILE"
        )
        return None
    lpips = LPIPS.from_file(config.perceptual).to(device)
    if compile:
        lpips.compile()
    return lpips
