"""Ablations of Algorithm 1: the paper's two (Table 2), and the choices that its text leaves open.

Every setting is a whole training config that differs from the full method's in one respect: same base, same
seed, same images, same number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from allosr2.errors import ConfigError
from allosr2.training.config import AlloSR2Training

FULL = "full"
"""The whole method: every term of Algorithm 1 at the recipe's weight, or at the paper's 1 where it has none."""


def _full(config: AlloSR2Training) -> AlloSR2Training:
    loss = config.loss
    return replace(
        config,
        loss=replace(loss, fatc_weight=loss.fatc_weight or 1.0, atm_weight=loss.atm_weight or 1.0),
    )


def _with_loss(**changes: object) -> Callable[[AlloSR2Training], AlloSR2Training]:
    return lambda config: replace(config, loss=replace(config.loss, **changes))


def _with_t_star_times(factor: float) -> Callable[[AlloSR2Training], AlloSR2Training]:
    def change(config: AlloSR2Training) -> AlloSR2Training:
        assert config.t_star is not None
        t_star = factor * config.t_star
        if not 0.001 <= t_star <= 0.995:
            raise ConfigError(
                f"t* = {config.t_star:.4g} times {factor:g} is no time of the path; leave that setting out"
            )
        return replace(config, t_star=t_star)

    return change


SETTINGS: Mapping[str, Callable[[AlloSR2Training], AlloSR2Training]] = MappingProxyType(
    {
        FULL: lambda config: config,
        "without-fatc": _with_loss(fatc_weight=0.0),
        "without-atm": _with_loss(atm_weight=0.0),
        "reference-frozen": _with_loss(atm_reference="frozen"),
        "state-renoised": _with_loss(atm_state="renoised"),
        "target-decoded": _with_loss(perceptual_target="decoded"),
        "t-star-half": _with_t_star_times(0.5),
        "t-star-times-1.5": _with_t_star_times(1.5),
    }
)
"""What each changes of the full method: Table 2's first, then the options of the text, then a wrong t*."""

TABLE_2 = ("without-fatc", "without-atm", FULL)
"""The paper's own three, in its order."""

ALL = "all"
"""Instead of names: every setting."""


def setting(
    recipe: AlloSR2Training, name: str, output: Path, t_star: float | None
) -> AlloSR2Training:
    """The config of one setting, trained in `output / name`.

    `t_star` is the time that all settings share; None lets the full method measure it.
    """
    full = _full(recipe)
    run = replace(full.run, output=output / name, recipe=f"{full.run.recipe}-{name}")
    return SETTINGS[name](replace(full, run=run, t_star=full.t_star or t_star))


def named_settings(names: Sequence[str]) -> tuple[str, ...]:
    """The settings that names ask for, each once: the full method, which measures t*, then the others in order.

    `all` stands for every one. Raises ConfigError for a name that is none, with the nearest ones.
    """
    for name in names:
        if name not in (*SETTINGS, ALL):
            nearest = get_close_matches(name, (*SETTINGS, ALL), n=3, cutoff=0)
            raise ConfigError(
                f"settings has {name}, which is none: use {', '.join(nearest[:-1])} or {nearest[-1]}"
            )
    asked = SETTINGS if ALL in names else names
    return tuple(dict.fromkeys((FULL, *asked)))
