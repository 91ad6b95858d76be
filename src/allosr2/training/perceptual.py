"""LPIPS as a training config asks for it, and what decoders in training show it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from allosr2.losses.perceptual import LPIPS
from allosr2.losses.spectra import TILE
from allosr2.training.config import PerceptualConfig
from allosr2.training.noise import parts, windows

logger = logging.getLogger(__name__)

_STRIDE = TILE // 2
"""Pixels between windows of local spectra, and between two of the deepest activations that LPIPS compares."""


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


def shifted(
    generators: Sequence[torch.Generator], *images: Float[Tensor, "b c h w"]
) -> list[Float[Tensor, "b c side side"]]:
    """The same square of each batch of images, at a place drawn for each sample: for losses with a stride.

    All images are of one size, with sides of 32 px or more. The square's side is 16 px less than their shorter
    one, so that each of 16 x 16 shifts is equally likely; of images under 48 px it is 32 px, and shifted less.

    SqueezeNet's strides leave one of four columns nearly unseen: it has a third of the others' energy in
    LPIPS's gradient. A decoder that upsamples by 8 has phases of its own to learn such a pattern with, as
    long as both begin at the same pixel.
    """
    height, width = images[0].shape[-2:]
    side = max(TILE, min(height, width) - _STRIDE)
    # one row and column less: the 17th shift is the first again
    last = 0 if side == min(height, width) else 1
    places = windows(generators, height - last, width - last, side)
    return [parts(image, places) for image in images]
