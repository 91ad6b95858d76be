"""Whole training configs by name. An ablation is `dataclasses.replace` on one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
    WatchConfig,
)


def mini_codec() -> CodecTraining:
    """Stage 1 of `mini`: its VAE, from photographs and drawn images."""
    return CodecTraining(
        run=RunConfig(
            recipe="mini-codec",
            output=Path("runs/mini-codec"),
            steps=4_000,
            batch_size=16,
            compile=True,
        ),
        images=ImagesConfig(crop=128, maximum_scale=2.0),
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
        run=RunConfig(
            recipe="mini-flow",
            output=Path("runs/mini-flow"),
            steps=2_500,
            batch_size=32,
            compile=True,
        ),
        images=ImagesConfig(crop=128, maximum_scale=2.0),
        optimization=OptimizationConfig(
            learning_rate=1e-3,
            betas=(0.9, 0.99),
            warmup_steps=50,
            decay_fraction=0.4,
            ema_decay=0.998,
        ),
        codec=Path("runs/mini-codec/model"),
    )


def mini() -> AlloSR2Training:
    """Stage 3 of `mini`: Algorithm 1 on the embedded model's base, or on what stages 1 and 2 made.

    ATM is left out: from a flow this weak its anchor is smoother than z_hr and takes detail away. LPIPS
    weighs more than the default 2, at which FATC's gradient is six times as large. Three of four LR images
    have no noise, or next to none: of more it learns to smooth what is none (see `docs/mini.md`).
    """
    return AlloSR2Training(
        run=RunConfig(
            recipe="mini", output=Path("runs/mini"), steps=2_400, batch_size=4, compile=True
        ),
        images=ImagesConfig(crop=256, maximum_scale=2.0),
        optimization=OptimizationConfig(
            learning_rate=1e-3,
            betas=(0.9, 0.99),
            warmup_steps=50,
            decay_fraction=0.5,
            ema_decay=0.998,
        ),
        watch=WatchConfig(validate_every=200, validation_images=4),
        perceptual=PerceptualConfig(perceptual_weight=10.0),
        base="mini",
        embed_base=True,
        loss=LossConfig(atm_weight=0.0),
        adapter=AdapterConfig(rank=64, alpha=64),
        preset="mild+camera+camera+bicubic",
    )


def mini_decoder() -> DecoderTraining:
    """Stage 4 of `mini`: its VAE's decoder, on what the model of stage 3 restores.

    A third of the images are drawn: weaves, lattices and long upright edges, which photographs of landscapes
    lack, are where a decoder shows its grid (see `docs/mini.md`).
    """
    return DecoderTraining(
        run=RunConfig(
            recipe="mini-decoder",
            output=Path("runs/mini-decoder"),
            steps=1_000,
            batch_size=2,
            compile=True,
        ),
        images=ImagesConfig(procedural=0.35, crop=512, minimum_scale=0.7, maximum_scale=2.0),
        optimization=OptimizationConfig(
            learning_rate=4e-4,
            weight_decay=0.0,
            betas=(0.9, 0.99),
            warmup_steps=20,
            decay_fraction=0.7,
            ema_decay=0.995,
        ),
        perceptual=PerceptualConfig(perceptual_weight=6.0),
        model="runs/mini/model",
        grid_weight=1.0,
        texture_weight=0.1,
    )


def flux_dev_x4() -> AlloSR2Training:
    """The paper's: FLUX.1-dev, 512 px, x4, batch 16, 10 K steps; with eight processes two images a GPU.

    Non-commercial base. The encoded prompt comes from `allosr2 prepare`.
    """
    return AlloSR2Training(
        run=RunConfig(
            recipe="flux-dev-x4",
            output=Path("runs/flux-dev-x4"),
            steps=10_000,
            batch_size=16,
            accumulation=8,
        ),
        # the paper's data, nothing drawn
        images=ImagesConfig(
            photos=("lsdir", "ffhq:10000"), procedural=0.0, crop=512, minimum_scale=1.0, workers=4
        ),
        optimization=OptimizationConfig(learning_rate=5e-5, ema_decay=0.0),
        perceptual=PerceptualConfig(perceptual=Path("lpips.safetensors")),
        base="black-forest-labs/FLUX.1-dev",
        base_precision="bfloat16",
        conditioning=Path("conditioning.safetensors"),
        guidance=1.0,
        gradient_checkpointing=True,
        loss=LossConfig(),
        adapter=AdapterConfig(rank=64, alpha=64),
        preset="real-esrgan",
    )


def flux_dev_x4_without_fatc() -> AlloSR2Training:
    """The paper's ablation without FATC (Table 2)."""
    loss = replace(flux_dev_x4().loss, fatc_weight=0.0)
    return _named("flux-dev-x4-without-fatc", replace(flux_dev_x4(), loss=loss))


