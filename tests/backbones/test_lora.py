"""Adapters: where they sit, what the file holds, and that diffusers loads it to the same outputs."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from peft.utils.save_and_load import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from allosr2.backbones.base import load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.backbones.flux import FluxVelocity
from allosr2.backbones.lora import (
    FILE_NAME,
    adapter_size,
    adapters_off,
    add_adapter,
    load_adapters,
    merge_adapters,
    save_adapters,
    target_names,
)
from allosr2.backbones.velocity import Conditioning
from allosr2.errors import ModelError

TRANSFORMER_TARGETS = {
    "x_embedder",
    *(
        f"transformer_blocks.0.{name}"
        for name in (
            "attn.to_q",
            "attn.to_k",
            "attn.to_v",
            "attn.to_out.0",
            "attn.add_q_proj",
            "attn.add_k_proj",
            "attn.add_v_proj",
            "attn.to_add_out",
            "ff.net.0.proj",
            "ff.net.2",
            "ff_context.net.0.proj",
            "ff_context.net.2",
        )
    ),
    *(
        f"single_transformer_blocks.{block}.{name}"
        for block in (0, 1)
        for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
    ),
}
VAE_TARGETS = {
    "encoder.conv_in",
    "encoder.conv_out",
    *(f"encoder.down_blocks.{b}.resnets.{r}.conv{c}" for b in range(4) for r in (0,) for c in "12"),
    "encoder.down_blocks.2.resnets.0.conv_shortcut",  # where 8 channels become 16
    *(f"encoder.down_blocks.{block}.downsamplers.0.conv" for block in range(3)),
    *(f"encoder.mid_block.resnets.{r}.conv{c}" for r in (0, 1) for c in "12"),
    *(f"encoder.mid_block.attentions.0.to_{name}" for name in ("q", "k", "v", "out.0")),
}


@pytest.fixture
def transformer(tiny_base: Path):
    return load_transformer(str(tiny_base))


@pytest.fixture
def vae(tiny_base: Path):
    return load_vae(str(tiny_base))


def velocity(transformer) -> torch.Tensor:
    """The field's answer to one fixed question."""
    generator = torch.Generator().manual_seed(0)
    prompt = Conditioning(
        prompt=torch.randn(3, 12, generator=generator), pooled=torch.randn(10, generator=generator)
    )
    z = torch.randn(2, 4, 6, 8, generator=generator)
    with torch.no_grad():
        return FluxVelocity(transformer, prompt, guidance=1.0)(z, torch.tensor([0.2, 0.6]))


def latent(vae) -> torch.Tensor:
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return Codec(vae).encode(image)


def metadata_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / FILE_NAME, "pt") as file:
        return file.metadata()


def test_targets_are_the_listed_ones(transformer, vae):
    assert set(target_names(transformer, FluxVelocity.lora_targets)) == TRANSFORMER_TARGETS
    assert set(target_names(vae, Codec.lora_targets)) == VAE_TARGETS


def test_adapters_sit_on_the_targets_and_nowhere_else(transformer, vae):
    for module, pattern, targets in (
        (transformer, FluxVelocity.lora_targets, TRANSFORMER_TARGETS),
        (vae, Codec.lora_targets, VAE_TARGETS),
    ):
        add_adapter(module, pattern, rank=3, alpha=6)
        trainable = {name for name, p in module.named_parameters() if p.requires_grad}
        assert trainable == {
            f"{target}.lora_{side}.default.weight" for target in targets for side in "AB"
        }
        assert adapter_size(module) == (3, 6)


def test_a_fresh_adapter_has_no_effect(transformer, vae):
    before = velocity(transformer), latent(vae)
    add_adapter(transformer, FluxVelocity.lora_targets, rank=3, alpha=6)
    add_adapter(vae, Codec.lora_targets, rank=3, alpha=6)
    assert torch.equal(velocity(transformer), before[0])
    assert torch.equal(latent(vae), before[1])


def test_an_adapter_adds_alpha_over_rank_times_b_a(transformer, tiny_model):
    load_adapters(tiny_model, transformer=transformer)
    layer = transformer.x_embedder
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = x @ layer.weight.T + layer.bias + 8 / 4 * (x @ a.T) @ b.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_the_file_goes_round_bit_by_bit(transformer, vae, tiny_model, tmp_path):
    load_adapters(tiny_model, vae=vae, transformer=transformer)
    save_adapters(tmp_path, vae=vae, transformer=transformer)
    first, second = (load_file(folder / FILE_NAME) for folder in (tiny_model, tmp_path))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert {tensor.dtype for tensor in second.values()} == {torch.bfloat16}
    assert metadata_of(tmp_path) == metadata_of(tiny_model)
    assert set(first) == {
        f"{part}.{target}.lora_{side}.weight"
        for part, targets in (("transformer", TRANSFORMER_TARGETS), ("vae", VAE_TARGETS))
        for target in targets
        for side in "AB"
    }
    assert not any(p.requires_grad for m in (vae, transformer) for p in m.parameters())


