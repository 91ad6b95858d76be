"""Stage 2 of `mini`: flow matching (arXiv:2604.19238, Eq. 3) on the latents of a frozen codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import reduce
from torch import Tensor
from torch.nn import functional

from allosr2.backbones.base import codec_of, family_of, load_transformer, load_vae, save_base
from allosr2.backbones.presets import mini_velocity
from allosr2.data.pairs import Batch
from allosr2.fingerprint import fingerprint
from allosr2.flow import clean_prediction, interpolate, velocity
from allosr2.imaging.sheet import Panel
from allosr2.training.config import FlowTraining
from allosr2.training.diagnostics import Inspection, first_rows, mean, panels
from allosr2.training.noise import normal, sample_generators

_INSPECTED_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class FlowStage:
    """A velocity field that learns the path from HR latents to noise, without text."""

    def __init__(self, config: FlowTraining, device: torch.device) -> None:
        self._seed = config.run.seed
        self._codec = codec_of(load_vae(str(config.codec))).to(device)
        self.fingerprint = fingerprint(self._codec.state_dict())
        self._codec.to(memory_format=torch.channels_last)
        transformer = load_transformer(str(config.initial)) if config.initial else mini_velocity()
        transformer.requires_grad_(True)
        self._transformer = transformer
        family = family_of(transformer)
        self.module = family(transformer, family.without_text(transformer)).to(device)
        self.module.check_channels(self._codec.channels)
        self.degradation = None
        self.scale = 1
        self.constants: dict[str, float] = {}
        if config.run.compile:
            self._codec.vae.encoder.compile()
            self.module.compile_blocks()

    def losses(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Eq. 3, with t from a logit-normal distribution: the middle of the path is the hard part."""
        with torch.no_grad():
            z_0 = self._codec.encode(batch.hr)
        eps = normal(generators, z_0.shape[1:])
        t = normal(generators, ()).sigmoid()
        v = self.module(interpolate(z_0, eps, t), t)
        loss = functional.mse_loss(v, velocity(z_0, eps))
        return {"flow_matching": loss, "total": loss}

    def inspect(self, batches: Sequence[Batch]) -> Inspection:
        """Eq. 3 at times from 0.1 to 0.9 with the same noise each time, and the clean predictions, decoded."""
        losses: dict[float, list[Tensor]] = {time: [] for time in _INSPECTED_TIMES}
        rows: list[Sequence[Panel]] = []
        for batch in batches:
            z_0 = self._codec.encode(batch.hr)
            eps = normal(sample_generators(self._seed, batch.samples, z_0.device), z_0.shape[1:])
            columns = [panels("HR", batch.hr)]
            for time in _INSPECTED_TIMES:
                t = z_0.new_full((z_0.shape[0],), time)
                z_t = interpolate(z_0, eps, t)
                v = self.module(z_t, t)
                error = (v - velocity(z_0, eps)).square()
                losses[time].append(reduce(error, "b c h w -> b", "mean"))
                clean = self._codec.decode(clean_prediction(z_t, v, t))
                columns.append(panels(f"from t = {time}", clean))
            rows += zip(*columns, strict=True)
        return Inspection(
            numbers={f"validation/flow_matching_{time}": mean(x) for time, x in losses.items()},
            sheet=first_rows(rows),
        )

    def export(self, folder: Path) -> Path:
        """Write a whole base folder: the transformer beside its VAE."""
        save_base(folder, transformer=self._transformer, vae=self._codec.vae)
        return folder