def flux_dev_x4_without_atm() -> AlloSR2Training:
    """The paper's ablation without ATM (Table 2)."""
    loss = replace(flux_dev_x4().loss, atm_weight=0.0)
    return _named("flux-dev-x4-without-atm", replace(flux_dev_x4(), loss=loss))


def flux_dev_lean() -> AlloSR2Training:
    """The paper's, trained with zero text tokens: a third of the tokens less, in training and ever after."""
    return _named("flux-dev-lean", replace(flux_dev_x4(), text_tokens=0))


def flux_dev_24gb() -> AlloSR2Training:
    """The paper's on a GPU of 24 GB: the frozen transformer in 4 bits, one image at a time."""
    paper_s = flux_dev_x4()
    one_image_a_part = replace(paper_s.run, accumulation=paper_s.run.batch_size)
    return _named("flux-dev-24gb", replace(paper_s, base_precision="nf4", run=one_image_a_part))


def flux_schnell_x4() -> AlloSR2Training:
    """The paper's on FLUX.1-schnell: Apache 2.0, and no guidance."""
    return _named(
        "flux-schnell-x4",
        replace(flux_dev_x4(), base="black-forest-labs/FLUX.1-schnell", guidance=None),
    )


def flux2_klein_x4() -> AlloSR2Training:
    """The paper's on FLUX.2 [klein] 4B: Apache 2.0, and no guidance."""
    return _named(
        "flux2-klein-x4",
        replace(flux_dev_x4(), base="black-forest-labs/FLUX.2-klein-4B", guidance=None),
    )


def sd35_medium_x4() -> AlloSR2Training:
    """The paper's on Stable Diffusion 3.5 medium: 2.2 B parameters, community license, and no guidance."""
    return _named(
        "sd35-medium-x4",
        replace(flux_dev_x4(), base="stabilityai/stable-diffusion-3.5-medium", guidance=None),
    )


def z_image_x4() -> AlloSR2Training:
    """The paper's on Z-Image: 6 B parameters, Apache 2.0, and no guidance."""
    return _named("z-image-x4", replace(flux_dev_x4(), base="Tongyi-MAI/Z-Image", guidance=None))


def _named(name: str, config: AlloSR2Training) -> AlloSR2Training:
    return replace(config, run=replace(config.run, recipe=name, output=Path("runs") / name))


def recipes() -> dict[str, Callable[[], TrainingConfig]]:
    """Every recipe by the name that `allosr2 train` knows it by."""
    return {
        "mini-codec": mini_codec,
        "mini-flow": mini_flow,
        "mini": mini,
        "mini-decoder": mini_decoder,
        "flux-dev-x4": flux_dev_x4,
        "flux-dev-x4-without-fatc": flux_dev_x4_without_fatc,
        "flux-dev-x4-without-atm": flux_dev_x4_without_atm,
        "flux-dev-lean": flux_dev_lean,
        "flux-dev-24gb": flux_dev_24gb,
        "flux-schnell-x4": flux_schnell_x4,
        "flux2-klein-x4": flux2_klein_x4,
        "sd35-medium-x4": sd35_medium_x4,
        "z-image-x4": z_image_x4,
    }