def test_diffusers_loads_the_transformer_s_adapters(transformer, tiny_base, tiny_model):
    load_adapters(tiny_model, transformer=transformer)
    _, metadata = FluxPipeline.lora_state_dict(
        tiny_model, weight_name=FILE_NAME, return_lora_metadata=True
    )
    assert (metadata["transformer.r"], metadata["transformer.lora_alpha"]) == (4, 8)
    theirs = load_transformer(str(tiny_base))
    base = velocity(theirs)
    theirs.load_lora_adapter(tiny_model, weight_name=FILE_NAME, prefix="transformer")
    (config,) = theirs.peft_config.values()
    assert (config.r, config.lora_alpha) == (4, 8)
    torch.testing.assert_close(velocity(theirs), velocity(transformer), rtol=0, atol=1e-6)
    assert float((velocity(theirs) - base).abs().max()) > 1e-3


def test_a_pipeline_loads_the_transformer_s_adapters(transformer, tiny_base, tiny_model):
    load_adapters(tiny_model, transformer=transformer)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=load_vae(str(tiny_base)),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=load_transformer(str(tiny_base)),
    )
    pipeline.load_lora_weights(tiny_model, weight_name=FILE_NAME)
    (config,) = pipeline.transformer.peft_config.values()
    assert (config.r, config.lora_alpha) == (4, 8)
    expected = velocity(transformer)
    torch.testing.assert_close(velocity(pipeline.transformer), expected, rtol=0, atol=1e-6)
    pipeline.fuse_lora()
    torch.testing.assert_close(velocity(pipeline.transformer), expected, rtol=0, atol=1e-5)


def test_what_diffusers_saves_is_loaded(transformer, vae, tiny_base, tiny_model, tmp_path):
    """Ours to diffusers to ours, through `save_lora_adapter`."""
    load_adapters(tiny_model, vae=vae, transformer=transformer)
    for part, base in (("transformer", load_transformer), ("vae", load_vae)):
        theirs = base(str(tiny_base))
        theirs.load_lora_adapter(tiny_model, weight_name=FILE_NAME, prefix=part)
        (name,) = theirs.peft_config
        theirs.save_lora_adapter(tmp_path / part, adapter_name=name)
        saved = load_file(tmp_path / part / FILE_NAME)
        with safe_open(tmp_path / part / FILE_NAME, "pt") as file:
            settings = json.loads(file.metadata()["lora_adapter_metadata"])
        folder = tmp_path / f"{part}_again"
        folder.mkdir()
        metadata = {
            "lora_adapter_metadata": json.dumps({f"{part}.{k}": v for k, v in settings.items()})
        }
        save_file({f"{part}.{k}": v for k, v in saved.items()}, folder / FILE_NAME, metadata)
        again = base(str(tiny_base))
        load_adapters(folder, **{part: again})
        outputs = (velocity, transformer) if part == "transformer" else (latent, vae)
        torch.testing.assert_close(outputs[0](again), outputs[0](outputs[1]), rtol=0, atol=1e-5)


def test_diffusers_loads_the_vae_s_adapters(vae, tiny_base, tiny_model):
    load_adapters(tiny_model, vae=vae)
    theirs = AutoencoderKL.from_pretrained(tiny_base, subfolder="vae").requires_grad_(False)
    base = latent(theirs)
    theirs.load_lora_adapter(tiny_model, weight_name=FILE_NAME, prefix="vae")
    (config,) = theirs.peft_config.values()
    assert (config.r, config.lora_alpha) == (4, 8)
    torch.testing.assert_close(latent(theirs), latent(vae), rtol=0, atol=1e-6)
    assert float((latent(theirs) - base).abs().max()) > 1e-3


