"""A model folder: it goes round unchanged, and every way to break it is one line that names the place."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from allosr2.backbones.base import load_vae
from allosr2.backbones.flux import FluxVelocity
from allosr2.errors import ConfigError, ModelError
from allosr2.model import (
    CONDITIONING_NAME,
    CONFIG_NAME,
    AlloSR2,
    ModelConfig,
    copy_base,
    load_frozen_codec,
    model_folder,
    origin_of,
)

ADAPTERS = "pytorch_lora_weights.safetensors"


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def restored(model: AlloSR2) -> torch.Tensor:
    with torch.no_grad():
        return model(images())


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AlloSR2:
    return AlloSR2.from_pretrained(tiny_model)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, to be broken."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_model_goes_round_unchanged(model, tmp_path):
    model.save_pretrained(tmp_path / "again")
    again = AlloSR2.from_pretrained(tmp_path / "again")
    assert again.config == model.config
    state, other = model.state_dict(), again.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert torch.equal(again.velocity.prompt, model.velocity.prompt)
    assert torch.equal(again.velocity.pooled, model.velocity.pooled)
    assert torch.equal(restored(again), restored(model))


def test_a_loaded_model_is_frozen_in_evaluation_mode_and_float32(model):
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.multiple == 16


def test_a_base_inside_the_folder_is_found_wherever_it_is_moved(model, tiny_base, tmp_path):
    model.save_pretrained(tmp_path / "first")
    copy_base(tiny_base, tmp_path / "first")
    config = dataclasses.asdict(model.config) | {"base": "base"}
    (tmp_path / "first" / CONFIG_NAME).write_text(json.dumps(config))
    moved = (tmp_path / "first").rename(tmp_path / "second")
    assert torch.equal(restored(AlloSR2.from_pretrained(moved)), restored(model))


def test_one_step_is_eq_7(model):
    z_lr = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = z_lr - 0.4 * model.velocity(z_lr, torch.tensor([0.4, 0.4]))
        torch.testing.assert_close(model.one_step(z_lr), expected, rtol=0, atol=1e-6)
        image = model.codec.decode(model.one_step(model.codec.encode(images())))
    assert torch.equal(restored(model), image)


def test_one_step_along_a_straight_path_is_exact(model):
    generator = torch.Generator().manual_seed(2)
    z_lr, z_hr = torch.randn(2, 2, 4, 4, 6, generator=generator).double()

    class Straight(nn.Module):
        def forward(self, z_t, t):  # noqa: ARG002
            return (z_lr - z_hr) / model.config.t_star

    straight = AlloSR2(model.codec, Straight(), model.config)
    torch.testing.assert_close(straight.one_step(z_lr), z_hr, rtol=0, atol=1e-14)


def test_merging_changes_no_output(tiny_model, model):
    merged = AlloSR2.from_pretrained(tiny_model).merge()
    torch.testing.assert_close(restored(merged), restored(model), rtol=0, atol=1e-5)


def test_fidelity_0_is_the_model_as_it_was_trained(tiny_model, model):
    merged = AlloSR2.from_pretrained(tiny_model).merge(fidelity=0)
    assert merged.step == 1
    torch.testing.assert_close(restored(merged), restored(model), rtol=0, atol=1e-5)


def test_fidelity_1_is_the_base_s_codec_and_nothing_else(tiny_model, tiny_base, model):
    from diffusers import AutoencoderKL

    merged = AlloSR2.from_pretrained(tiny_model).merge(fidelity=1)
    vae = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae")
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images() * 2 - 1).latent_dist.mode()).sample / 2 + 0.5
        frozen = load_frozen_codec(tiny_model)
        alone = frozen.decode(frozen.encode(images()))
    assert torch.equal(restored(merged), alone)
    torch.testing.assert_close(alone, decoded, rtol=0, atol=1e-5)
    assert (alone - restored(model)).abs().max() > 1e-3  # the adapters have an effect


@pytest.mark.parametrize("fidelity", [0.25, 0.5])
def test_fidelity_scales_the_encoder_s_adapters_and_the_step(tiny_model, fidelity):
    unmerged = AlloSR2.from_pretrained(tiny_model)
    merged = AlloSR2.from_pretrained(tiny_model).merge(fidelity)
    weights, tensors = merged.state_dict(), unmerged.state_dict()
    adapted = {k.removesuffix(".lora_A.default.weight") for k in tensors if ".lora_A." in k}
    assert any(name.startswith("codec.") for name in adapted)
    assert any(name.startswith("velocity.") for name in adapted)
    for name in adapted:
        before, after = (state[f"{name}.base_layer.weight"] for state in (tensors, weights))
        down, up = (tensors[f"{name}.lora_{side}.default.weight"] for side in "AB")
        # alpha / rank = 8 / 4; a convolution's up is 1 x 1
        delta = 8 / 4 * (up.flatten(1) @ down.flatten(1)).reshape(before.shape)
        share = 1 - fidelity if name.startswith("codec.") else 1
        torch.testing.assert_close(after - before, share * delta, rtol=0, atol=1e-6)
    z_lr = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        velocity = merged.velocity(z_lr, torch.tensor([0.4, 0.4]))
        expected = z_lr - (1 - fidelity) * 0.4 * velocity
        torch.testing.assert_close(merged.one_step(z_lr), expected, rtol=0, atol=1e-6)


def test_results_go_from_the_model_s_to_the_codec_s_with_fidelity(tiny_model, model):
    """Farther from the model's result, closer to the codec's, step by step."""
    results = [
        restored(AlloSR2.from_pretrained(tiny_model).merge(fidelity))
        for fidelity in (0, 0.25, 0.5, 0.75, 1)
    ]
    from_model = [float((result - results[0]).square().mean()) for result in results]
    from_codec = [float((result - results[-1]).square().mean()) for result in results]
    assert from_model == sorted(from_model)
    assert from_codec == sorted(from_codec, reverse=True)


@pytest.mark.parametrize("fidelity", [-0.1, 1.1, math.nan, math.inf])
def test_a_fidelity_out_of_range_is_one_line_and_changes_nothing(tiny_model, fidelity):
    model = AlloSR2.from_pretrained(tiny_model)
    before = restored(model)
    with pytest.raises(ConfigError, match=f"^fidelity is {fidelity}: use a number from 0 to 1$"):
        model.merge(fidelity)
    assert torch.equal(restored(model), before)


def test_the_frozen_codec_has_no_adapters(tiny_model, tiny_base, model):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae")
    with torch.no_grad():
        expected = (vae.encode(images() * 2 - 1).latent_dist.mean - 0.1159) * 0.3611
        torch.testing.assert_close(
            load_frozen_codec(tiny_model).encode(images()), expected, rtol=0, atol=1e-6
        )
        assert float((model.codec.encode(images()) - expected).abs().max()) > 1e-4


def edit_config(**changes) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def drop_keys(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text(json.dumps({"format_version": 1, "base": "base"}))


def edit_tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]):
    def edit(folder: Path) -> None:
        with safe_open(folder / name, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata=metadata)

    return edit


def truncate(name: str):
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return edit


def embed_broken_base(folder: Path) -> None:
    """The base as a folder of the model, its transformer's weights cut short."""
    base = Path(json.loads((folder / CONFIG_NAME).read_text())["base"])
    copy_base(base, folder)
    edit_config(base="base")(folder)
    truncate("base/transformer/diffusion_pytorch_model.safetensors")(folder)


