"""Recipes are whole configs under the names of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from allosr2.data.degradation import PRESET_NAMES
from allosr2.training.checkpoint import config_fields
from allosr2.training.config import (
    AlloSR2Training,
    CodecTraining,
    DecoderTraining,
    FlowTraining,
)
from allosr2.training.recipes import flux_dev_x4, mini, mini_codec, mini_decoder, mini_flow, recipes

DIFFERENCES: dict[str, dict[str, Any]] = {
    "flux-dev-x4-without-fatc": {"loss.fatc_weight": 0.0},
    "flux-dev-x4-without-atm": {"loss.atm_weight": 0.0},
    "flux-dev-lean": {"text_tokens": 0},
    "flux-dev-24gb": {"base_precision": "nf4", "run.accumulation": 16},
    "flux-schnell-x4": {"base": "black-forest-labs/FLUX.1-schnell", "guidance": None},
    "flux2-klein-x4": {"base": "black-forest-labs/FLUX.2-klein-4B", "guidance": None},
    "sd35-medium-x4": {"base": "stabilityai/stable-diffusion-3.5-medium", "guidance": None},
    "z-image-x4": {"base": "Tongyi-MAI/Z-Image", "guidance": None},
}


def test_names_and_kinds() -> None:
    assert {name: type(build()) for name, build in recipes().items()} == {
        "mini-codec": CodecTraining,
        "mini-flow": FlowTraining,
        "mini": AlloSR2Training,
        "mini-decoder": DecoderTraining,
        **dict.fromkeys(DIFFERENCES, AlloSR2Training),
        "flux-dev-x4": AlloSR2Training,
    }


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    """Section 5.1 and Algorithm 1 of arXiv:2604.19238, and design choices where it is silent."""
    fields = config_fields(flux_dev_x4())
    stated = {
        "run.steps": 10_000,
        "run.batch_size": 16,
        "images.crop": 512,
        "images.procedural": 0.0,
        "images.minimum_scale": 1.0,
        "optimization.learning_rate": 5e-5,
        "adapter.rank": 64,
        "base": "black-forest-labs/FLUX.1-dev",
        "preset": "real-esrgan",
        "scale": 4,
        "loss.fatc_weight": 1.0,
        "loss.atm_weight": 1.0,
        "loss.atm_reference": "shared",
        "loss.atm_state": "anchored",
        "loss.grid_weight": 0.0,
        "loss.generative_weight": 0.0,
        "run.precision": "bfloat16",
        "guidance": 1.0,
    }
    assert {name: fields[name] for name in stated} == stated
    assert fields["run.accumulation"] == 8  # a part for each of the paper's eight GPUs


@pytest.mark.parametrize("name", sorted(DIFFERENCES))
def test_other_recipes_differ_from_the_paper_s_in_what_their_names_say(name: str) -> None:
    found, paper_s = config_fields(recipes()[name]()), config_fields(flux_dev_x4())
    difference = {key: found[key] for key in paper_s if found[key] != paper_s[key]}
    assert found.keys() == paper_s.keys()
    assert difference.pop("run.recipe") == name
    assert difference.pop("run.output") == f"runs/{name}"
    assert difference == DIFFERENCES[name]


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_knows_its_name(name: str) -> None:
    assert recipes()[name]().run.recipe == name


def test_stages_of_mini_hand_over() -> None:
    assert mini_flow().codec == mini_codec().run.output / "model"
    assert (
        mini().base == "mini"
    )  # what the first two stages made, when they were run for the package
    assert mini().embed_base
    assert Path(mini_decoder().model) == mini().run.output / "model"
    assert set(mini().preset.split("+")) <= set(PRESET_NAMES)


@pytest.mark.parametrize("name", sorted(recipes()))
def test_an_ablation_is_a_replacement(name: str) -> None:
    recipe = recipes()[name]()
    changed = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, seed=7))
    assert changed != recipe
    assert dataclasses.replace(changed, run=recipe.run) == recipe


def test_output_folders_differ() -> None:
    outputs = [build().run.output for build in recipes().values()]
    assert len(set(outputs)) == len(outputs)
