"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# read when tqdm is first imported; the command line sets it where stderr is no terminal
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_cpu() -> Iterator[None]:
    """The same numbers on processors that compute in bfloat16 and on those that do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of evaluation pairs and reference files, kept beside a checkout and not in it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: evaluation data is not part of the repository")
    return folder


@pytest.fixture
def picture() -> np.ndarray:
    """A ramp with a sine and a corner on it: 64 x 80 x 3, levels of 8 bits."""
    y, x = np.mgrid[:64, :80]
    planes = [2 * x, 3 * y, 128 + 100 * np.sin(x / 5) * np.cos(y / 7)]
    levels = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
    levels[20:40, 30:50] = (230, 40, 90)
    return levels


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base in diffusers layout with FLUX.1-dev's parts: double and single blocks, guidance, KL VAE."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "transformer")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.1159,
        scaling_factor=0.3611,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder on `tiny_base`: random rank-4 adapters that have an effect, 3 text tokens, guidance 1."""
    from allosr2.backbones.base import load_transformer, load_vae
    from allosr2.backbones.codec import Codec
    from allosr2.backbones.flux import FluxVelocity
    from allosr2.backbones.lora import add_adapter
    from allosr2.backbones.velocity import Conditioning
    from allosr2.model import AlloSR2, ModelConfig

    torch.manual_seed(1)
    vae, transformer = load_vae(str(tiny_base)), load_transformer(str(tiny_base))
    for module, targets in (
        (vae, Codec.lora_targets),
        (transformer, FluxVelocity.lora_targets),
    ):
        add_adapter(module, targets, rank=4, alpha=8)
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.02)
    conditioning = Conditioning(prompt=torch.randn(3, 12), pooled=torch.randn(10))
    config = ModelConfig(
        base=str(tiny_base), t_star=0.4, scale=4, preset="mild", prompt_length=3, guidance=1.0
    )
    folder = tmp_path_factory.mktemp("model")
    velocity = FluxVelocity(transformer, conditioning, guidance=1.0)
    AlloSR2(Codec(vae), velocity, config).save_pretrained(folder)
    return folder
