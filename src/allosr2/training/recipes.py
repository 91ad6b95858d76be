"""Whole training configs by name. An ablation is `dataclasses.replace` on one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    CodecTraining,
    DecoderTraining,
    FlowTraining,
    ImagesConfig,
    LossConfig,
    OptimizationConfig,
    PerceptualConfig,
    RunConfig,
    TrainingConfig,
)


def mini_codec() -> CodecTraining:
    """Stage 1 of `mini`: its VAE, from photographs and drawn images."""
    return CodecTraining(
        run=RunConfig(output=Path("runs/mini-codec"), steps=4_000, batch_size=16, compile=True),
        images=ImagesConfig(crop=128),
        optimization=OptimizationConfig(
            learning_rate=1e-3,
            weight_decay=0.0,
            betas=(0.9, 0.99),
            warmup_steps=200,
            decay_fraction=0.4,
            ema_decay=0.998,
        ),
        perceptual=PerceptualConfig(perceptual_weight=0.3),
    )


def mini_flow() -> FlowTraining:
    """Stage 2 of `mini`: its transformer, by flow matching on the codec's latents."""
    return FlowTraining(
        run=RunConfig(output=Path("runs/mini-flow"), steps=2_500, batch_size=32, compile=True),
        images=ImagesConfig(crop=128),
        optimization=OptimizationConfig(
            learning_rate=1e-3,
            betas=(0.9, 0.99),
            warmup_steps=200,
            decay_fraction=0.4,
            ema_decay=0.998,
        ),
        codec=Path("runs/mini-codec/model"),
    )


def mini() -> AlloSR2Training:
    """Stage 3 of `mini`: Algorithm 1 on the base that stages 1 and 2 made.

    ATM is left out: from a flow this weak its anchor is smoother than z_hr and takes detail away. LPIPS
    weighs more than the default 2, at which FATC's gradient is six times as large, and losses that the paper
    does not have keep grids away, which takes large crops (see `docs/mini.md`).
    """
    return AlloSR2Training(
        run=RunConfig(output=Path("runs/mini"), steps=2_400, batch_size=2, compile=True),
        images=ImagesConfig(crop=512),
        optimization=OptimizationConfig(
            learning_rate=1e-3,
            betas=(0.9, 0.99),
            warmup_steps=100,
            decay_fraction=0.5,
            ema_decay=0.998,
        ),
        perceptual=PerceptualConfig(perceptual_weight=10.0),
        base="runs/mini-flow/model",
        embed_base=True,
        loss=LossConfig(atm_weight=0.0, grid_weight=0.2),
        adapter=AdapterConfig(rank=64, alpha=64),
        preset="mild",
    )


def mini_decoder() -> DecoderTraining:
    """Stage 4 of `mini`: its VAE's decoder, on what the model of stage 3 restores."""
    return DecoderTraining(
        run=RunConfig(output=Path("runs/mini-decoder"), steps=1_000, batch_size=2, compile=True),
        images=ImagesConfig(crop=512),
        optimization=OptimizationConfig(
            learning_rate=7e-4,
            weight_decay=0.0,
            betas=(0.9, 0.99),
            warmup_steps=30,
            decay_fraction=0.5,
            ema_decay=0.998,
        ),
        perceptual=PerceptualConfig(perceptual_weight=1.0),
        model="runs/mini/model",
        quiet=True,
        grid_weight=0.3,
    )


def recipes() -> dict[str, Callable[[], TrainingConfig]]:
    """Every recipe by the name that `allosr2 train` knows it by."""
    return {
        "mini-codec": mini_codec,
        "mini-flow": mini_flow,
        "mini": mini,
        "mini-decoder": mini_decoder,
    }
