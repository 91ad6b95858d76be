"""Settings of an ablation: what each changes, written out by hand; names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from allosr2.errors import ConfigError
from allosr2.evaluation.ablation import FULL, SETTINGS, TABLE_2, named_settings, setting
from allosr2.training.checkpoint import config_fields
from allosr2.training.recipes import flux_dev_x4, mini

CHANGES = {
    "full": {},
    "without-fatc": {"loss.fatc_weight": 0.0},
    "without-atm": {"loss.atm_weight": 0.0},
    "reference-frozen": {"loss.atm_reference": "frozen"},
    "state-renoised": {"loss.atm_state": "renoised"},
    "target-decoded": {"loss.perceptual_target": "decoded"},
    "t-star-half": {"t_star": 0.2},
    "t-star-times-1.5": {"t_star": pytest.approx(0.6)},
}


@pytest.mark.parametrize("recipe", [mini(), flux_dev_x4()], ids=lambda r: r.run.recipe)
def test_each_setting_differs_from_the_full_method_in_its_fields_alone(recipe) -> None:
    assert SETTINGS.keys() == CHANGES.keys()
    full = config_fields(setting(recipe, FULL, Path("runs"), 0.4))
    assert (full["loss.fatc_weight"], full["loss.atm_weight"], full["t_star"]) == (1, 1, 0.4)
    for name, changes in CHANGES.items():
        fields = config_fields(setting(recipe, name, Path("runs"), 0.4))
        places = {"run.output": f"runs/{name}", "run.recipe": f"{recipe.run.recipe}-{name}"}
        assert fields == full | places | changes


def test_weights_of_the_recipe_are_kept_and_the_full_method_may_measure_t_star() -> None:
    recipe = replace(mini(), loss=replace(mini().loss, fatc_weight=0.3, atm_weight=0.2))
    full = setting(recipe, FULL, Path("runs"), None)
    assert full.t_star is None
    assert full.loss == recipe.loss
    # the only other difference to the recipe is where it is written
    assert replace(full, run=recipe.run) == recipe
    assert setting(replace(recipe, t_star=0.3), "without-atm", Path("runs"), 0.4).t_star == 0.3


def test_a_time_past_the_path_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"t\* = 0\.7 times 1\.5 is no time of the path"):
        setting(mini(), "t-star-times-1.5", Path("runs"), 0.7)


def test_the_full_method_comes_first_and_nothing_twice() -> None:
    assert named_settings(TABLE_2) == ("full", "without-fatc", "without-atm")
    assert named_settings(()) == ("full",)
    assert named_settings(["t-star-half", "full", "t-star-half"]) == ("full", "t-star-half")
    assert named_settings(["all"]) == tuple(CHANGES)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("without-fact", "use without-fatc"), ("frozen", "reference-frozen"), ("All", "all")],
)
def test_a_name_that_is_none_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"settings has {name}.*{nearest}"):
        named_settings(["full", name])
