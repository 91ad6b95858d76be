"""An ablation as it is run: every setting trained once, what differs between them, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from allosr2.errors import AlloSR2Error, ConfigError
from allosr2.evaluation.ablation import FULL, setting
from allosr2.evaluation.summary import Measured
from allosr2.model import ModelConfig
from allosr2.storage import save_text
from allosr2.training.checkpoint import (
    FREE_FIELDS,
    checkpoints,
    config_fields,
    provenance_fields,
)
from allosr2.training.config import AlloSR2Training

DONE = "setting.json"
"""File of a setting's folder that says with which config, weights and photographs its model was made."""
_OWN = frozenset({"run.output", "run.recipe"})
"""Fields in which settings differ by their names alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """One setting, trained to its end."""

    name: str
    """As `allosr2.evaluation.ablation.SETTINGS` names it."""
    config: AlloSR2Training
    """What it was trained by."""
    model: Path
    """The model's folder."""
    t_star: float
    """Time at which it places LR latents."""
    fingerprints: Mapping[str, str]
    """Of the frozen weights and of the photographs that it was trained with."""

    @property
    def fields(self) -> dict[str, Any]:
        """The config's fields by name, with t* as it came to be."""
        return config_fields(self.config) | {"t_star": self.t_star}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """Settings of one recipe, each trained and measured alike."""

    settings: Sequence[Trained]
    """The full method first."""
    measured: Mapping[str, Measured]
    """By the setting's name."""

    def fields(self) -> dict[str, Any]:
        """As JSON: what all settings share, and of each what it changes and the means of what was measured."""
        full = self.settings[0]
        return {
            "recipe": full.config.run.recipe.removesuffix(f"-{FULL}"),
            "seed": full.config.run.seed,
            "steps": full.config.run.steps,
            "t_star": full.t_star,
            "fingerprints": dict(full.fingerprints),
            "versions": {name: version(name) for name in ("allosr2", "torch", "diffusers")},
            "full": provenance_fields(full.config) | {"t_star": full.t_star},
            "settings": {
                trained.name: {
                    "model": str(trained.model),
                    "differs": differences(full, trained),
                    "images": len(self.measured[trained.name].images),
                    "means": self.measured[trained.name].means(),
                    "skipped": dict(self.measured[trained.name].skipped),
                }
                for trained in self.settings
            },
        }


def train_settings(
    recipe: AlloSR2Training,
    names: Sequence[str],
    train: Callable[[AlloSR2Training], Path],
) -> list[Trained]:
    """Train settings, the full method first, in folders of their names below the recipe's output.

    All are placed at the t* that the full method measured. A setting whose model was made by the same config is
    not trained again, nor is anything of it loaded; one that was stopped goes on from its last checkpoint.

    Args:
        recipe: what the full method is made of; `run.output` holds the settings' folders.
        names: of settings, `full` first, as `named_settings` gives them.
        train: trains a config to its end and returns the model's folder, as `allosr2.training.loop.train`.

    Raises:
        ConfigError: for a t* that a setting moves out of range, before that setting or any after the full
            method is trained, and for a setting that was trained with other frozen weights or photographs.
        AlloSR2Error: as `train`.
    """
    output = recipe.run.output
    full = _trained(FULL, setting(recipe, FULL, output, None), train)
    configs = {name: setting(recipe, name, output, full.t_star) for name in names[1:]}
    settings = [full]
    for name, config in configs.items():
        trained = _trained(name, config, train)
        others = [
            what
            for what, mark in full.fingerprints.items()
            if trained.fingerprints.get(what) != mark
        ]
        if others:
            raise ConfigError(
                f"{config.run.output}: {' and '.join(others)} are not those of {full.config.run.output}; "
                "remove the older of the two folders and run the same command again"
            )
        settings.append(trained)
    return settings


def measure_settings(
    settings: Sequence[Trained], evaluate: Callable[[str, Path], Measured]
) -> Ablation:
    """Measure every setting by `evaluate`, which takes a setting's name and its model's folder."""
    measured = {trained.name: evaluate(trained.name, trained.model) for trained in settings}
    return Ablation(settings=settings, measured=measured)


def differences(full: Trained, other: Trained) -> dict[str, Any]:
    """Fields of a setting's config, by name, that are not as in the full method; empty for that itself."""
    fields = full.fields
    return {
        name: value
        for name, value in other.fields.items()
        if name not in _OWN and value != fields[name]
    }


def _trained(
    name: str,
    config: AlloSR2Training,
    train: Callable[[AlloSR2Training], Path],
) -> Trained:
    output, model = config.run.output, config.run.output / "model"
    fingerprints = _fingerprints_if_done(config)
    if fingerprints is None:
        model = train(config)
        last = checkpoints(output / "checkpoints")[-1]
        fingerprints = json.loads((last / "state.json").read_text())["fingerprints"]
        fields = {"config": config_fields(config), "fingerprints": fingerprints}
        save_text(output / DONE, json.dumps(fields, indent=2) + "\n")
    return Trained(
        name=name,
        config=config,
        model=model,
        t_star=ModelConfig.read(model).t_star,
        fingerprints=fingerprints,
    )


def _fingerprints_if_done(config: AlloSR2Training) -> dict[str, str] | None:
    """What a setting was trained with, if its model was made by this very config; else None.

    The file is written when the model is whole: a run that was killed while it exported is no finished one.
    """
    output = config.run.output
    try:
        ModelConfig.read(output / "model")
        done = json.loads((output / DONE).read_text())
        former, fingerprints = done["config"], done["fingerprints"]
    except (AlloSR2Error, OSError, ValueError, KeyError, TypeError):
        return None
    asked = config_fields(config)
    free = FREE_FIELDS - {"run.steps"}
    same = all(former.get(name) == value for name, value in asked.items() if name not in free)
    return cast(dict[str, str], fingerprints) if same else None
