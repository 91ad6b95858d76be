"""Stage 3: AlloSR2 on a pre-trained flow. Measures t*, then trains adapters by Algorithm 1."""

from __future__ import annotations

import copy
import dataclasses
import logging
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from allosr2.backbones.base import codec_of, family_of, load_transformer, load_vae
from allosr2.backbones.known import outline
from allosr2.backbones.lora import (
    adapter_size,
    load_adapters,
    unfreeze_adapters,
)
from allosr2.backbones.velocity import Conditioning, VelocityField, representable_time
from allosr2.data.degradation import mixture
from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.errors import ConfigError, ModelError
from allosr2.fingerprint import fingerprint, tensors_of
from allosr2.imaging.resize import enlarge
from allosr2.losses.grid import float32_for_grids
from allosr2.model import (
    CONDITIONING_NAME,
    AlloSR2,
    ModelConfig,
    copy_base,
    load_conditioning,
    model_folder,
    named_base,
    origin_of,
)
from allosr2.training.adapters import add_fresh_adapters, use_gradient_checkpointing
from allosr2.training.checkpoint import provenance_fields
from allosr2.training.config import AlloSR2Training
from allosr2.training.diagnostics import (
    Inspection,
    gradient_norms,
    inspect_results,
    snr_match,
    straightness,
)
from allosr2.training.distributed import measured_once, shard
from allosr2.training.noise import sample_generators
from allosr2.training.perceptual import build_lpips
from allosr2.training.step import algorithm_1, draw, weighted_terms
from allosr2.trajectory import latent_power, optimal_time

logger = logging.getLogger(__name__)


