"""Stage 4 of `mini`: the decoder learns from what it will be given, the latents that the model restores.

Not of the paper, whose decoder comes with FLUX and forgives much. A small one that has seen HR images' latents
alone answers restored ones, which are off in ways that noise resembles poorly, with grids and hatches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from allosr2.backbones.base import save_base
from allosr2.data.degradation import mixture
from allosr2.data.pairs import Batch
from allosr2.errors import ConfigError
from allosr2.fingerprint import fingerprint
from allosr2.imaging.resize import enlarge
from allosr2.losses.grid import float32_for_grids, grid, hatch
from allosr2.losses.texture import texture
from allosr2.model import AlloSR2, ModelConfig, copy_base, load_frozen_codec, model_folder
from allosr2.training.checkpoint import provenance_fields
from allosr2.training.config import DecoderTraining
from allosr2.training.diagnostics import Inspection, inspect_results
from allosr2.training.noise import uniform
from allosr2.training.perceptual import build_lpips, shifted


class DecoderStage:
    """Decode restored latents, and some of HR images, into HR images (L1 + LPIPS, no grids, as much detail).

    Raises ModelError if model or LPIPS cannot be loaded, ConfigError if the model's base lies elsewhere.
    """

    def __init__(self, config: DecoderTraining, device: torch.device) -> None:
        folder = model_folder(config.model)
        base = ModelConfig.read(folder).base
        self._base = folder / base
        if not (self._base.is_dir() and self._base.resolve().is_relative_to(folder.resolve())):
            raise ConfigError(
                f"model is {config.model}: its base {base} lies elsewhere and would not get the new decoder; "
                "use a model that was trained with --embed-base"
            )
        model = AlloSR2.from_pretrained(folder)
        self.fingerprint = fingerprint(model.state_dict())  # merging rounds as the processor does
        self._model = model.merge()
        self._model.to(device)
        self._model.codec.to(memory_format=torch.channels_last)
        self.module = load_frozen_codec(folder).to(device)
        self.module.to(memory_format=torch.channels_last)
        self.module.vae.decoder.requires_grad_(True)
        self.degradation = mixture(self._model.config.preset)
        self.scale = self._model.config.scale
        if config.images.crop % self.scale:
            raise ConfigError(
                f"crop is {config.images.crop}: use a multiple of the model's scale {self.scale}"
            )
        self.constants: dict[str, float] = {}
        self._config = config
        self._weight = config.perceptual.perceptual_weight
        self._lpips = build_lpips(config.perceptual, device, compile=config.run.compile)
        if config.run.compile:
            self.module.vae.encoder.compile()
            self.module.vae.decoder.compile()
            self._model.codec.vae.encoder.compile()
            self._model.velocity.compile_blocks()

    def losses(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """`reconstruction` (L1), `perceptual` (LPIPS), `grid` and `hatch`, `texture`.

        What has strides, LPIPS, `hatch` and `texture`, sees a part of each image at a random place.
        """
        config = self._config
        restored = uniform(generators) < config.result_fraction
        with torch.no_grad():
            z_sr = self._restored(batch)
            z = torch.where(restored[:, None, None, None], z_sr, self.module.encode(batch.hr))
        image = self._decode(z)
        terms = {"reconstruction": (image - batch.hr).abs().mean()}
        total = terms["reconstruction"]
        part, hr_part = shifted(generators, image, batch.hr)
        if self._lpips is not None:
            terms["perceptual"] = self._lpips(part, hr_part).mean()
            total = total + self._weight * terms["perceptual"]
        if config.grid_weight:
            terms["grid"], terms["hatch"] = grid(image, batch.hr), hatch(part, hr_part)
            total = total + config.grid_weight * (terms["grid"] + terms["hatch"])
        if config.texture_weight:
            terms["texture"] = texture(part, hr_part)
            total = total + config.texture_weight * terms["texture"]
        return terms | {"total": total}

    def inspect(self, batches: Sequence[Batch]) -> Inspection:
        """What becomes of LR images with this decoder."""
        results = (self._decode(self._restored(batch)) for batch in batches)
        return inspect_results(batches, results, scale=self.scale, lpips=self._lpips)

    def _restored(self, batch: Batch) -> Tensor:
        assert batch.lr is not None
        return self._model.one_step(self._model.codec.encode(enlarge(batch.lr, self.scale)))

    def _decode(self, z: Tensor) -> Tensor:
        with float32_for_grids(self._config.grid_weight, z.device):
            return self.module.decode(z)

    def export(self, folder: Path) -> Path:
        """Write the model with its base inside: the new decoder, the rest as it was, the VAE in bfloat16."""
        provenance = self._model.config.provenance | {"decoder": provenance_fields(self._config)}
        self._model.config = dataclasses.replace(
            self._model.config, base="base", provenance=provenance
        )
        self._model.save_pretrained(folder)
        copy_base(self._base, folder)
        save_base(folder / "base", vae=self.module.vae)
        return folder
