"""Photographs and bases so small that a training step takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.training.config import (
    ImagesConfig,
    OptimizationConfig,
    PerceptualConfig,
    RunConfig,
    WatchConfig,
)

Parts = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs of smooth noise, 96 x 80 and 64 x 64."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a", (96, 80)), ("b", (64, 64))):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def parts(photos: Path) -> Parts:
    """The configs that every stage has: `parts(output, steps=3)` changes fields of the run."""

    def build(output: Path, **run: Any) -> dict[str, Any]:
        settings = {"steps": 4, "batch_size": 2, "log_every": 1, "checkpoint_every": 100, "seed": 3}
        return {
            "run": RunConfig(output=output, precision="float32", **settings | run),
            "images": ImagesConfig(photos=(str(photos),), procedural=0.0, crop=32, workers=0),
            "optimization": OptimizationConfig(
                learning_rate=1e-3, warmup_steps=1, decay_fraction=0.5, ema_decay=0.9
            ),
            "perceptual": PerceptualConfig(perceptual_weight=0.0),
            "watch": WatchConfig(tracker="none", validate_every=0),
        }

    return build


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of `mini`'s kind, random and tiny: AutoencoderDC at 1/4 size, one single block, no guidance."""
    from diffusers import AutoencoderDC, FluxTransformer2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small_base")
    AutoencoderDC(
        latent_channels=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    ).save_pretrained(folder / "vae")
    FluxTransformer2DModel(
        in_channels=16,
        num_layers=0,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="session")
def random_lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of LPIPS weights that are random, under the names that such a file has."""
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    tensors = {
        f"features.{name.replace('.squeeze.', '.squeeze1x1.')}": tensor
        for name, tensor in squeezenet1_1(weights=None).features.state_dict().items()
    }
    for number, channels in enumerate((64, 128, 256, 384, 384, 512, 512)):
        tensors[f"lpips.lin{number}.weight"] = torch.rand(1, channels, 1, 1)
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(tensors, path)
    return path
