"""Algorithm 1 on a tiny base of FLUX.1-dev's layout: its prompt, its guidance, how it is held in memory."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from allosr2.errors import ConfigError, ModelError
from allosr2.model import AlloSR2, ModelConfig
from allosr2.training.config import AdapterConfig, AlloSR2Training
from allosr2.training.loop import train

Config = Callable[..., AlloSR2Training]


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(3)
    path = tmp_path / "prompt.safetensors"
    tensors = {
        "prompt": torch.randn(5, 12, generator=generator),
        "pooled": torch.randn(10, generator=generator),
    }
    save_file(tensors, path)
    return path


@pytest.fixture
def config(
    parts: Callable[..., dict[str, Any]], tiny_base: Path, prompt: Path, tmp_path: Path
) -> Config:
    """`config(name, **fields)`: two steps of Algorithm 1, written to a folder of that name."""

    def build(name: str, *, precision: str = "float32", **fields: Any) -> AlloSR2Training:
        settings = parts(tmp_path / name, steps=2)
        settings["run"] = dataclasses.replace(settings["run"], precision=precision)
        defaults = {
            "base": str(tiny_base),
            "conditioning": prompt,
            "guidance": 1.0,
            "adapter": AdapterConfig(rank=2, alpha=2),
            "t_star": 0.4,
        }
        return AlloSR2Training(**settings, **defaults | fields)

    return build


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pytorch_lora_weights.safetensors")


def test_prompt_and_guidance_go_into_the_model(config, prompt):
    folder = train(config("run"))
    model = AlloSR2.from_pretrained(folder)
    expected = load_file(prompt)
    assert torch.equal(model.velocity.prompt, expected["prompt"])
    assert torch.equal(model.velocity.pooled, expected["pooled"])
    assert (model.config.prompt_length, model.config.guidance) == (5, 1.0)
    assert model.config.provenance["data"] == {
        "photographs": 2,
        "sources": model.config.provenance["data"]["sources"],
        "drawn": 0.0,
    }


@pytest.mark.parametrize(("tokens", "kept"), [(0, 0), (2, 2), (9, 5)])
def test_a_lean_model_keeps_the_pooled_embedding_alone(config, prompt, tokens, kept):
    model = AlloSR2.from_pretrained(train(config("run", text_tokens=tokens)))
    expected = load_file(prompt)
    assert torch.equal(model.velocity.prompt, expected["prompt"][:kept])
    assert torch.equal(model.velocity.pooled, expected["pooled"])
    assert model.config.prompt_length == kept


def test_gradient_checkpointing_changes_no_weight(config):
    plain = adapters(train(config("plain")))
    checkpointed = adapters(train(config("checkpointed", gradient_checkpointing=True)))
    for key, tensor in plain.items():
        torch.testing.assert_close(checkpointed[key], tensor, rtol=0, atol=1e-4)
    assert any(bool(plain[key].any()) for key in plain if "transformer" in key and "lora_B" in key)


@pytest.mark.parametrize("held", ["bfloat16", "nf4"])
def test_a_base_held_in_fewer_bits_trains_nearly_the_same(config, held):
    if held == "nf4":
        pytest.importorskip("bitsandbytes", reason="the extra `quantize` is not installed")
    terms: dict[str, list[dict[str, float]]] = {"float32": [], held: []}
    for name, found in terms.items():
        train(
            config(name, precision="bfloat16", base_precision=name),
            lambda status, found=found: found.append(status.terms),
        )
    for whole, fewer in zip(terms["float32"], terms[held], strict=True):
        assert fewer["total"] == pytest.approx(whole["total"], rel=0.05)


def test_adapters_stay_in_float32_on_a_bfloat16_base(config, tmp_path):
    train(config("run", precision="bfloat16", base_precision="bfloat16"))
    weights = load_file(tmp_path / "run" / "checkpoints" / "step_00000002" / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_targets_and_initialization_are_fields(config):
    adapter = AdapterConfig(
        rank=3,
        alpha=6,
        init="kaiming",
        transformer_targets=r".*\.to_q",
        vae_targets=r"encoder\.conv_in",
    )
    folder = train(config("run", adapter=adapter))
    assert {key.partition(".lora_")[0] for key in adapters(folder)} == {
        "vae.encoder.conv_in",
        "transformer.transformer_blocks.0.attn.to_q",
        "transformer.single_transformer_blocks.0.attn.to_q",
        "transformer.single_transformer_blocks.1.attn.to_q",
    }
    AlloSR2.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guidance": None}, "guidance is None: .* needs one; use --guidance 1.0"),
        ({"conditioning": Path("nowhere.safetensors")}, "make it with `allosr2 prepare --base"),
        (
            {"adapter": AdapterConfig(rank=2, alpha=2, transformer_targets="proj")},
            "no layer of FluxTransformer2DModel has such a name",
        ),
        (
            {"adapter": AdapterConfig(rank=2, alpha=2, vae_targets="(")},
            "not a regular expression",
        ),
    ],
)
def test_what_does_not_suit_the_base_is_refused_in_one_line(config, fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        train(config("run", **fields))
    assert "\n" not in str(caught.value)


def test_what_is_small_is_checked_before_a_base_is_loaded(config, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    for path in base.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match="make it with `allosr2 prepare"):
        train(config("run", base=str(base), conditioning=Path("nowhere.safetensors")))
    with pytest.raises(ConfigError, match="guidance is None"):
        train(config("run", base=str(base), guidance=None))


def test_targets_belong_to_the_initial_adapters(config):
    first = train(config("first"))
    adapter = AdapterConfig(rank=2, alpha=2, transformer_targets="x_embedder")
    with pytest.raises(ConfigError, match=r"targets is x_embedder: the adapters of .* their own"):
        config("second", initial=str(first), adapter=adapter)


def test_the_base_s_license_goes_along_when_the_base_does(config, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "FLUX.1-dev")
    folder = train(config("run", base=str(base), embed_base=True))
    assert ModelConfig.read(folder).base == "base"
    assert "NON-COMMERCIAL" in (folder / "README.md").read_text()
    assert str(tmp_path) not in (folder / "README.md").read_text()


def test_a_prompt_of_another_base_is_refused(config, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file({"prompt": torch.zeros(2, 16), "pooled": torch.zeros(10)}, other)
    with pytest.raises(ModelError, match=r"widths \(16, 10\), this base needs \(12, 10\)"):
        train(config("run", conditioning=other))


def test_a_base_in_few_bits_needs_autocast(config):
    with pytest.raises(ConfigError, match="base_precision is nf4: needs --precision bfloat16"):
        config("run", base_precision="nf4")


def test_the_recipe_s_name_travels(config):
    named = config("run")
    named = dataclasses.replace(named, run=dataclasses.replace(named.run, recipe="flux-dev-x4"))
    provenance = ModelConfig.read(train(named)).provenance
    assert provenance["training"]["run.recipe"] == "flux-dev-x4"
