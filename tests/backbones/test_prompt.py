"""Encoded prompts against the text encoders run by hand, on ids that are written down by hand."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from tiny_flux import T5_WIDTH, save_flux
from tiny_pipelines import CLIP_IDS, qwen_ids, t5_ids
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3ForConditionalGeneration,
    Qwen3Model,
    T5EncoderModel,
)

from allosr2.backbones.prompt import encode_prompt
from allosr2.backbones.velocity import Conditioning
from allosr2.errors import ConfigError, ModelError


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_flux(tmp_path_factory.mktemp("flux") / "FLUX.1-dev")


@pytest.fixture
def base(flux, tmp_path) -> Path:
    """A copy of FLUX to break."""
    return shutil.copytree(flux, tmp_path / "base")


def run(kind, folder: Path, ids: list[int], padding: int = 0):
    """One encoder in bfloat16, on ids of which the last `padding` are masked."""
    encoder = kind.from_pretrained(folder, dtype=torch.bfloat16).eval()
    mask = torch.tensor([[1] * (len(ids) - padding) + [0] * padding])
    with torch.no_grad():
        return encoder(
            input_ids=torch.tensor([ids]),
            attention_mask=mask if padding else None,
            output_hidden_states=True,
        )


def assert_same(found: Conditioning, prompt: torch.Tensor, pooled: torch.Tensor):
    assert (found.prompt.dtype, found.pooled.dtype) == (torch.bfloat16,) * 2
    assert not found.prompt.requires_grad
    assert not found.prompt.is_inference()  # or training could not use it
    assert torch.equal(found.prompt, prompt)
    assert torch.equal(found.pooled, pooled)
    assert float(prompt.float().std()) > 0.01  # nothing that zeros would pass


@pytest.mark.parametrize("tokens", [512, 7, 1])
def test_flux_has_the_last_state_of_t5_and_clips_state_at_the_end_of_the_text(flux, tokens):
    t5 = run(T5EncoderModel, flux / "text_encoder_2", t5_ids(tokens))
    clip = run(CLIPTextModel, flux / "text_encoder", CLIP_IDS)
    found = encode_prompt(str(flux), tokens)
    assert found.prompt.shape == (tokens, T5_WIDTH)
    # the text is empty: its end follows its start
    assert_same(found, t5.last_hidden_state[0], clip.last_hidden_state[0, 1])


@pytest.mark.parametrize(("distilled", "expected"), [(True, 512), (False, 256)])
def test_the_length_is_the_bases_own(tmp_path, distilled, expected):
    folder = save_flux(tmp_path / "base", distilled=distilled)
    assert encode_prompt(str(folder)).prompt.shape == (expected, T5_WIDTH)
    shutil.rmtree(folder / "transformer")
    assert encode_prompt(str(folder)).prompt.shape == (512, T5_WIDTH)


def test_vocabularies_are_read_from_the_files_that_owners_publish(base, flux):
    """FLUX.1's CLIP has no tokenizer.json."""
    (base / "tokenizer/tokenizer.json").unlink()
    vocabulary = {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
    (base / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    (base / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    assert torch.equal(encode_prompt(str(base), 2).pooled, encode_prompt(str(flux), 2).pooled)


def test_sd3_has_two_clips_side_by_side_and_t5_after_them(tmp_path):
    folder = tiny_pipelines.save_sd3(tmp_path / "base")
    first = run(CLIPTextModelWithProjection, folder / "text_encoder", CLIP_IDS)
    second = run(CLIPTextModelWithProjection, folder / "text_encoder_2", CLIP_IDS)
    t5 = run(T5EncoderModel, folder / "text_encoder_3", t5_ids(7))
    clips = torch.cat([first.hidden_states[-2][0], second.hidden_states[-2][0]], dim=1)
    padded = torch.cat([clips, clips.new_zeros(77, T5_WIDTH - clips.shape[1])], dim=1)
    found = encode_prompt(str(folder), 7)
    assert found.prompt.shape == (77 + 7, T5_WIDTH)
    assert_same(
        found,
        torch.cat([padded, t5.last_hidden_state[0]]),
        torch.cat([first.text_embeds[0], second.text_embeds[0]]),
    )
    assert encode_prompt(str(folder)).prompt.shape == (77 + 256, T5_WIDTH)


def test_klein_has_three_layers_of_a_padded_chat_without_thinking(tmp_path):
    folder = tiny_pipelines.save_klein(tmp_path / "base")
    chat = qwen_ids(thinking=False)
    padding = 40 - len(chat)
    states = run(
        Qwen3Model, folder / "text_encoder", [*chat, *[0] * padding], padding
    ).hidden_states
    expected = torch.cat([states[layer][0] for layer in (9, 18, 27)], dim=1)
    found = encode_prompt(str(folder), 40)
    assert found.prompt.shape == (40, 24)
    assert_same(found, expected, torch.zeros(0, dtype=torch.bfloat16))
    assert encode_prompt(str(folder)).prompt.shape == (512, 24)


def test_z_image_has_the_last_layer_but_one_of_a_thinking_chat_and_no_padding(tmp_path):
    folder = tiny_pipelines.save_z_image(tmp_path / "base")
    chat = qwen_ids(thinking=True)
    states = run(Qwen3Model, folder / "text_encoder", [*chat, 0], 1).hidden_states
    found = encode_prompt(str(folder))
    assert found.prompt.shape == (len(chat), 8)
    torch.testing.assert_close(found.prompt, states[-2][0, :-1], rtol=0, atol=0)
    assert found.pooled.shape == (0,)


def test_flux2_dev_has_three_layers_of_mistral(tmp_path):
    folder = tiny_pipelines.save_flux2_dev(tmp_path / "base")
    # of its chat every word but the marks is unknown to the tiny vocabulary, and cut after four
    ids = [2, 4, 0, 0]
    states = run(Mistral3ForConditionalGeneration, folder / "text_encoder", ids).hidden_states
    expected = torch.cat([states[layer][0] for layer in (10, 20, 30)], dim=1)
    assert_same(encode_prompt(str(folder), 4), expected, torch.zeros(0, dtype=torch.bfloat16))


@pytest.mark.parametrize("way", ["garbage", "absent"])
def test_weights_of_transformer_and_vae_are_not_read(base, flux, way):
    weights = [*base.glob("transformer/*.safetensors"), *base.glob("vae/*.safetensors")]
    assert len(weights) == 2
    for path in weights:
        path.write_bytes(b"no weights") if way == "garbage" else path.unlink()
    found, expected = encode_prompt(str(base), 7), encode_prompt(str(flux), 7)
    assert torch.equal(found.prompt, expected.prompt)


@pytest.fixture
def hub(flux, tmp_path, monkeypatch) -> set[str]:
    """A hub that has FLUX in two precisions, one checkpoint and a pickle; what was asked of it."""
    remote = shutil.copytree(flux, tmp_path / "remote")
    for name in (
        "flux1-dev.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "text_encoder_2/pytorch_model.bin",
    ):
        (remote / name).write_bytes(b"large")
    cache = tmp_path / "cache"
    taken: set[str] = set()

    def take(names) -> str:
        for name in names:
            taken.add(name)
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(remote / name, cache / name)
        return str(cache)

    def snapshot(repository, *, allow_patterns, **_):
        names = [str(path.relative_to(remote)) for path in remote.rglob("*") if path.is_file()]
        return take(filter_repo_objects(names, allow_patterns=allow_patterns))

    def download(repository, name, **_):
        assert repository == "owner/FLUX.1-dev"
        return f"{take([name])}/{name}"

    monkeypatch.setattr("allosr2.backbones.hub.hf_hub_download", download)
    monkeypatch.setattr("allosr2.backbones.hub.snapshot_download", snapshot)
    return taken


def test_only_what_text_takes_is_fetched_from_the_hub(hub, flux):
    found, expected = encode_prompt("owner/FLUX.1-dev", 7), encode_prompt(str(flux), 7)
    assert torch.equal(found.prompt, expected.prompt)
    assert torch.equal(found.pooled, expected.pooled)
    assert hub == {
        "model_index.json",
        "transformer/config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
    }


def test_the_license_is_said_before_encoders_are_downloaded(hub, monkeypatch, tmp_path, caplog):
    from huggingface_hub import constants

    from allosr2.backbones.hub import _announce

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    _announce.cache_clear()  # it is said once a process
    encode_prompt("owner/FLUX.1-dev", 7)
    (said,) = [r for r in caplog.records if r.name == "allosr2.backbones.hub"]
    assert said.levelname == "WARNING"
    assert "NON-COMMERCIAL" in said.getMessage()


def test_a_hub_that_is_out_of_reach_is_explained(monkeypatch):
    def offline(*_, **__):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr("allosr2.backbones.hub.hf_hub_download", offline)
    with pytest.raises(ModelError, match=r"^owner/base: .*HF_HUB_OFFLINE"):
        encode_prompt("owner/base")


@pytest.mark.parametrize("tokens", [0, -1, 513])
def test_lengths_that_no_base_knows_are_refused(flux, tokens):
    with pytest.raises(ConfigError, match=f"tokens is {tokens}: use 1 to 512"):
        encode_prompt(str(flux), tokens)


def edit_index(base: Path, **changes) -> None:
    path = base / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_base_without_text_encoders_needs_no_prompt(base):
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    edit_index(base, **{part: [None, None] for part in parts})
    with pytest.raises(
        ModelError, match=r"names no text encoders; .* train with no --conditioning"
    ):
        encode_prompt(str(base))
    (base / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"no model_index.json .* train with no --conditioning"):
        encode_prompt(str(base))


def without_a_weight(base: Path) -> None:
    path = base / "text_encoder_2/model.safetensors"
    tensors = load_file(path)
    del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def with_nan(base: Path) -> None:
    path = base / "text_encoder_2/model.safetensors"
    tensors = load_file(path)
    tensors["encoder.final_layer_norm.weight"][3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def with_a_missing_shard(base: Path) -> None:
    folder = base / "text_encoder_2"
    weights = load_file(folder / "model.safetensors")
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(weights, "model-00002-of-00002.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def with_a_pickle(base: Path) -> None:
    path = base / "text_encoder/model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


def truncated(name: str):
    def truncate(base: Path) -> None:
        (base / name).write_bytes((base / name).read_bytes()[:-20])

    return truncate


def without(name: str):
    def remove(base: Path) -> None:
        shutil.rmtree(base / name) if (base / name).is_dir() else (base / name).unlink()

    return remove


def emptied(name: str):
    def empty(base: Path) -> None:
        shutil.rmtree(base / name)
        (base / name).mkdir()

    return empty


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("text_encoder"), "no text_encoder in it"),
        (without("tokenizer_2"), "no tokenizer_2 in it"),
        (emptied("text_encoder_2"), "its text_encoder_2 cannot be loaded"),
        (emptied("tokenizer"), "its tokenizer has no vocabulary"),
        (truncated("text_encoder_2/model.safetensors"), "its text_encoder_2 cannot be loaded"),
        (truncated("text_encoder/config.json"), "its text_encoder cannot be loaded"),
        (truncated("tokenizer_2/tokenizer.json"), "its tokenizer_2 cannot be loaded"),
        (truncated("model_index.json"), "model_index.json: it cannot be read"),
        (truncated("transformer/config.json"), "transformer/config.json: it cannot be read"),
        (with_a_missing_shard, "its text_encoder_2 cannot be loaded"),
        (with_a_pickle, "a pickle, .* is not read"),
        (without_a_weight, r"its text_encoder_2 has no weights for encoder.block.1.+ and 0 others"),
        (with_nan, "its text encoders give NaN or infinity"),
        (
            lambda base: edit_index(base, text_encoder_2=[None, None]),
            "names no text_encoder_2, which its prompt needs",
        ),
        (
            lambda base: edit_index(base, text_encoder=["transformers", "BertNet"]),
            "its text_encoder cannot be loaded .*BertNet",
        ),
        (
            lambda base: edit_index(base, text_encoder=["os", "system"]),
            "which is not of transformers",
        ),
        (
            lambda base: edit_index(base, _class_name="StableDiffusionXLPipeline"),
            "kind StableDiffusionXLPipeline is not supported; use one of FluxPipeline, "
            "Flux2KleinPipeline, Flux2Pipeline, StableDiffusion3Pipeline, ZImagePipeline",
        ),
        (
            lambda base: edit_index(base, text_encoder=["transformers", "T5EncoderModel"]),
            "its text_encoder",
        ),
    ],
)
def test_what_is_broken_is_named_in_one_line(base, damage, said):
    damage(base)
    with pytest.raises(ModelError, match=said) as error:
        encode_prompt(str(base))
    message = str(error.value)
    assert message.startswith(str(base))
    assert "\n" not in message
    assert ";" in message  # what to do


def test_a_chat_that_is_lost_is_named(tmp_path):
    folder = tiny_pipelines.save_klein(tmp_path / "base")
    (folder / "tokenizer/chat_template.jinja").unlink()
    with pytest.raises(
        ModelError, match=r"cannot encode the empty prompt .*chat_template"
    ) as error:
        encode_prompt(str(folder))
    assert "\n" not in str(error.value)


def test_packages_that_a_tokenizer_needs_are_named(base, monkeypatch):
    (base / "tokenizer_2/tokenizer.json").unlink()
    (base / "tokenizer_2/spiece.model").write_bytes(b"\x0a\x0b")
    monkeypatch.setattr("allosr2.backbones.prompt.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"tokenizer_2 .* pip install sentencepiece protobuf"):
        encode_prompt(str(base))


def test_packages_that_an_encoder_needs_are_named(base, monkeypatch):
    def fail(*_, **__):
        raise ImportError("T5EncoderModel requires\n  warp")

    monkeypatch.setattr(T5EncoderModel, "from_pretrained", fail)
    with pytest.raises(ModelError, match=r"text_encoder_2 needs .* requires warp\); install it"):
        encode_prompt(str(base))
