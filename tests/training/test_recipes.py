"""Recipes are whole configs under the names of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from allosr2.data.degradation import PRESET_NAMES
from allosr2.training.config import (
    AlloSR2Training,
    CodecTraining,
    DecoderTraining,
    FlowTraining,
)
from allosr2.training.recipes import mini, mini_codec, mini_decoder, mini_flow, recipes


def test_names_and_kinds() -> None:
    assert {name: type(build()) for name, build in recipes().items()} == {
        "mini-codec": CodecTraining,
        "mini-flow": FlowTraining,
        "mini": AlloSR2Training,
        "mini-decoder": DecoderTraining,
    }


def test_stages_of_mini_hand_over() -> None:
    assert mini_flow().codec == mini_codec().run.output / "model"
    assert Path(mini().base) == mini_flow().run.output / "model"
    assert mini().embed_base
    assert Path(mini_decoder().model) == mini().run.output / "model"
    assert mini().preset in PRESET_NAMES


@pytest.mark.parametrize("name", sorted(recipes()))
def test_an_ablation_is_a_replacement(name: str) -> None:
    recipe = recipes()[name]()
    changed = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, seed=7))
    assert changed != recipe
    assert dataclasses.replace(changed, run=recipe.run) == recipe


def test_output_folders_differ() -> None:
    outputs = [build().run.output for build in recipes().values()]
    assert len(set(outputs)) == len(outputs)
