"""Looking at a stage: on which images, at what, and without a trace in what is trained."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from allosr2.backbones.base import load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.backbones.flux import FluxVelocity
from allosr2.backbones.lora import add_adapter
from allosr2.data.degradation import preset
from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages, PhotoFolder
from allosr2.errors import DataError
from allosr2.losses.perceptual import LPIPS
from allosr2.model import AlloSR2, ModelConfig, copy_base
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    CodecTraining,
    DecoderTraining,
    FlowTraining,
    LossConfig,
    PerceptualConfig,
    TrainingConfig,
    WatchConfig,
)
from allosr2.training.inspection import inspect, validation_batches, validation_images
from allosr2.training.loop import train
from allosr2.training.noise import sample_generators
from allosr2.training.stage import Stage, build_stage

CPU = torch.device("cpu")
KINDS = ("codec", "flow", "allosr2", "decoder")
Build = Callable[..., TrainingConfig]


@pytest.fixture(scope="module")
def model(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the small base inside."""
    folder = tmp_path_factory.mktemp("model")
    vae, transformer = load_vae(str(small_base)), load_transformer(str(small_base))
    add_adapter(vae, Codec.lora_targets, rank=2, alpha=2)
    add_adapter(transformer, FluxVelocity.lora_targets, rank=2, alpha=2)
    velocity = FluxVelocity(transformer, FluxVelocity.without_text(transformer))
    config = ModelConfig(base="base", t_star=0.4, scale=4, preset="mild", prompt_length=0)
    AlloSR2(Codec(vae), velocity, config).save_pretrained(folder)
    copy_base(small_base, folder)
    return folder


@pytest.fixture
def build(parts: Callable[..., dict[str, Any]], small_base: Path, model: Path) -> Build:
    """`build(kind, output, **run)`: a config of each kind that looks at three images, two at once."""

    def of(kind: str, output: Path, **run: Any) -> TrainingConfig:
        watch = WatchConfig(tracker="none", validate_every=1, validation_images=3)
        settings = parts(output, **run) | {"watch": watch}
        match kind:
            case "codec":
                return CodecTraining(**settings, initial=small_base)
            case "flow":
                del settings["perceptual"]
                return FlowTraining(**settings, codec=small_base, initial=small_base)
            case "decoder":
                return DecoderTraining(**settings, model=str(model), grid_weight=0.0)
            case _:
                return AlloSR2Training(
                    **settings,
                    base=str(small_base),
                    adapter=AdapterConfig(rank=2, alpha=2),
                    preset="mild",
                    t_star=0.4,
                )

    return of


def images_of(config: TrainingConfig) -> HRImages:
    return HRImages(
        photos=config.images.photos,
        procedural=0.0,
        crop=config.images.crop,
        minimum_scale=0.5,
        cache_gigabytes=1,
        seed=config.run.seed,
    )


def built(config: TrainingConfig) -> tuple[Stage, list[Batch]]:
    images = images_of(config)
    torch.manual_seed(0)
    stage = build_stage(config, images, CPU, {})
    for name, parameter in stage.module.named_parameters():
        if ".lora_B." in name:  # or adapters have no effect
            nn.init.normal_(parameter, std=0.1)
    return stage, looked_at(config, stage)


def looked_at(config: TrainingConfig, stage: Stage) -> list[Batch]:
    return validation_batches(config, stage, validation_images(config, images_of(config)), CPU)


# ---------------------------------------------------------------------------- which images


def test_images_are_the_same_each_time_and_none_that_is_trained_on(build, tmp_path):
    config = build("allosr2", tmp_path)
    stage, seen = built(config)
    assert [batch.hr.shape[0] for batch in seen] == [2, 1]
    again = looked_at(config, stage)
    for one, other in zip(seen, again, strict=True):
        assert torch.equal(one.hr, other.hr)
        assert torch.equal(one.lr, other.lr)
    trained = batches(
        images_of(config), preset("mild"), [range(20)], scale=4, workers=0, device=CPU
    )
    hr = torch.cat([batch.hr for batch in seen])
    assert not (hr[:, None] == next(trained).hr[None]).flatten(2).all(-1).any()