def embed_base_with_nan(folder: Path) -> None:
    base = Path(json.loads((folder / CONFIG_NAME).read_text())["base"])
    copy_base(base, folder)
    edit_config(base="base")(folder)
    edit_tensors(
        "base/vae/diffusion_pytorch_model.safetensors",
        lambda tensors: tensors["decoder.conv_in.bias"].fill_(torch.nan),
    )(folder)


def embed_base_without_vae(folder: Path) -> None:
    base = Path(json.loads((folder / CONFIG_NAME).read_text())["base"])
    copy_base(base, folder)
    edit_config(base="base")(folder)
    shutil.rmtree(folder / "base" / "vae")


def embed_another_base(folder: Path) -> None:
    base = Path(json.loads((folder / CONFIG_NAME).read_text())["base"])
    copy_base(base, folder)
    edit_config(base="base")(folder)
    from diffusers import FluxTransformer2DModel

    FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    ).save_pretrained(folder / "base" / "transformer")


METRIC = {"dataset": "RealSR", "metric": "PSNR-Y", "value": 25.5, "by": "pyiqa 0.1.16"}

BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / CONFIG_NAME).unlink(), f"no {CONFIG_NAME} in it"),
    "broken json": (lambda folder: (folder / CONFIG_NAME).write_text('{"base":\n'), "not a model"),
    "binary config": (
        lambda folder: (folder / CONFIG_NAME).write_bytes(b"\xff\x00"),
        "not a model",
    ),
    "json list": (lambda folder: (folder / CONFIG_NAME).write_text("[1]"), "not a model"),
    "missing keys": (drop_keys, "t_star"),
    "unknown key": (edit_config(steps=3), "steps"),
    "format version": (edit_config(format_version=2), "format_version is 2"),
    "newer format": (edit_config(format_version=2, steps=3), "format_version is 2"),
    "t_star": (edit_config(t_star=1.5), "t_star is 1.5"),
    "t_star text": (edit_config(t_star="half"), "not a model"),
    "scale": (edit_config(scale=0), "scale is 0"),
    "guidance": (edit_config(guidance=None), "needs a guidance"),
    "guidance text": (edit_config(guidance="3.5"), "guidance is '3.5'; it must be a number"),
    "prompt length": (edit_config(prompt_length=4), "3 text tokens"),
    "base absent": (edit_config(base="/nowhere/at/all"), "/nowhere/at/all"),
    "base cut short": (embed_broken_base, "its transformer cannot be loaded"),
    "base incomplete": (embed_base_without_vae, "no vae/config.json"),
    "base with NaN": (embed_base_with_nan, "decoder.conv_in.bias holds NaN"),
    "another base": (embed_another_base, "do not fit the base"),
    "no adapters": (lambda folder: (folder / ADAPTERS).unlink(), "adapters cannot be read"),
    "adapters cut short": (truncate(ADAPTERS), "adapters cannot be read"),
    "no conditioning": (lambda folder: (folder / CONDITIONING_NAME).unlink(), "no encoded prompt"),
    "conditioning cut short": (truncate(CONDITIONING_NAME), "no encoded prompt"),
    "conditioning incomplete": (
        edit_tensors(CONDITIONING_NAME, lambda tensors: tensors.pop("pooled")),
        "no encoded prompt",
    ),
    "conditioning of another width": (
        edit_tensors(CONDITIONING_NAME, lambda t: t.update(prompt=torch.zeros(3, 13))),
        "widths",
    ),
    "conditioning flat": (
        edit_tensors(CONDITIONING_NAME, lambda t: t.update(prompt=torch.zeros(12))),
        "no encoded prompt",
    ),
    "conditioning with NaN": (
        edit_tensors(CONDITIONING_NAME, lambda t: t["pooled"].fill_(torch.nan)),
        "pooled holds NaN",
    ),
}