class AlloSR2Stage:
    """LoRA on VAE encoder and transformer; decoder, frozen encoder and LPIPS stay as they are.

    Raises ConfigError if a base that is to be embedded is no folder, ModelError if base, adapters or LPIPS
    cannot be loaded.
    """

    def __init__(
        self,
        config: AlloSR2Training,
        images: HRImages,
        device: torch.device,
        constants: dict[str, float],
    ) -> None:
        self._base = named_base(config.base)
        local = Path(self._base).is_dir()
        if config.embed_base and not local:
            raise ConfigError(
                f"embed_base is set: base {config.base} is no folder here; name one, or leave it out"
            )
        self.degradation = mixture(config.preset)
        self.scale = config.scale
        self._config = config
        self._data = {
            "photographs": len(images.folder.photos) if images.folder else 0,
            "sources": [Path(photos).resolve().name for photos in config.images.photos],
            "drawn": config.images.procedural if images.folder else 1.0,
        }
        self._lpips = build_lpips(config.perceptual, device, compile=config.run.compile)
        outlined, outlined_vae = outline(self._base)
        # what is small is checked first: a large base takes minutes to load, hours to download
        try:
            _velocity(config, outlined).check_channels(codec_of(outlined_vae).channels)
        except ModelError as error:
            raise ModelError(f"{config.base}: {error}") from error
        vae = load_vae(self._base)
        transformer = load_transformer(self._base, config.base_precision)
        self._frozen = codec_of(copy.deepcopy(vae)).to(device).to(memory_format=torch.channels_last)
        codec, velocity = codec_of(vae), _velocity(config, transformer)
        self.fingerprint = fingerprint(
            tensors_of(vae=vae, transformer=transformer, lpips=self._lpips)
            | velocity.conditioning.tensors()
        )
        if config.initial:
            load_adapters(model_folder(config.initial), vae=vae, transformer=transformer)
            for part in (vae, transformer):
                _check_adapter(part, config)
                unfreeze_adapters(part)
        else:
            add_fresh_adapters(config, codec, velocity)
        use_gradient_checkpointing(config, vae=vae, transformer=transformer)
        if config.run.compile:
            velocity.compile_blocks()
        if config.shard_base:  # what is compiled, and before any device holds all of it
            shard(transformer, device)
        self.constants = {
            "t_star": config.t_star
            or constants.get("t_star")
            or measured_once(lambda: self._measure_t_star(images, device), device)
        }
        # a local base is named by its absolute path: the model is not always loaded from where it was trained
        base = str(Path(self._base).resolve()) if local else config.base
        model_config = ModelConfig(
            base="base" if config.embed_base else base,
            origin=origin_of(self._base),
            t_star=representable_time(self.constants["t_star"]),
            scale=config.scale,
            preset=config.preset,
            prompt_length=velocity.prompt.shape[0],
            guidance=config.guidance,
        )
        self.module = AlloSR2(codec, velocity, model_config).to(device)
        self.module.codec.to(memory_format=torch.channels_last)
        if config.run.compile:
            for codec in (self._frozen, self.module.codec):
                codec.vae.encoder.compile()
                codec.vae.decoder.compile()

    def losses(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Algorithm 1's terms."""
        return algorithm_1(
            self.module,
            self._frozen,
            batch,
            generators,
            loss=self._config.loss,
            lpips=self._lpips,
            perceptual_weight=self._config.perceptual.perceptual_weight,
        )

    def inspect(self, batches: Sequence[Batch]) -> Inspection:
        """What becomes of LR images; how z_lr fits t*; how straight the path is; each loss's gradient.

        The gradients are those of the first image, with the same t and eps each time: one loss after the
        other keeps more in memory than a step. A sharded transformer, whose backward pass serves one loss at a
        time, goes without.
        """
        t_star, velocity = self.module.config.t_star, self.module.velocity
        latents = [(self._encode_lr(batch), self._frozen.encode(batch.hr)) for batch in batches]
        results = (self._decode(self.module.one_step(z_lr)) for z_lr, _ in latents)
        inspection = inspect_results(batches, results, scale=self.scale, lpips=self._lpips)
        numbers = inspection.numbers | snr_match(latents, t_star)
        numbers |= straightness(velocity, latents, t_star)
        if not self._config.shard_base:
            with torch.enable_grad():
                losses = self._weighted_losses(batches[0].first(1))
            numbers |= gradient_norms(losses, {"codec": self.module.codec, "velocity": velocity})
        return dataclasses.replace(inspection, numbers=numbers)

    def _encode_lr(self, batch: Batch) -> Tensor:
        assert batch.lr is not None
        return self.module.codec.encode(enlarge(batch.lr, self.scale))

    def _decode(self, z_sr: Tensor) -> Tensor:
        with float32_for_grids(self._config.loss.grid_weight, z_sr.device):
            return self.module.codec.decode(z_sr)

    def _weighted_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Each term of the sum that is trained on, with what was drawn for these samples."""
        loss, device = self._config.loss, batch.hr.device
        drawn = draw(
            sample_generators(self._config.run.seed, batch.samples, device),
            batch,
            self._frozen,
            t_star=self.module.config.t_star,
            crop=loss.perceptual_crop,
        )
        return weighted_terms(
            self.module,
            self._frozen,
            batch,
            drawn,
            loss=loss,
            lpips=self._lpips,
            perceptual_weight=self._config.perceptual.perceptual_weight,
        ).weighted

    def export(self, folder: Path) -> Path:
        """Write the model folder; a base that is embedded travels with it."""
        provenance: dict[str, Any] = {
            "training": provenance_fields(self._config),
            "data": self._data,
            "torch": torch.__version__,
            "processor": platform.machine(),
        }
        self.module.config = dataclasses.replace(self.module.config, provenance=provenance)
        self.module.save_pretrained(folder)
        if self._config.embed_base:
            copy_base(Path(self._base), folder)
        return folder

    def _measure_t_star(self, images: HRImages, device: torch.device) -> float:
        """Eq. 6 on the run's first `t_star_pairs` pairs, by the frozen encoder, less those of one color."""

        def latents() -> Iterator[tuple[Tensor, Tensor]]:
            run, pairs = self._config.run, range(self._config.t_star_pairs)
            size = run.batch_size // run.accumulation
            loader = batches(
                images,
                self.degradation,
                [pairs[first : first + size] for first in pairs[::size]],
                scale=self.scale,
                workers=self._config.images.workers,
                device=device,
            )
            for batch in loader:
                assert batch.lr is not None
                z_lr = self._frozen.encode(enlarge(batch.lr, self.scale))
                z_hr = self._frozen.encode(batch.hr)
                # crops of one color degrade to themselves: no noise to match, and nothing to learn
                noisy = (z_lr != z_hr).flatten(1).any(1)
                yield z_lr[noisy], z_hr[noisy]

        with torch.no_grad():
            t_star = optimal_time(latent_power(latents()))
        logger.info(
            "t* = %.4f on %d pairs (%s)", t_star, self._config.t_star_pairs, self._config.preset
        )
        return t_star


def _velocity(config: AlloSR2Training, transformer: nn.Module) -> VelocityField:
    """The field with the config's prompt and guidance. Raises ConfigError for what does not suit the base."""
    family = family_of(transformer)
    if config.guidance is None and family.distilled(transformer):
        raise ConfigError(f"guidance is None: {config.base} needs one; use --guidance 1.0")
    for name, value, option in (
        ("guidance", config.guidance, "--guidance"),
        ("atm_guidance", config.loss.atm_guidance, "--atm-guidance"),
    ):
        if value is not None and not family.distilled(transformer):
            raise ConfigError(f"{name} is {value}: {config.base} takes none; use {option} None")
    conditioning = _conditioning(config) or family.without_text(transformer)
    if config.text_tokens is not None:
        conditioning = conditioning.first(config.text_tokens)
    return family(transformer, conditioning, config.guidance)


def _conditioning(config: AlloSR2Training) -> Conditioning | None:
    """The encoded prompt: the config's, or the initial model's."""
    if config.conditioning is None:
        folder = config.initial and model_folder(config.initial)
        return load_conditioning(folder / CONDITIONING_NAME) if folder else None
    if not config.conditioning.is_file():
        raise ConfigError(
            f"conditioning is {config.conditioning}: no such file; make it with "
            f"`allosr2 prepare --base {config.base} --output {config.conditioning}`"
        )
    return load_conditioning(config.conditioning)


def _check_adapter(part: nn.Module, config: AlloSR2Training) -> None:
    """Raise ConfigError if the adapter that a part got from `initial` is not the one that is asked for."""
    if not adapter_size(part)[0]:
        raise ConfigError(
            f"initial is {config.initial}: it has no adapters for the {type(part).__name__}; "
            "use a model that has both"
        )
    for name, found in zip(("rank", "alpha"), adapter_size(part), strict=True):
        asked = getattr(config.adapter, name)
        if found != asked:
            raise ConfigError(
                f"{name} is {asked}: the adapters of {config.initial} have {found}; use that"
            )