def test_they_do_not_depend_on_how_many_are_trained_on_at_once(build, tmp_path):
    whole = built(build("allosr2", tmp_path, batch_size=4))[1]
    parts = built(build("allosr2", tmp_path, batch_size=4, accumulation=4))[1]
    assert ([len(b.hr) for b in whole], [len(b.hr) for b in parts]) == ([3], [1, 1, 1])
    assert torch.equal(whole[0].hr, torch.cat([b.hr for b in parts]))
    torch.testing.assert_close(whole[0].lr, torch.cat([b.lr for b in parts]))


def test_photographs_for_it_are_taken_instead_of_the_run_s(build, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    Image.new("RGB", (40, 40), (255, 128, 0)).save(own / "orange.png")
    config = build("codec", tmp_path)
    watch = dataclasses.replace(config.watch, validation_photos=(str(own),))
    images = dataclasses.replace(config.images, procedural=1.0)
    _, seen = built(dataclasses.replace(config, watch=watch, images=images))
    orange = torch.tensor([255, 128, 0]).view(1, 3, 1, 1) / 255
    for batch in seen:
        assert batch.lr is None
        torch.testing.assert_close(batch.hr, orange.expand_as(batch.hr))


def test_a_folder_without_photographs_is_refused_before_there_is_a_stage(build, tmp_path):
    config = build("codec", tmp_path)
    watch = dataclasses.replace(config.watch, validation_photos=(str(tmp_path / "absent"),))
    with pytest.raises(DataError, match="absent"):
        validation_images(dataclasses.replace(config, watch=watch), images_of(config))


def test_each_damaged_photograph_is_warned_of_once(build, tmp_path, caplog):
    own = tmp_path / "own"
    own.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut", "whole"):
        Image.fromarray(noise).save(own / f"{name}.jpg")
    (own / "cut.jpg").write_bytes((own / "cut.jpg").read_bytes()[:2000])
    (own / "text.jpg").write_text("no picture")
    config = build("codec", tmp_path)
    watch = dataclasses.replace(config.watch, validation_photos=(str(own),), validation_images=8)
    seen = built(dataclasses.replace(config, watch=watch))[1]
    assert sum(len(batch.bad) for batch in seen) > 1
    said = [r.getMessage() for r in caplog.records if r.name.startswith("allosr2.")]
    assert len(said) == 2
    assert said[0].startswith(f"validation: {own / 'text.jpg'} is no readable image")
    assert said[1].startswith(f"validation: {own / 'cut.jpg'} cannot be decoded")
    assert all("\n" not in line for line in said)


def test_decoded_photographs_are_not_kept(build, tmp_path):
    config = build("codec", tmp_path)
    stage, _ = built(config)
    source = validation_images(config, images_of(config))
    kept: list[weakref.ref[np.ndarray]] = []
    photo = PhotoFolder.photo

    def noted(self: PhotoFolder, number: int) -> np.ndarray:
        pixels = photo(self, number)
        kept.append(weakref.ref(pixels))
        return pixels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhotoFolder, "photo", noted)
        validation_batches(config, stage, source, CPU)
    gc.collect()
    assert kept
    assert [pixels for pixels in kept if pixels() is not None] == []


def test_its_seed_begins_no_sample_s_stream(build, tmp_path):
    """None of the numbers that a sample's crop, degradation and noise are made from."""
    config = build("codec", tmp_path)
    seed = validation_images(config, images_of(config)).seed
    keys = [(i, *rest) for i in range(4) for rest in ((), (1,), (2,))]
    for key in keys:
        sequence = np.random.SeedSequence(config.run.seed, spawn_key=key)
        assert seed not in sequence.generate_state(4, np.uint64).tolist()


# ------------------------------------------------------------------------------ no trace


