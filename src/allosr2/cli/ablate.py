"""`allosr2 ablate`: what each part of the method is worth (arXiv:2604.19238, Table 2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import CascadeSubcommandArgs
from tyro.extras import subcommand_type_from_defaults

from allosr2.cli.console import console, errors_console
from allosr2.cli.train import (
    INTERRUPTED,
    require_training,
    terminated_as_interrupted,
    train_with_bar,
)
from allosr2.errors import ConfigError, one_line
from allosr2.evaluation.ablation import TABLE_2, named_settings
from allosr2.training.config import AlloSR2Training
from allosr2.training.recipes import recipes

if TYPE_CHECKING:
    from allosr2.evaluation.ablation_run import Ablation
    from allosr2.evaluation.summary import Measured

    Recipe = AlloSR2Training
else:

    def _ablated(config: AlloSR2Training) -> AlloSR2Training:
        output = Path("runs") / f"{config.run.recipe}-ablation"
        return replace(config, run=replace(config.run, output=output))

    _WHOLE = {
        name: recipe
        for name, recipe in recipes().items()
        # those without a term are settings of the others
        if isinstance(recipe(), AlloSR2Training) and "-without-" not in name
    }
    Recipe = subcommand_type_from_defaults(
        {name: _ablated(recipe()) for name, recipe in _WHOLE.items()},
        {name: recipe.__doc__.splitlines()[0] for name, recipe in _WHOLE.items()},
        prefix_names=False,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablate:
    """Train a recipe with and without its parts, measure each on pairs, and write Table 2's shape.

    Every setting has the same base, seed, images, steps and t*. Run the same command again to go on: what is
    trained is not trained again.
    """

    recipe: Recipe
    """What to ablate; every field of it is an option. The full method has every term of Algorithm 1."""
    pairs: CascadeSubcommandArgs[Path]
    """Folder with `lr/` and `hr/`, equal names in both, that each setting is measured on."""
    settings: CascadeSubcommandArgs[tuple[str, ...]] = TABLE_2
    """Settings beside `full`, which is always trained: `without-fatc`, `without-atm`, `reference-frozen`,
    `state-renoised`, `target-decoded`, `t-star-half`, `t-star-times-1.5`, or `all`."""


def ablate(config: Ablate) -> int:
    """Train what is not trained yet, measure, write and print; returns the exit code."""
    names = named_settings(config.settings)
    require_training()

    from allosr2.evaluation.pairs import paired_names

    paired_names(config.pairs, config.recipe.scale)  # hours before they are needed

    from allosr2.evaluation.ablation_run import measure_settings, train_settings
    from allosr2.training.distributed import started_processes

    count = started_processes().count
    if count > 1:
        raise ConfigError(
            f"WORLD_SIZE is {count}: settings are trained one after the other by one process; start it "
            "without torchrun"
        )
    try:
        with terminated_as_interrupted():
            settings = train_settings(
                config.recipe, names, lambda setting: train_with_bar(setting, leads=True)
            )
            ablation = measure_settings(settings, _evaluation(config))
    except KeyboardInterrupt:
        errors_console().print("allosr2: stopped; run the same command again to go on")
        return INTERRUPTED
    for path in _write(config.recipe.run.output, ablation):
        console().print(str(path))
    return 0


# EVALUATION: to be connected. `evaluate(name, model)` makes images of config.pairs / "lr" with
# Upscaler.from_pretrained(model) in config.recipe.run.output / name / "results" and measures them.
def _evaluation(config: Ablate) -> Callable[[str, Path], Measured]:
    raise NotImplementedError


def _write(output: Path, ablation: Ablation) -> list[Path]:
    """Write what was measured; returns the files."""
    import json

    from allosr2.storage import save_text

    # TABLES: to be connected: table.md and table.tex beside it.
    texts = {output / "ablation.json": json.dumps(ablation.fields(), indent=2) + "\n"}
    for path, text in texts.items():
        try:
            save_text(path, text)
        except OSError as error:
            raise ConfigError(
                f"output is {output}: {path.name} cannot be written ({one_line(error)}); make room there and "
                "run the same command again"
            ) from error
    return list(texts)
