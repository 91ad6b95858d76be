"""Bases in diffusers layout that cannot be loaded, each refused in one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel, UNet2DModel
from safetensors.torch import load_file

from allosr2.backbones.base import load_transformer, load_vae
from allosr2.errors import ModelError

INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def sharded(tiny_base: Path, tmp_path: Path) -> Path:
    """`tiny_base` with its transformer in several files, as large ones are."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base / "vae", base / "vae")
    transformer = FluxTransformer2DModel.from_pretrained(tiny_base, subfolder="transformer")
    transformer.save_pretrained(base / "transformer", max_shard_size="40KB")
    assert len(shards(base)) > 2
    return base


def shards(base: Path) -> list[Path]:
    return sorted((base / "transformer").glob("*.safetensors"))


def test_shards_are_put_together(sharded, tiny_base):
    whole, parts = load_transformer(str(tiny_base)), load_transformer(str(sharded))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parts.get_parameter(name), parameter)


def test_weights_come_in_the_precision_that_is_asked_for(sharded):
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        transformer = load_transformer(str(sharded), precision)
        assert {p.dtype for p in transformer.parameters()} == {dtype}
        assert not any(p.requires_grad for p in transformer.parameters())


def truncate(base: Path) -> None:
    shard = shards(base)[1]
    shard.write_bytes(shard.read_bytes()[:-100])


def rename(base: Path) -> None:
    shards(base)[1].rename(base / "transformer" / "copy of shard 2.safetensors")


def break_index(base: Path) -> None:
    (base / "transformer" / INDEX).write_text('{"metadata"')


def pickle(base: Path) -> None:
    for shard in shards(base):
        torch.save(load_file(shard), shard.with_suffix(".bin"))
        shard.unlink()
    (base / "transformer" / INDEX).unlink()


def remove_all(base: Path) -> None:
    for path in (*shards(base), base / "transformer" / INDEX):
        path.unlink()


def narrow(base: Path) -> None:
    path = base / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 1}))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a shard cut short": (truncate, r"cannot be loaded .*00002-of-\d+\.safetensors"),
    "a shard renamed": (rename, r"00002-of-\d+\.safetensors of \d+ shards missing or renamed"),
    "a broken index": (break_index, f"{INDEX}: not an index"),
    "pickles": (pickle, r"00001-of-\d+\.bin: a pickle, .* is not read"),
    "no weights": (remove_all, r"base/transformer: no \.safetensors file in it"),
    "another config": (narrow, "transformer cannot be loaded"),
}


@pytest.mark.parametrize(("damage", "match"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_one_line_that_names_it(sharded, damage, match):
    damage(sharded)
    with pytest.raises(ModelError, match=match) as caught:
        load_transformer(str(sharded))
    assert str(caught.value).startswith(str(sharded))
    assert "\n" not in str(caught.value)


def test_kinds_that_are_not_supported_are_named(tmp_path):
    UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
    ).save_pretrained(tmp_path / "transformer")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "vae")
    with pytest.raises(ModelError, match="a transformer of kind UNet2DModel is not supported"):
        load_transformer(str(tmp_path))
    with pytest.raises(ModelError, match="a VAE of kind AutoencoderTiny is not supported"):
        load_vae(str(tmp_path))