def state(stage: Stage) -> dict[str, Tensor]:
    """Everything that training goes on from."""
    tensors = {"rng": torch.get_rng_state()}
    for name, tensor in stage.module.state_dict(keep_vars=True).items():
        tensors[name] = tensor.detach().clone()
        tensors[f"{name}/requires_grad"] = torch.tensor(tensor.requires_grad)
        if tensor.grad is not None:
            tensors[f"{name}/grad"] = tensor.grad.clone()
    for name, module in stage.module.named_modules():
        tensors[f"{name}/training"] = torch.tensor(module.training)
    return tensors


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_looking_leaves_no_trace(build, tmp_path, kind, precision):
    config = build(kind, tmp_path)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, precision=precision))
    stage, seen = built(config)
    stage.module.train()
    for parameter in stage.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, 0.25)
    before = state(stage)
    first = inspect(config, stage, seen)
    after = state(stage)
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    second = inspect(config, stage, seen)
    assert first.numbers == second.numbers
    assert all(math.isfinite(value) for value in first.numbers.values())
    assert np.array_equal(first.sheet, second.sheet)


@pytest.mark.parametrize("kind", ["codec", "allosr2"])
def test_a_run_that_is_looked_at_ends_as_one_that_is_not(build, tmp_path, kind):
    losses = []
    for every in (0, 1):
        config = build(kind, tmp_path / str(every), steps=3)
        watch = dataclasses.replace(config.watch, validate_every=every)
        totals: list[float] = []
        train(
            dataclasses.replace(config, watch=watch),
            lambda status, totals=totals: totals.append(status.terms["total"]),
        )
        losses.append(totals)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


# ---------------------------------------------------------------------- what is looked at


