"""The learning-rate schedule in closed form, and every refusal of a config."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allosr2.errors import ConfigError
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    CodecTraining,
    DecoderTraining,
    ImagesConfig,
    LossConfig,
    OptimizationConfig,
    PerceptualConfig,
    RunConfig,
)


def run(**changes: Any) -> RunConfig:
    return RunConfig(output=Path("run"), **changes)


def allosr2(crop: int = 256, **changes: Any) -> AlloSR2Training:
    return AlloSR2Training(
        run=run(),
        images=ImagesConfig(crop=crop),
        optimization=OptimizationConfig(),
        perceptual=PerceptualConfig(),
        base="base",
        **changes,
    )


def codec(**changes: Any) -> CodecTraining:
    return CodecTraining(
        run=run(),
        images=ImagesConfig(),
        optimization=OptimizationConfig(),
        perceptual=PerceptualConfig(),
        **changes,
    )


def decoder(crop: int = 256, **changes: Any) -> DecoderTraining:
    return DecoderTraining(
        run=run(),
        images=ImagesConfig(crop=crop),
        optimization=OptimizationConfig(),
        perceptual=PerceptualConfig(),
        model="model",
        **changes,
    )


def test_learning_rate_rises_stays_and_falls() -> None:
    schedule = OptimizationConfig(learning_rate=0.8, warmup_steps=3, decay_fraction=0.4)
    rates = [schedule.learning_rate_at(step, 10) for step in range(10)]
    # quarters up to the peak; then, over the last 4 steps, 4/4, 3/4, 2/4, 1/4: step 10 would have 0
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2])


def test_learning_rate_is_constant_without_schedule() -> None:
    schedule = OptimizationConfig(learning_rate=5e-5)
    assert {schedule.learning_rate_at(step, 7) for step in range(7)} == {5e-5}


def test_learning_rate_of_a_decay_shorter_than_a_step() -> None:
    assert OptimizationConfig(learning_rate=1.0, decay_fraction=0.1).learning_rate_at(0, 1) == 1.0


@pytest.mark.parametrize(
    ("build", "changes", "message"),
    [
        (ImagesConfig, {"procedural": 1.5}, "procedural is 1.5: use a fraction in [0, 1]"),
        (ImagesConfig, {"crop": 100}, "crop is 100: use a multiple of 16, at least 32"),
        (ImagesConfig, {"crop": 16}, "crop is 16: use a multiple of 16, at least 32"),
        (ImagesConfig, {"minimum_scale": 0.0}, "minimum_scale is 0.0: use (0, 1]"),
        (ImagesConfig, {"maximum_scale": 0.9}, "maximum_scale is 0.9: use 1 or more"),
        (ImagesConfig, {"cache_gigabytes": -1.0}, "cache_gigabytes is -1.0: use 0 or more"),
        (ImagesConfig, {"workers": -1}, "workers is -1: use 0 or more"),
        (OptimizationConfig, {"learning_rate": 0.0}, "learning_rate is 0.0: use a positive value"),
        (OptimizationConfig, {"betas": (0.9, 1.0)}, "betas is (0.9, 1.0): use [0, 1)"),
        (OptimizationConfig, {"decay_fraction": 1.1}, "decay_fraction is 1.1: use [0, 1]"),
        (OptimizationConfig, {"gradient_clip": 0.0}, "gradient_clip is 0.0: use a positive value"),
        (OptimizationConfig, {"ema_decay": 1.0}, "ema_decay is 1.0: use [0, 1)"),
        (run, {"steps": 0}, "steps is 0: use 1 or more"),
        (run, {"seed": -1}, "seed is -1: use 0 or more"),
        (run, {"keep_checkpoints": 0}, "keep_checkpoints is 0: use 1 or more"),
        (run, {"precision": "float16"}, "precision is float16: use float32 or bfloat16"),
        (
            run,
            {"batch_size": 8, "accumulation": 3},
            "accumulation is 3: use a divisor of batch_size 8",
        ),
        (PerceptualConfig, {"perceptual_weight": -1.0}, "perceptual_weight is -1.0: use 0 or more"),
        (codec, {"latent_noise": -0.1}, "latent_noise is -0.1: use 0 or more"),
        (codec, {"soft_fraction": 2.0}, "soft_fraction is 2.0: use a fraction in [0, 1]"),
        (decoder, {"result_fraction": -0.1}, "result_fraction is -0.1: use a fraction in [0, 1]"),
        (decoder, {"grid_weight": -1.0}, "grid_weight is -1.0: use 0 or more"),
        (
            decoder,
            {"crop": 112, "grid_weight": 0.1},
            "crop is 112: the grid loss needs 128 px or more; without it use --grid-weight 0",
        ),
        (LossConfig, {"grid_weight": -1.0}, "grid_weight is -1.0: use 0 or more"),
        (
            allosr2,
            {"crop": 64, "loss": LossConfig(grid_weight=0.1)},
            "crop is 64: the grid loss needs 128 px or more; without it use --grid-weight 0",
        ),
        (
            allosr2,
            {"loss": LossConfig(perceptual_crop=100)},
            "perceptual_crop is 100: use --perceptual-crop None, or a multiple of 16 from 32 on",
        ),
        (
            allosr2,
            {"loss": LossConfig(perceptual_crop=16)},
            "perceptual_crop is 16: use --perceptual-crop None, or a multiple of 16 from 32 on",
        ),
        (
            allosr2,
            {"loss": LossConfig(perceptual_crop=112, grid_weight=0.1)},
            "perceptual_crop is 112: use --perceptual-crop None, or a multiple of 16 from 128 on",
        ),
        (
            allosr2,
            {"checkpointing_interval": 0},
            "checkpointing_interval is 0: use 1 or more",
        ),
        (OptimizationConfig, {"optimizer": "sgd"}, "optimizer is sgd: use adamw or adamw-8bit"),
        (AdapterConfig, {"rank": 0}, "rank is 0: use 1 or more"),
        (LossConfig, {"atm_weight": -1.0}, "atm_weight is -1.0: use 0 or more"),
        (LossConfig, {"atm_guidance": float("nan")}, "atm_guidance is nan: use a number"),
        (LossConfig, {"fatc_weight": float("inf")}, "fatc_weight is inf: use 0 or more"),
        (
            OptimizationConfig,
            {"learning_rate": float("inf")},
            "learning_rate is inf: use a positive value",
        ),
        (LossConfig, {"atm_state": "new"}, "atm_state is new: use anchored or renoised"),
        (LossConfig, {"atm_reference": "x"}, "atm_reference is x: use shared or frozen"),
        (LossConfig, {"perceptual_target": "x"}, "perceptual_target is x: use image or decoded"),
        (allosr2, {"scale": 0}, "scale is 0: use 1 or more"),
        (allosr2, {"scale": 3}, "scale is 3: use a divisor of crop 256"),
        (allosr2, {"t_star": 1.0}, "t_star is 1.0: use a value from 0.001 to 0.995"),
        (allosr2, {"t_star_pairs": 0}, "t_star_pairs is 0: use 1 or more"),
    ],
)
def test_refusal_names_field_value_and_remedy(
    build: Callable[..., object], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build(**changes)


def test_scale_3_fits_a_crop_that_it_divides() -> None:
    assert allosr2(crop=240, scale=3).scale == 3


def test_lpips_is_used_if_it_has_a_file_and_a_weight() -> None:
    path = Path("lpips.safetensors")
    assert PerceptualConfig(perceptual=path).used
    assert not PerceptualConfig().used
    assert not PerceptualConfig(perceptual=path, perceptual_weight=0.0).used


def test_all_of_an_image_may_be_decoded_as_a_part() -> None:
    loss = LossConfig(perceptual_crop=512, grid_weight=0.1)  # larger than the crop: all of it
    assert allosr2(loss=loss).loss.perceptual_crop == 512
