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
from allosr2.data.degradation import preset
from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.errors import ConfigError, ModelError
from allosr2.imaging.resize import enlarge
from allosr2.model import (
    CONDITIONING_NAME,
    AlloSR2,
    ModelConfig,
    copy_base,
    load_conditioning,
    model_folder,
    origin_of,
)
from allosr2.training.adapters import add_fresh_adapters, use_gradient_checkpointing
from allosr2.training.checkpoint import provenance_fields
from allosr2.training.config import AlloSR2Training
from allosr2.training.distributed import measured_once
from allosr2.training.perceptual import build_lpips
from allosr2.training.step import algorithm_1
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
        local = Path(config.base).is_dir()
        if config.embed_base and not local:
            raise ConfigError(
                f"embed_base is set: base {config.base} is no folder here; name one, or leave it out"
            )
        self.degradation = preset(config.preset)
        self.scale = config.scale
        self._config = config
        self._data = {
            "photographs": len(images.folder.paths) if images.folder else 0,
            "folder": config.images.photos.resolve().name,
            "drawn": config.images.procedural,
        }
        self._lpips = build_lpips(config.perceptual, device, compile=config.run.compile)
        outlined, outlined_vae = outline(config.base)
        # what is small is checked first: a large base takes minutes to load, hours to download
        try:
            _velocity(config, outlined).check_channels(codec_of(outlined_vae).channels)
        except ModelError as error:
            raise ModelError(f"{config.base}: {error}") from error
        vae = load_vae(config.base)
        transformer = load_transformer(config.base, config.base_precision)
        self._frozen = codec_of(copy.deepcopy(vae)).to(device).to(memory_format=torch.channels_last)
        codec, velocity = codec_of(vae), _velocity(config, transformer)
        if config.initial:
            load_adapters(model_folder(config.initial), vae=vae, transformer=transformer)
            for part in (vae, transformer):
                _check_adapter(part, config)
                unfreeze_adapters(part)
        else:
            add_fresh_adapters(config, codec, velocity)
        use_gradient_checkpointing(config, vae, transformer)
        self.constants = constants or {
            "t_star": config.t_star
            or measured_once(lambda: self._measure_t_star(images, device), device)
        }
        # a local base is named by its absolute path: the model is not always loaded from where it was trained
        base = str(Path(config.base).resolve()) if local else config.base
        model_config = ModelConfig(
            base="base" if config.embed_base else base,
            origin=origin_of(config.base),
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
            velocity.compile_blocks()

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
            copy_base(Path(self._config.base), folder)
        return folder

    def _measure_t_star(self, images: HRImages, device: torch.device) -> float:
        """Eq. 6 on the run's first `t_star_pairs` pairs, by the frozen encoder, less those of one color."""

        def latents() -> Iterator[tuple[Tensor, Tensor]]:
            run = self._config.run
            loader = batches(
                images,
                self.degradation,
                scale=self.scale,
                batch_size=run.batch_size // run.accumulation,
                first=0,
                last=self._config.t_star_pairs,
                workers=self._config.images.workers,
            )
            for batch in (b.to(device) for b in loader):
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