def groups(numbers: dict[str, float]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in numbers:
        group, _, rest = name.partition("/")
        found.setdefault(group, set()).add(rest)
    return found


def test_the_numbers_of_algorithm_1(build, tmp_path, random_lpips):
    config = build("allosr2", tmp_path)
    config = dataclasses.replace(
        config,
        perceptual=PerceptualConfig(perceptual=random_lpips),
        loss=LossConfig(generative_weight=0.5),
    )
    stage, seen = built(config)
    numbers = inspect(config, stage, seen).numbers
    losses = {"reconstruction", "perceptual", "fatc", "atm", "generative"}
    metrics = {"psnr_y", "ssim_y", "lpips"}
    assert groups(numbers) == {
        "validation": {*metrics, *(f"{name}_of_bicubic" for name in metrics), "color_shift"},
        "snr": {"t_star", "t_measured", "residual", "residual_at_t_star"},
        "straightness": {
            *("off_4_steps", "off_16_steps"),
            *("error_1_step", "error_4_steps", "error_16_steps"),
        },
        "gradient_norm_codec": losses,
        "gradient_norm_velocity": losses,
    }
    # the generative path starts from HR latents, which no trained encoder made
    assert numbers.pop("gradient_norm_codec/generative") == 0.0
    assert all(value > 0 for name, value in numbers.items() if name.startswith("gradient"))


def test_its_results_are_the_model_s(build, tmp_path):
    config = build("allosr2", tmp_path)
    stage, seen = built(config)
    numbers = inspect(config, stage, seen).numbers
    assert isinstance(stage.module, AlloSR2)
    shifts, errors = [], []
    with torch.no_grad():
        for batch in seen:
            assert batch.lr is not None
            enlarged = nn.functional.interpolate(
                batch.lr, scale_factor=4, mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)
            result = stage.module(enlarged).clamp(0, 1)
            difference = (result - batch.hr).mean((2, 3)).abs().mean(1)
            shifts += (255 * difference).tolist()
            z_sr = stage.module.one_step(stage.module.codec.encode(enlarged))
            z_hr = Codec(load_vae(config.base)).encode(batch.hr)
            errors += (z_sr - z_hr).square().mean((1, 2, 3)).tolist()
    assert numbers["validation/color_shift"] == pytest.approx(np.mean(shifts), rel=1e-4)
    assert numbers["straightness/error_1_step"] == pytest.approx(np.mean(errors), rel=1e-4)


@pytest.mark.parametrize(("weight", "name"), [(1e-20, "reconstruction"), (1e12, "perceptual")])
def test_gradient_norms_are_those_of_training(build, tmp_path, random_lpips, weight, name):
    """Of the first image, with the window that its sample draws; one loss outweighs the other."""
    config = build("allosr2", tmp_path)
    config = dataclasses.replace(
        config,
        images=dataclasses.replace(config.images, crop=64),
        loss=LossConfig(fatc_weight=0.0, atm_weight=0.0, perceptual_crop=32),
        perceptual=PerceptualConfig(perceptual=random_lpips, perceptual_weight=weight),
    )
    stage, seen = built(config)
    numbers = inspect(config, stage, seen).numbers
    first = Batch(hr=seen[0].hr[:1], lr=seen[0].lr[:1], samples=seen[0].samples[:1])
    stage.losses(first, sample_generators(config.run.seed, first.samples, CPU))["total"].backward()
    assert isinstance(stage.module, AlloSR2)
    for part in ("codec", "velocity"):
        parameters = getattr(stage.module, part).parameters()
        squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
        expected = float(torch.stack(squares).sum().sqrt())
        assert numbers[f"gradient_norm_{part}/{name}"] == pytest.approx(expected, rel=1e-4)


def test_activations_that_are_computed_again_give_the_same_gradient_norms(build, tmp_path):
    config = build("allosr2", tmp_path)
    kept = inspect(config, *built(config)).numbers
    config = dataclasses.replace(config, gradient_checkpointing=True)
    again = inspect(config, *built(config)).numbers
    assert again == pytest.approx(kept, rel=1e-4, abs=1e-9)


def test_a_sharded_transformer_goes_without_gradient_norms(build, tmp_path):
    config = dataclasses.replace(build("allosr2", tmp_path), shard_base=True)
    numbers = inspect(config, *built(config)).numbers
    assert groups(numbers).keys() == {"validation", "snr", "straightness"}


def test_the_flow_is_looked_at_at_five_times_with_the_same_noise(build, tmp_path):
    config = build("flow", tmp_path)
    stage, seen = built(config)
    numbers = inspect(config, stage, seen).numbers
    codec = Codec(load_vae(str(config.codec)))
    for time in (0.1, 0.3, 0.5, 0.7, 0.9):
        errors = []
        for batch in seen:
            generators = sample_generators(config.run.seed, batch.samples, CPU)
            with torch.no_grad():
                z_0 = codec.encode(batch.hr)
                eps = torch.stack([torch.randn(z_0.shape[1:], generator=g) for g in generators])
                v = stage.module((1 - time) * z_0 + time * eps, torch.full((len(z_0),), time))
            errors += (v - (eps - z_0)).square().mean((1, 2, 3)).tolist()
        assert numbers[f"validation/flow_matching_{time}"] == pytest.approx(
            np.mean(errors), rel=1e-4
        )
    assert len(numbers) == 5


@pytest.mark.parametrize(("kind", "bicubic"), [("codec", False), ("decoder", True)])
def test_the_codec_s_numbers(build, tmp_path, random_lpips, kind, bicubic):
    config = dataclasses.replace(
        build(kind, tmp_path), perceptual=PerceptualConfig(perceptual=random_lpips)
    )
    stage, seen = built(config)
    seen_of_stage = inspect(config, stage, seen)
    metrics = {"psnr_y", "ssim_y", "lpips"}
    reference = {f"{name}_of_bicubic" for name in metrics} if bicubic else set()
    assert groups(seen_of_stage.numbers) == {"validation": metrics | reference | {"color_shift"}}
    assert (
        seen_of_stage.sheet.shape[1] > 200
    ) == bicubic  # a column more, with a caption of 150 px
    if kind == "codec":
        vae = load_vae(str(config.initial))
        lpips = LPIPS.from_file(random_lpips)
        distances = []
        with torch.no_grad():
            for batch in seen:
                decoded = (vae.decode(vae.encode(2 * batch.hr - 1)[0])[0] + 1) / 2
                distances += lpips(decoded.clamp(0, 1), batch.hr).tolist()
        expected = pytest.approx(np.mean(distances), rel=1e-4)
        assert seen_of_stage.numbers["validation/lpips"] == expected