def test_merging_changes_no_output(transformer, vae, tiny_model):
    load_adapters(tiny_model, vae=vae, transformer=transformer)
    before = velocity(transformer), latent(vae)
    merge_adapters(transformer)
    merge_adapters(vae)
    torch.testing.assert_close(velocity(transformer), before[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(latent(vae), before[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_merging_adds_the_scaled_adapters_to_the_weights(transformer, vae, tiny_model, scale):
    load_adapters(tiny_model, transformer=transformer, vae=vae)
    for module in (transformer, vae):
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        merge_adapters(module, scale)
        after = module.state_dict()
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            layer = name.removesuffix(".base_layer.weight")
            if layer == name:
                assert torch.equal(after[name], tensor)
                continue
            down, up = (before[f"{layer}.lora_{side}.default.weight"] for side in "AB")
            # alpha / rank = 8 / 4; a convolution's up is 1 x 1
            delta = 8 / 4 * (up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
            torch.testing.assert_close(after[name], tensor + scale * delta, rtol=0, atol=1e-6)


def test_merging_again_replaces_what_was_merged(transformer, vae, tiny_model):
    load_adapters(tiny_model, transformer=transformer, vae=vae)
    adapted = velocity(transformer), latent(vae)
    for scale in (0.3, 0.3, 1.0):
        merge_adapters(transformer, scale)
        merge_adapters(vae, scale)
    torch.testing.assert_close(velocity(transformer), adapted[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(latent(vae), adapted[1], rtol=0, atol=1e-5)


def test_merging_none_of_the_adapters_is_the_base(transformer, vae, tiny_model):
    base = velocity(transformer), latent(vae)
    load_adapters(tiny_model, transformer=transformer, vae=vae)
    assert (velocity(transformer) - base[0]).abs().max() > 1e-3
    merge_adapters(transformer, 0)
    merge_adapters(vae, 0)
    assert torch.equal(velocity(transformer), base[0])
    assert torch.equal(latent(vae), base[1])


def test_off_is_the_base_and_leaves_everything_as_it_was(transformer, tiny_model):
    def train_some() -> None:
        # An unusual choice of trainable parameters, which must come back as it was. The same for both
        # answers: kernels, and with them the last bit, can depend on it even where no gradient is taken
        for name, parameter in transformer.named_parameters():
            letters = name.replace(".base_layer", "").encode()
            parameter.requires_grad_(sum(letters) % 3 == 0)

    train_some()
    base = velocity(transformer)
    load_adapters(tiny_model, transformer=transformer)
    train_some()
    adapted = velocity(transformer)
    assert not torch.equal(adapted, base)
    weights = {n: p.clone() for n, p in transformer.named_parameters()}
    trainable = [p.requires_grad for p in transformer.parameters()]
    with adapters_off(transformer):
        assert torch.equal(velocity(transformer), base)
    assert torch.equal(velocity(transformer), adapted)
    assert [p.requires_grad for p in transformer.parameters()] == trainable
    with pytest.raises(KeyError), adapters_off(transformer):
        raise KeyError
    assert torch.equal(velocity(transformer), adapted)
    assert [p.requires_grad for p in transformer.parameters()] == trainable
    assert all(torch.equal(p, weights[n]) for n, p in transformer.named_parameters())


def copied(tiny_model: Path, folder: Path, change, metadata=None) -> Path:
    """The adapters of `tiny_model` in another folder, after `change` of their tensors."""
    tensors = load_file(tiny_model / FILE_NAME)
    change(tensors)
    save_file(tensors, folder / FILE_NAME, metadata=metadata or metadata_of(tiny_model))
    return folder


def refused(folder: Path, base: Path, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        load_adapters(folder, transformer=load_transformer(str(base)))
    message = str(caught.value)
    assert str(folder / FILE_NAME) in message
    assert "\n" not in message


KEY = "transformer.x_embedder.lora_A.weight"


def test_adapters_that_cannot_be_used_are_refused(tiny_base, tiny_model, tmp_path):
    refused(tmp_path, tiny_base, "cannot be read")
    whole = (tiny_model / FILE_NAME).read_bytes()
    for size in (0, 100, len(whole) // 2):
        (tmp_path / FILE_NAME).write_bytes(whole[:size])
        refused(tmp_path, tiny_base, "cannot be read")
    copied(tiny_model, tmp_path, len, metadata={"format": "pt"})
    refused(tmp_path, tiny_base, "no rank and alpha for the transformer")
    copied(tiny_model, tmp_path, lambda tensors: tensors.pop(KEY))
    refused(tmp_path, tiny_base, "do not fit the base")
    copied(tiny_model, tmp_path, lambda tensors: tensors.update({KEY: torch.zeros(4, 17)}))
    refused(tmp_path, tiny_base, "do not fit the base")
    copied(tiny_model, tmp_path, lambda tensors: tensors[KEY].fill_(torch.nan))
    refused(tmp_path, tiny_base, "NaN or infinity")


def rename_keys(form: str):
    """A change of tensors that renames the transformer's as another trainer would."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if key.startswith("transformer.")]:
            tensors[form.format(key.removeprefix("transformer."))] = tensors.pop(key)

    return change


@pytest.mark.parametrize(
    ("form", "layout"), [("lora_unet_{}", "kohya's"), ("base_model.model.{}", "PEFT's own")]
)
def test_keys_of_other_trainers_are_named_with_the_converter(
    tiny_base, tiny_model, tmp_path, form, layout
):
    copied(tiny_model, tmp_path, rename_keys(form))
    refused(tmp_path, tiny_base, f"are in {layout} layout; convert .*save_lora_weights")


@pytest.mark.parametrize(
    ("form", "layout"),
    [("diffusion_model.{}", "another layout"), ("transformer.{}.alpha", "another layout")],
)
def test_other_keys_are_named_too(tiny_base, tiny_model, tmp_path, form, layout):
    copied(tiny_model, tmp_path, rename_keys(form))
    refused(tmp_path, tiny_base, f"are in {layout} .*; convert")


def test_peft_s_own_file_is_named_with_the_converter(tiny_base, tiny_model, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes((tiny_model / FILE_NAME).read_bytes())
    with pytest.raises(ModelError, match=r"in PEFT's own layout; convert .*save_lora_weights"):
        load_adapters(tmp_path, transformer=load_transformer(str(tiny_base)))


def test_what_the_converter_makes_is_loaded(transformer, vae, tiny_base, tiny_model, tmp_path):
    """The way that the message names, on adapters of the transformer alone: the VAE gets none."""
    load_adapters(tiny_model, transformer=transformer)
    theirs = load_transformer(str(tiny_base))
    theirs.load_lora_adapter(tiny_model, weight_name=FILE_NAME, prefix="transformer")
    (config,) = theirs.peft_config.values()
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(theirs, adapter_name="default_0"),
        transformer_lora_adapter_metadata={
            "r": config.r,
            "lora_alpha": config.lora_alpha,
            "target_modules": sorted(config.target_modules),
        },
    )
    again, before = load_transformer(str(tiny_base)), latent(vae)
    load_adapters(tmp_path, transformer=again, vae=vae)
    torch.testing.assert_close(velocity(again), velocity(transformer), rtol=0, atol=1e-5)
    assert torch.equal(latent(vae), before)
    assert adapter_size(vae) == (0, 0)
    other = tmp_path / "again"
    other.mkdir()
    save_adapters(other, transformer=again, vae=vae)
    assert {key.partition(".")[0] for key in load_file(other / FILE_NAME)} == {"transformer"}


def test_targets_are_whole_names(transformer):
    """PEFT alone would take `proj_out` as the end of every single block's too."""
    add_adapter(transformer, "proj_out", rank=2, alpha=2)
    assert {n for n, p in transformer.named_parameters() if p.requires_grad} == {
        f"proj_out.lora_{side}.default.weight" for side in "AB"
    }


@pytest.mark.parametrize("text", ["[1]", "3", '{"transformer.r": "four"}'])
def test_odd_metadata_is_refused(tiny_base, tiny_model, tmp_path, text):
    copied(
        tiny_model, tmp_path, len, metadata={"lora_adapter_metadata": text, "allosr2_base": "[]"}
    )
    refused(tmp_path, tiny_base, "no rank and alpha for the transformer")


def test_a_rank_that_the_metadata_does_not_say_is_refused(tiny_base, tiny_model, tmp_path):
    metadata = metadata_of(tiny_model)
    settings = json.loads(metadata["lora_adapter_metadata"]) | {"transformer.r": 8}
    metadata["lora_adapter_metadata"] = json.dumps(settings)
    copied(tiny_model, tmp_path, len, metadata=metadata)
    refused(tmp_path, tiny_base, "adapters are of rank 4, its metadata says 8")


def test_adapters_of_a_larger_base_are_refused_though_they_would_fit(
    tiny_base, tiny_model, tmp_path
):
    config = FluxTransformer2DModel.load_config(tiny_base, subfolder="transformer")
    larger = FluxTransformer2DModel.from_config(config | {"num_single_layers": 3})
    larger.save_pretrained(tmp_path / "base" / "transformer")
    copied(tiny_model, tmp_path, len)
    refused(tmp_path, tmp_path / "base", "do not fit the base")


def test_a_pickle_of_adapters_is_not_read(tiny_base, tiny_model, tmp_path):
    path = tmp_path / "pytorch_lora_weights.bin"
    torch.save(load_file(tiny_model / FILE_NAME), path)
    with pytest.raises(ModelError, match=r"pytorch_lora_weights\.bin: a pickle, .* is not read"):
        load_adapters(tmp_path, transformer=load_transformer(str(tiny_base)))
