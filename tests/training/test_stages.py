"""Each stage: a few steps, an export that loads, and a run that resumes to the bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from training.pillow_resize import pillow_bicubic

from allosr2.backbones.base import load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.data.degradation import preset
from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages
from allosr2.errors import ConfigError, DataError, ModelError
from allosr2.model import CONDITIONING_NAME, AlloSR2
from allosr2.training.allosr2 import AlloSR2Stage
from allosr2.training.codec import CodecStage, unit_scale_penalty
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    CodecTraining,
    FlowTraining,
    LossConfig,
    PerceptualConfig,
    TrainingConfig,
)
from allosr2.training.log import Status
from allosr2.training.loop import train
from allosr2.training.noise import sample_generators

Parts = Callable[..., dict[str, Any]]
Build = Callable[..., TrainingConfig]


@pytest.fixture
def build(parts: Parts, small_base: Path) -> Build:
    """`build(kind, output, **run)`: a config of each kind, on the small base."""

    def of(kind: str, output: Path, **run: Any) -> TrainingConfig:
        match kind:
            case "codec":
                return CodecTraining(**parts(output, **run), initial=small_base)
            case "flow":
                settings = parts(output, **run)
                del settings["perceptual"]
                return FlowTraining(**settings, codec=small_base, initial=small_base)
            case _:
                return AlloSR2Training(
                    **parts(output, **run),
                    base=str(small_base),
                    adapter=AdapterConfig(rank=2, alpha=2),
                    preset="mild",
                    t_star_pairs=5,
                )

    return of


def allosr2(build: Build, output: Path, **changes: Any) -> AlloSR2Training:
    config = build("allosr2", output, steps=2)
    assert isinstance(config, AlloSR2Training)
    return dataclasses.replace(config, **changes)


def tensors(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.stem}/{key}": tensor
        for path in folder.rglob("*.safetensors")
        for key, tensor in load_file(path).items()
    }


def stop_at(step: int) -> Callable[[Status], None]:
    def report(status: Status) -> None:
        if status.step == step:
            raise KeyboardInterrupt

    return report


@pytest.mark.parametrize(
    ("kind", "accumulation"), [("codec", 1), ("codec", 2), ("flow", 2), ("allosr2", 2)]
)
def test_a_stopped_run_ends_as_one_that_was_not(
    build: Build, tmp_path: Path, kind: str, accumulation: int
) -> None:
    runs: dict[str, list[dict[str, float]]] = {"straight": [], "stopped": []}
    for name, terms in runs.items():
        config = build(kind, tmp_path / name, accumulation=accumulation)
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train(config, lambda s, t=terms: (t.append(s.terms), stop_at(2)(s)))
        train(config, lambda s, t=terms: t.append(s.terms))
    assert runs["straight"] == runs["stopped"]
    assert len(runs["straight"]) == 4
    for part in ("checkpoints/step_00000004", "model"):
        expected = tensors(tmp_path / "straight" / part)
        found = tensors(tmp_path / "stopped" / part)
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("kind", ["flow", "allosr2"])
def test_accumulation_changes_no_loss(build: Build, tmp_path: Path, kind: str) -> None:
    losses = {}
    for accumulation in (1, 2, 4):
        statuses: list[Status] = []
        output = tmp_path / str(accumulation)
        config = build(kind, output, steps=3, batch_size=4, accumulation=accumulation)
        train(config, statuses.append)
        losses[accumulation] = [(s.terms["total"], s.gradient_norm) for s in statuses]
    np.testing.assert_allclose(losses[2], losses[1], rtol=1e-4)
    np.testing.assert_allclose(losses[4], losses[1], rtol=1e-4)


@pytest.mark.parametrize(("kind", "steps"), [("codec", 40), ("flow", 40)])
def test_a_constant_image_is_learned(build: Build, tmp_path: Path, kind: str, steps: int) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (48, 48), (200, 120, 40)).save(photos / "constant.png")
    config = build(kind, tmp_path / "run", steps=steps, batch_size=4)
    config = dataclasses.replace(
        config,
        images=dataclasses.replace(config.images, photos=(str(photos),)),
        optimization=dataclasses.replace(config.optimization, learning_rate=1e-2),
    )
    totals: list[float] = []
    train(config, lambda status: totals.append(status.terms["total"]))
    assert np.mean(totals[-8:]) < 0.8 * np.mean(totals[:4])


def test_codec_from_scratch_has_the_layout_of_mini(
    parts: Parts, random_lpips: Path, tmp_path: Path
) -> None:
    settings = parts(tmp_path / "run", steps=1) | {
        "perceptual": PerceptualConfig(perceptual=random_lpips, perceptual_weight=0.5)
    }
    statuses: list[Status] = []
    model = train(CodecTraining(**settings), statuses.append)
    (terms,) = (status.terms for status in statuses)
    assert terms["total"] == pytest.approx(
        terms["reconstruction"] + 0.1 * terms["latent"] + 0.5 * terms["perceptual"], rel=1e-5
    )
    assert terms["perceptual"] > 0
    codec = Codec(load_vae(str(model)))
    assert (codec.channels, codec.factor) == (16, 8)


def test_the_codec_s_lpips_sees_a_part_at_a_random_place(
    parts: Parts, random_lpips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = parts(tmp_path / "run", steps=1) | {
        "perceptual": PerceptualConfig(perceptual=random_lpips, perceptual_weight=0.5)
    }
    stage = CodecStage(CodecTraining(**settings, soft_fraction=0.0), torch.device("cpu"))
    seen: list[torch.Tensor] = []

    def distance(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        assert image.shape == reference.shape
        seen.append(reference)
        return (image - reference).abs().mean((1, 2, 3))

    monkeypatch.setattr(stage, "_lpips", distance)
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    stage.losses(Batch(hr=hr, lr=None), sample_generators(0, range(2), torch.device("cpu")))
    (found,) = seen
    places = [
        (top, left)
        for sample, part in zip(hr, found, strict=True)
        for top in range(17)
        for left in range(17)
        if torch.equal(sample[:, top : top + 48, left : left + 48], part)
    ]
    assert len(places) == 2
    assert len(set(places)) == 2


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_softened_images_are_the_target(build: Build, tmp_path: Path, fraction: float) -> None:
    """What the codec is given and asked for is a mix of the crops and their x4 blur."""
    config = dataclasses.replace(
        build("codec", tmp_path / "run"), latent_noise=0.0, soft_fraction=fraction
    )
    assert isinstance(config, CodecTraining)
    stage = CodecStage(config, torch.device("cpu"))
    hr = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    stage.module.encode = lambda image, encode=stage.module.encode: (
        seen.append(image) or encode(image)
    )
    stage.losses(Batch(hr=hr, lr=None), sample_generators(0, range(16), torch.device("cpu")))
    blurred = torch.stack(
        [
            pillow_bicubic(plane, 32)
            for plane in (pillow_bicubic(plane, 8) for plane in hr.flatten(0, 1))
        ]
    )
    blurred = blurred.reshape(hr.shape).clamp(0, 1)
    kinds = [
        "blurred" if torch.allclose(x, b, atol=1e-5) else "sharp" if torch.equal(x, h) else "other"
        for x, b, h in zip(seen[0], blurred, hr, strict=True)
    ]
    assert kinds.count("blurred") + kinds.count("sharp") == 16
    assert abs(kinds.count("blurred") - 16 * fraction) <= 16 * fraction * (1 - fraction)


def test_codec_exports_its_average_in_bfloat16(build: Build, tmp_path: Path) -> None:
    config = build("codec", tmp_path / "run", steps=2)
    exported = load_vae(str(train(config))).state_dict()
    average = load_file(config.run.output / "checkpoints/step_00000002/average.safetensors")
    for name, tensor in average.items():
        assert torch.equal(exported[name.removeprefix("vae.")], tensor.bfloat16().float())


def test_unit_scale_penalty_is_the_divergence_of_normals() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 2, 64, 64, generator=generator)
    z = torch.stack([2 * z[:, 0] + 1, 0.5 * z[:, 1]], 1)
    one = torch.distributions.Normal(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.5]))
    unit = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
    expected = torch.distributions.kl_divergence(one, unit).mean()
    torch.testing.assert_close(unit_scale_penalty(z), expected, rtol=0.02, atol=0)


def test_flow_leaves_the_codec_and_writes_a_whole_base(
    build: Build, small_base: Path, tmp_path: Path
) -> None:
    model = train(build("flow", tmp_path / "run", steps=2))
    before, after = load_vae(str(small_base)).state_dict(), load_vae(str(model)).state_dict()
    assert all(torch.equal(after[k], before[k].bfloat16().float()) for k in before)
    moved = load_transformer(str(model)).state_dict()
    start = load_transformer(str(small_base)).state_dict()
    assert any(not torch.equal(moved[key], start[key].bfloat16().float()) for key in start)


def test_allosr2_on_a_base_beside_it(build: Build, small_base: Path, tmp_path: Path) -> None:
    model = train(allosr2(build, tmp_path / "run", t_star=0.5))
    loaded = AlloSR2.from_pretrained(model)
    assert Path(loaded.config.base) == small_base.resolve()
    assert (loaded.config.t_star, loaded.config.scale, loaded.config.preset) == (0.5, 4, "mild")
    assert loaded.config.provenance["training"]["adapter.rank"] == 2
    assert not (model / "base").exists()
    with torch.no_grad():
        image = loaded(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert bool(image.isfinite().all())


def test_a_relative_base_is_found_from_everywhere(
    build: Build, small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_base.parent)
    config = allosr2(build, tmp_path / "run", base=small_base.name, t_star=0.5)
    model = train(config)
    monkeypatch.chdir(tmp_path)
    assert Path(AlloSR2.from_pretrained(model).config.base) == small_base.resolve()


def test_allosr2_with_its_base_inside(build: Build, small_base: Path, tmp_path: Path) -> None:
    model = train(allosr2(build, tmp_path / "run", embed_base=True, t_star=0.5))
    moved = model.rename(tmp_path / "moved")
    loaded = AlloSR2.from_pretrained(moved)
    assert loaded.config.base == "base"
    base = load_transformer(str(small_base)).proj_out.weight
    assert torch.equal(loaded.velocity.transformer.proj_out.weight, base)


def test_allosr2_trains_on_from_adapters(build: Build, tmp_path: Path) -> None:
    first = train(allosr2(build, tmp_path / "first", t_star=0.5))
    config = allosr2(build, tmp_path / "second", t_star=0.5, initial=str(first))
    second = train(config)
    weights = load_file(config.run.output / "checkpoints/step_00000002/weights.safetensors")
    assert all(".lora_" in name for name in weights)
    before, after = tensors(first), tensors(second)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_adapters_sit_on_the_encoder_and_the_transformer(build: Build, tmp_path: Path) -> None:
    config = allosr2(build, tmp_path / "run", t_star=0.5)
    train(config)
    weights = load_file(config.run.output / "checkpoints/step_00000002/weights.safetensors")
    kinds = {
        name.split(".lora_")[0].split(".")[2 if "velocity" not in name else 1] for name in weights
    }
    assert kinds == {"encoder", "transformer"}
    moved = {name for name, tensor in weights.items() if ".lora_B." in name and tensor.any()}
    assert moved == {name for name in weights if ".lora_B." in name}


def test_embedding_a_base_that_is_no_folder(build: Build, tmp_path: Path) -> None:
    config = allosr2(build, tmp_path / "run", base="someone/base", embed_base=True)
    with pytest.raises(ConfigError, match="base someone/base is no folder here"):
        train(config)


def test_missing_lpips_weights_are_reported_first(build: Build, tmp_path: Path) -> None:
    perceptual = PerceptualConfig(perceptual=tmp_path / "absent.safetensors")
    config = allosr2(build, tmp_path / "run", perceptual=perceptual, base="absent")
    with pytest.raises(ModelError, match=r"absent\.safetensors: no LPIPS weights"):
        train(config)


def test_t_star_is_measured_once(
    build: Build, small_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against Eq. 6 by brute force over the same five pairs."""
    config = allosr2(build, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(config, stop_at(1))
    state = json.loads((config.run.output / "checkpoints/step_00000001/state.json").read_text())

    images = HRImages(
        photos=config.images.photos,
        procedural=0.0,
        crop=32,
        minimum_scale=0.5,
        cache_gigabytes=1.0,
        seed=config.run.seed,
    )
    cpu = torch.device("cpu")
    (batch,) = batches(images, preset("mild"), [range(5)], scale=4, workers=0, device=cpu)
    assert batch.lr is not None
    codec = Codec(load_vae(str(small_base)))
    lr = torch.nn.functional.interpolate(batch.lr, (32, 32), mode="bicubic", antialias=True)
    lr = lr.clamp(0, 1)
    z_lr, z_hr = codec.encode(lr).double().numpy(), codec.encode(batch.hr).double().numpy()
    signal = (z_hr**2).mean((1, 2, 3))
    ratio = 1 / ((z_lr - z_hr) ** 2).mean((1, 2, 3))
    # the objective is piecewise linear in g = ((1 - t) / t)^2: its least value is at one of the ratios
    g = min(ratio, key=lambda g: float((signal * abs(g - ratio)).mean()))
    assert state["constants"] == {"t_star": pytest.approx(1 / (1 + np.sqrt(g)), rel=1e-5)}

    def again(*_: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(AlloSR2Stage, "_measure_t_star", again)
    model = train(config)
    assert AlloSR2.from_pretrained(model).config.t_star == pytest.approx(
        state["constants"]["t_star"], rel=5e-3
    )


@pytest.mark.parametrize("name", ["rank", "alpha"])
def test_adapters_of_another_size_are_not_taken_over(
    build: Build, tmp_path: Path, name: str
) -> None:
    first = train(allosr2(build, tmp_path / "first", t_star=0.5))
    config = allosr2(build, tmp_path / "second", t_star=0.5, initial=str(first))
    other = dataclasses.replace(config.adapter, **{name: 3})
    with pytest.raises(ConfigError, match=f"{name} is 3: .* have 2; use that"):
        train(dataclasses.replace(config, adapter=other))


def test_the_prompt_travels_on(build: Build, tmp_path: Path) -> None:
    first = train(allosr2(build, tmp_path / "first", t_star=0.5))
    prompt = {"prompt": torch.rand(3, 8), "pooled": torch.rand(8)}
    save_file(prompt, first / CONDITIONING_NAME)
    second = train(allosr2(build, tmp_path / "second", t_star=0.5, initial=str(first)))
    found = load_file(second / CONDITIONING_NAME)
    assert all(torch.equal(found[key], prompt[key]) for key in prompt)
    assert AlloSR2.from_pretrained(second).config.prompt_length == 3


def test_guidance_of_a_base_that_takes_none_is_refused(build: Build, tmp_path: Path) -> None:
    config = allosr2(build, tmp_path / "run", loss=LossConfig(atm_guidance=3.5))
    with pytest.raises(
        ConfigError, match=r"^atm_guidance is 3.5: .* takes none; use --atm-guidance None"
    ):
        train(config)


def test_training_over_the_base_that_it_came_from(build: Build, tmp_path: Path) -> None:
    """As `mini` is trained on inside one folder: the base is still there afterwards."""
    config = allosr2(build, tmp_path / "run", embed_base=True, t_star=0.5)
    model = train(config)
    shutil.rmtree(config.run.output / "checkpoints")
    again = dataclasses.replace(config, base=str(model / "base"), initial=str(model))
    assert AlloSR2.from_pretrained(train(again)).config.base == "base"


def test_crops_of_one_color_do_not_count_for_t_star(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(3, 3, 32, 32, generator=generator)
    hr[1] = 0.0
    lr = hr[:, :, ::4, ::4]

    def t_star(kept: list[int], name: str) -> float:
        pair = Batch(hr=hr[kept], lr=lr[kept])
        monkeypatch.setattr("allosr2.training.allosr2.batches", lambda *_, **__: iter([pair]))
        return AlloSR2.from_pretrained(train(allosr2(build, tmp_path / name))).config.t_star

    assert t_star([0, 1, 2], "all") == t_star([0, 2], "two")
    with pytest.raises(DataError, match="no pair to measure it on"):
        t_star([1], "plain")


def test_a_run_on_damaged_photographs_ends_and_lists_each(build: Build, tmp_path: Path) -> None:
    """Of 40 photographs four are damaged, each in another way: 10 %, as a download leaves them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(1)
    for number in range(40):
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number:02d}.jpg", quality=95)
    whole = (photos / "03.jpg").read_bytes()
    damaged = {"03.jpg": b"", "12.jpg": whole[: len(whole) // 2], "25.jpg": b"<html>404</html>"}
    damaged["31.jpg"] = whole[:700]
    for name, content in damaged.items():
        (photos / name).write_bytes(content)
    config = build("allosr2", tmp_path / "run", steps=50, batch_size=2)
    config = dataclasses.replace(
        config, images=dataclasses.replace(config.images, photos=(str(photos),), workers=1)
    )
    statuses: list[Status] = []
    train(config, statuses.append)
    listed = [
        json.loads(line)
        for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    ]
    assert sorted(Path(entry["photograph"]).name for entry in listed) == sorted(damaged)
    assert all(entry["reason"] for entry in listed)
    assert [status.step for status in statuses] == list(range(1, 51))
    assert all(np.isfinite([*status.terms.values()]).all() for status in statuses)


def test_moments_of_8_bits_come_back_to_the_bit(build: Build, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    ends: list[dict[str, Tensor]] = []
    for name in ("straight", "stopped"):
        config = build("allosr2", tmp_path / name)
        config = dataclasses.replace(
            config,
            adapter=AdapterConfig(rank=64, alpha=64),  # of smaller ones the moments have 32 bits
            optimization=dataclasses.replace(config.optimization, optimizer="adamw-8bit"),
        )
        if name == "stopped":
            with pytest.raises(KeyboardInterrupt):
                train(config, stop_at(2))
        train(config)
        ends.append(tensors(tmp_path / name / "checkpoints" / "step_00000004"))
    straight, stopped = ends
    assert any(tensor.dtype == torch.uint8 for tensor in straight.values())
    assert straight.keys() == stopped.keys()
    assert [key for key in straight if not torch.equal(straight[key], stopped[key])] == []


def test_t_star_that_is_changed_is_the_new_one(build: Build, tmp_path: Path) -> None:
    config = allosr2(build, tmp_path / "run", t_star=0.25)
    with pytest.raises(KeyboardInterrupt):
        train(config, stop_at(1))
    run = dataclasses.replace(config.run, allow_changes=True)
    folder = train(dataclasses.replace(config, t_star=0.5, run=run))
    assert AlloSR2.from_pretrained(folder).config.t_star == 0.5
