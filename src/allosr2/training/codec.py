"""Stage 1 of `mini`: a VAE that reconstructs HR images from latents of unit scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from allosr2.backbones.base import load_vae, save_base
from allosr2.backbones.codec import Codec
from allosr2.backbones.presets import mini_vae
from allosr2.data.pairs import Batch
from allosr2.fingerprint import fingerprint, tensors_of
from allosr2.imaging.resize import enlarge, resize
from allosr2.training.config import CodecTraining
from allosr2.training.diagnostics import Inspection, inspect_results
from allosr2.training.noise import normal, uniform
from allosr2.training.perceptual import build_lpips, shifted

_LATENT_WEIGHT = 0.1
"""Weight of the latent's distance from N(0, 1): enough to hold its scale, too little to cost detail."""
_SOFTENING = 4
"""Factor by which softened images are shrunk and enlarged: the blur of an LR image that is enlarged x4."""


class CodecStage:
    """Reconstruction (L1 + LPIPS) through a noisy latent whose channels are held near N(0, 1).

    Some images are softened, as the codec has to encode enlarged LR images too.
    """

    def __init__(self, config: CodecTraining, device: torch.device) -> None:
        vae: Any = load_vae(str(config.initial)) if config.initial else mini_vae()
        vae.requires_grad_(True)
        self.module = Codec(vae).to(device).to(memory_format=torch.channels_last)
        self.degradation = None
        self.scale = 1
        self.constants: dict[str, float] = {}
        self._config = config
        self._weight = config.perceptual.perceptual_weight
        self._lpips = build_lpips(config.perceptual, device, compile=config.run.compile)
        self.fingerprint = fingerprint(tensors_of(lpips=self._lpips))
        if config.run.compile:
            vae.encoder.compile()
            vae.decoder.compile()

    def losses(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """`reconstruction` (L1), `perceptual` (LPIPS), `latent` (distance from N(0, 1))."""
        config = self._config
        softened = uniform(generators) < config.soft_fraction
        target = torch.where(softened[:, None, None, None], _soften(batch.hr), batch.hr)
        z = self.module.encode(target)
        level = config.latent_noise * uniform(generators)[:, None, None, None]
        image = self.module.decode(z + level * normal(generators, z.shape[1:]))
        terms = {
            "reconstruction": (image - target).abs().mean(),
            "latent": unit_scale_penalty(z),
        }
        total = terms["reconstruction"] + _LATENT_WEIGHT * terms["latent"]
        if self._lpips is not None:
            terms["perceptual"] = self._lpips(*shifted(generators, image, target)).mean()
            total = total + self._weight * terms["perceptual"]
        return terms | {"total": total}

    def inspect(self, batches: Sequence[Batch]) -> Inspection:
        """HR images through the codec and back."""
        results = (self.module.decode(self.module.encode(batch.hr)) for batch in batches)
        return inspect_results(batches, results, scale=self.scale, lpips=self._lpips)

    def export(self, folder: Path) -> Path:
        """Write the VAE as a base folder (without a transformer yet)."""
        save_base(folder, vae=self.module.vae)
        return folder


def _soften(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    return enlarge(resize(image, (height // _SOFTENING, width // _SOFTENING)), _SOFTENING)


def unit_scale_penalty(z: Tensor) -> Tensor:
    """KL divergence of each latent channel's batch statistics, taken as normal, from N(0, 1); the mean.

    Holds the latents at the scale of the flow's noise, so that a fixed noise level means the same all along.
    """
    channels = rearrange(z, "b c h w -> c (b h w)")
    mean, variance = channels.mean(1), channels.var(1) + 1e-6
    return 0.5 * (mean.square() + variance - 1 - variance.log()).mean()