@pytest.mark.parametrize(("damage", "match"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_folder_is_refused_in_one_line_that_names_it(folder, damage, match):
    damage(folder)
    with pytest.raises(ModelError, match=match) as caught:
        AlloSR2.from_pretrained(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    assert str(folder) in message or "/nowhere/at/all" in message


def test_an_unknown_name_is_refused():
    with pytest.raises(ModelError, match="no-such-model: no such model") as caught:
        AlloSR2.from_pretrained("no-such-model")
    assert "\n" not in str(caught.value)


def test_the_embedded_name_is_the_package_s_whatever_lies_around(tmp_path, monkeypatch):
    import allosr2

    assert model_folder("mini") == Path(allosr2.__file__).parent / "mini"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    assert model_folder("mini") == Path(allosr2.__file__).parent / "mini"
    assert model_folder(Path("mini")) == Path("mini")
    assert model_folder("./mini") == Path("mini")


def test_a_base_that_was_left_behind_is_named(tiny_model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "allosr2.json").read_text()) | {"base": "base"}
    (folder / "allosr2.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"model/base is missing: .* copy the whole folder again"):
        AlloSR2.from_pretrained(folder)


def test_a_base_without_some_of_its_weights_is_refused(tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["decoder.conv_out.bias"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for decoder\.conv_out\.bias"):
        load_vae(str(base))


@pytest.mark.parametrize("base", ["", ".", "..", "../base", "base/../.."])
def test_a_base_is_never_the_model_s_own_folder_or_one_above(folder, base):
    edit_config(base=base)(folder)
    with pytest.raises(ModelError, match="it must be a folder's name"):
        AlloSR2.from_pretrained(folder)


def test_saving_removes_nothing_but_the_base_s_parts(tiny_model, tiny_base, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    copy_base(tiny_base, folder)
    edit_config(base="base")(folder)
    model, target = AlloSR2.from_pretrained(folder), tmp_path / "other"
    (target / "base" / "vae").mkdir(parents=True)
    for name in ("mine.txt", "base/mine.txt", "base/vae/old.txt"):
        (target / name).write_text("kept?")
    model.save_pretrained(str(target))
    assert (target / "mine.txt").exists()
    assert (target / "base" / "mine.txt").exists()
    assert not (target / "base" / "vae" / "old.txt").exists()
    assert AlloSR2.from_pretrained(target).config == model.config


def test_a_model_in_bfloat16_is_called_as_any_other(tiny_model, model):
    low = AlloSR2.from_pretrained(tiny_model, "bfloat16")
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = low(image), model(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("origin", 5),
        ("preset", 5),
        ("provenance", []),
        ("guidance", math.nan),
        ("guidance", math.inf),
    ],
)
def test_fields_of_another_kind_are_refused_by_name(folder, field, value):
    edit_config(**{field: value})(folder)
    with pytest.raises(ModelError, match=f"{field} "):
        ModelConfig.read(folder)


def test_another_precision_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="precision is nf4: use float32 or bfloat16"):
        AlloSR2.from_pretrained(tmp_path / "nothing", "nf4")


def test_an_origin_is_a_name_and_no_place(tmp_path, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "FLUX.1-dev").symlink_to(folder)
    snapshot = tmp_path / "models--somebody--base" / "snapshots" / "aaaa"
    snapshot.mkdir(parents=True)
    assert origin_of("somebody/base") == "somebody/base"
    assert origin_of(str(folder)) == "weights"
    assert origin_of(str(tmp_path / "FLUX.1-dev")) == "FLUX.1-dev"
    assert origin_of(str(snapshot)) == "somebody/base"
    assert origin_of(str(model_folder("mini") / "base")) == "allosr2/mini"
    monkeypatch.chdir(folder)
    assert origin_of(".") == "weights"


@pytest.mark.parametrize("metrics", [["x"], [{"dataset": "RealSR"}], [METRIC | {"value": "good"}]])
def test_metrics_are_whole(folder, metrics):
    edit_config(metrics=metrics)(folder)
    with pytest.raises(ModelError, match="metrics must each have dataset, metric, value"):
        AlloSR2.from_pretrained(folder)


def test_a_pickle_is_not_read(tiny_base, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.bin: a pickle, .* is not read"):
        load_vae(str(base))


def test_a_config_without_a_file_is_checked_too():
    fields = {"base": "base", "t_star": 0.4, "scale": 4, "preset": "mild", "prompt_length": 0}
    assert ModelConfig(**fields).guidance is None
    with pytest.raises(ModelError, match="t_star is 0"):
        ModelConfig(**(fields | {"t_star": 0.0}))


def test_the_velocity_is_a_flux_field(model):
    assert isinstance(model.velocity, FluxVelocity)
    assert model.velocity.guidance == 1.0
