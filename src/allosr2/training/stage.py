"""A stage of training: what is trained, on what images, by which losses, and what is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from allosr2.data.degradation import DegradationConfig, DegradationMix
from allosr2.data.pairs import Batch
from allosr2.data.photos import HRImages
from allosr2.training.allosr2 import AlloSR2Stage
from allosr2.training.codec import CodecStage
from allosr2.training.config import (
    AlloSR2Training,
    CodecTraining,
    DecoderTraining,
    FlowTraining,
    TrainingConfig,
)
from allosr2.training.decoder import DecoderStage
from allosr2.training.diagnostics import Inspection
from allosr2.training.flow import FlowStage


class Stage(Protocol):
    """What the loop needs to know; each kind of training config has one."""

    @property
    def module(self) -> nn.Module:
        """Everything that is trained: parameters that require a gradient, by name."""
        ...

    @property
    def degradation(self) -> DegradationConfig | DegradationMix | None:
        """How LR images are made; None for stages that see HR images alone."""
        ...

    @property
    def scale(self) -> int:
        """Upscaling factor of the pairs."""
        ...

    @property
    def constants(self) -> dict[str, float]:
        """Numbers measured when the stage was built, kept in checkpoints."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells the frozen weights that are trained with from others; kept in checkpoints."""
        ...

    def losses(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Loss terms of a batch by name; `total` is what is differentiated. A generator a sample."""
        ...

    def inspect(self, batches: Sequence[Batch]) -> Inspection:
        """Look at validation images; called as `allosr2.training.inspection.inspect` calls it."""
        ...

    def export(self, folder: Path) -> Path:
        """Write what was trained as others load it; returns the folder."""
        ...


def build_stage(
    config: TrainingConfig, images: HRImages, device: torch.device, constants: dict[str, float]
) -> Stage:
    """The stage that a config describes; `constants` come from the checkpoint that is resumed, if any."""
    match config:
        case CodecTraining():
            return CodecStage(config, device)
        case FlowTraining():
            return FlowStage(config, device)
        case AlloSR2Training():
            return AlloSR2Stage(config, images, device, constants)
        case DecoderTraining():
            return DecoderStage(config, device)
