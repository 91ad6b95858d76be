"""Stage 4: what the decoder is given, what it is asked for, and what is exported."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training.pillow_resize import pillow_bicubic

from allosr2.backbones.base import load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.backbones.flux import FluxVelocity
from allosr2.backbones.lora import add_adapter
from allosr2.data.degradation import preset
from allosr2.data.pairs import Batch
from allosr2.errors import ConfigError
from allosr2.fingerprint import fingerprint
from allosr2.losses.grid import grid, hatch
from allosr2.losses.perceptual import LPIPS
from allosr2.losses.texture import texture
from allosr2.model import AlloSR2, ModelConfig, copy_base, load_frozen_codec
from allosr2.training.config import DecoderTraining, PerceptualConfig
from allosr2.training.decoder import DecoderStage
from allosr2.training.log import Status
from allosr2.training.loop import train
from allosr2.training.noise import sample_generators, uniform, windows

CPU = torch.device("cpu")


@pytest.fixture
def model(small_base: Path, tmp_path: Path) -> Path:
    """A model with the small base inside, whose random adapters have an effect."""
    torch.manual_seed(1)
    vae, transformer = load_vae(str(small_base)), load_transformer(str(small_base))
    for module, targets in (
        (vae, Codec.lora_targets),
        (transformer, FluxVelocity.lora_targets),
    ):
        add_adapter(module, targets, rank=2, alpha=2)
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    velocity = FluxVelocity(transformer, FluxVelocity.without_text(transformer))
    config = ModelConfig(base="weights", t_star=0.4, scale=4, preset="mild", prompt_length=0)
    folder = tmp_path / "model"
    AlloSR2(Codec(vae), velocity, config).save_pretrained(folder)
    copy_base(small_base, folder)
    (folder / "base").rename(folder / "weights")
    return folder


@pytest.fixture
def config(parts: Callable[..., dict[str, Any]], model: Path, tmp_path: Path) -> DecoderTraining:
    return DecoderTraining(**parts(tmp_path / "run", steps=2), model=str(model))


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_it_is_given_restored_latents_and_asked_for_hr_images(
    config: DecoderTraining, model: Path, fraction: float
) -> None:
    stage = DecoderStage(dataclasses.replace(config, result_fraction=fraction), CPU)
    assert (stage.degradation, stage.scale) == (preset("mild"), 4)
    drawn = torch.Generator().manual_seed(0)
    hr = torch.rand(16, 3, 32, 32, generator=drawn)
    lr = torch.rand(16, 3, 8, 8, generator=drawn)
    given: list[Tensor] = []
    decode = stage.module.decode
    stage.module.decode = lambda z: given.append(z) or decode(z)
    terms = stage.losses(Batch(hr=hr, lr=lr), sample_generators(0, range(16), CPU))
    plain = AlloSR2.from_pretrained(model)  # its adapters are not merged
    enlarged = torch.stack([pillow_bicubic(plane, 32) for plane in lr.flatten(0, 1)])
    with torch.no_grad():
        own = load_frozen_codec(model).encode(hr)
        z_lr = plain.codec.encode(enlarged.reshape(hr.shape).clamp(0, 1))
        restored = z_lr - 0.4 * plain.velocity(z_lr, torch.full((16,), 0.4))
        expected = (decode(given[0]) - hr).abs().mean()
    kinds = [
        "restored"
        if torch.allclose(x, z, atol=1e-4)
        else "own"
        if torch.allclose(x, h, atol=1e-5)
        else "other"
        for x, z, h in zip(given[0], restored, own, strict=True)
    ]
    assert set(kinds) == {0.0: {"own"}, 0.5: {"own", "restored"}, 1.0: {"restored"}}[fraction]
    torch.testing.assert_close(terms["total"], expected)


def test_its_fingerprint_is_that_of_the_files(config: DecoderTraining, model: Path) -> None:
    """Merged weights differ in the last bit between processors, on which a run may be resumed."""
    files = AlloSR2.from_pretrained(model).state_dict()
    assert DecoderStage(config, CPU).fingerprint == fingerprint(files)


def test_its_loss_is_the_weighted_sum(config: DecoderTraining, random_lpips: Path) -> None:
    perceptual = PerceptualConfig(perceptual=random_lpips, perceptual_weight=0.5)
    images = dataclasses.replace(config.images, crop=128)
    config = dataclasses.replace(config, images=images, perceptual=perceptual)
    config = dataclasses.replace(config, grid_weight=0.3, texture_weight=0.2)
    stage = DecoderStage(config, CPU)
    drawn = torch.Generator().manual_seed(0)
    batch = Batch(
        hr=torch.rand(1, 3, 128, 128, generator=drawn), lr=torch.rand(1, 3, 32, 32, generator=drawn)
    )
    images_seen: list[Tensor] = []
    decode = stage.module.decode
    stage.module.decode = lambda z: images_seen.append(decode(z)) or images_seen[0]
    terms = stage.losses(batch, sample_generators(0, range(1), CPU))
    (image,) = images_seen
    # what has a stride sees 112 px of the 128, at a place drawn after the choice of the latents
    generators = sample_generators(0, range(1), CPU)
    uniform(generators)
    ((top, left, side),) = windows(generators, 127, 127, 112)
    part, hr_part = (x[..., top : top + side, left : left + side] for x in (image, batch.hr))
    expected = (
        (image - batch.hr).abs().mean()
        + 0.5 * LPIPS.from_file(random_lpips)(part, hr_part).mean()
        + 0.3 * (grid(image, batch.hr) + hatch(part, hr_part))
        + 0.2 * texture(part, hr_part)
    )
    torch.testing.assert_close(terms["total"], expected)


def test_only_the_decoder_changes(config: DecoderTraining, model: Path, tmp_path: Path) -> None:
    statuses: list[Status] = []
    exported = train(config, statuses.append)
    assert len(statuses) == 2
    moved = set()
    for path in sorted(model.rglob("*.safetensors")):
        place = str(path.relative_to(model)).replace("weights/", "base/", 1)
        before, after = load_file(path), load_file(exported / place)
        assert before.keys() == after.keys()
        if path.parent.name == "vae":  # written again, in bfloat16
            before = {key: value.bfloat16() for key, value in before.items()}
        moved |= {key for key in before if not torch.equal(after[key], before[key])}
    assert moved
    assert all(key.startswith("decoder.") for key in moved)
    loaded = AlloSR2.from_pretrained(shutil.copytree(exported, tmp_path / "moved"))
    assert loaded.config.base == "base"
    assert loaded.config.provenance["decoder"]["run.steps"] == 2
    assert str(tmp_path) not in (exported / "allosr2.json").read_text()


def test_a_stopped_run_ends_as_one_that_was_not(config: DecoderTraining, tmp_path: Path) -> None:
    def stop(status: Status) -> None:
        if status.step == 1:
            raise KeyboardInterrupt

    run = dataclasses.replace(config.run, output=tmp_path / "stopped")
    stopped = dataclasses.replace(config, run=run)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, stop)
    vaes = [load_vae(str(train(c) / "base")).state_dict() for c in (config, stopped)]
    assert all(torch.equal(vaes[0][key], vaes[1][key]) for key in vaes[0])


def test_a_base_that_lies_elsewhere_is_refused(config: DecoderTraining, tiny_model: Path) -> None:
    config = dataclasses.replace(config, model=str(tiny_model))
    with pytest.raises(ConfigError, match="lies elsewhere and would not get the new decoder"):
        train(config)
