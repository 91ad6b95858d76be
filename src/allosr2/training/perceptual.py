"""LPIPS as a training config asks for it, and what decoders in training show it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from allosr2.losses.perceptual import LPIPS
from allosr2.training.config import PerceptualConfig
from allosr2.training.noise import parts, windows

logger = logging.getLogger(__name__)

_STRIDE = 16
"""Pixels between two of the deepest activations that LPIPS compares, and between windows of local spectra."""
_SMALLEST = 32
"""Side in pixels that both need."""


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


def shifted(generators: Sequence[torch.Generator], *images: Tensor) -> list[Tensor]:
    """The same part of each batch of images, up to 16 px shorter, a place a sample: for losses with a stride.

    SqueezeNet looks at three of four rows twice as hard as at the fourth. A decoder that upsamples by 8 has
    phases of its own to learn such a pattern with, as long as both begin at the same pixel.
    """
    height, width = images[0].shape[-2:]
    side = max(_SMALLEST, min(height, width) - _STRIDE)
    places = windows(generators, height, width, side)
    return [parts(image, places) for image in images]
