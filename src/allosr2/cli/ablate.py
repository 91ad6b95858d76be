"""`allosr2 ablate`: what each part of the method is worth (arXiv:2604.19238, Table 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import TextColumn
from tyro.conf import CascadeSubcommandArgs
from tyro.extras import subcommand_type_from_defaults

from allosr2.cli.console import console, errors_console, progress_bar
from allosr2.cli.measuring import Measuring, measure_into, require_evaluation, scorers_of
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
    from allosr2.evaluation.scorers import Scorer
    from allosr2.evaluation.sets import SetFolder
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
    metrics: CascadeSubcommandArgs[tuple[str, ...]] = ()
    """Metrics, as for `allosr2 evaluate`; LPIPS on SqueezeNet takes the recipe's own weights."""
    niqe: CascadeSubcommandArgs[Path | None] = None
    """NIQE's parameters: `niqe_modelparameters.mat` as published, or an `.npz`."""
    weights: CascadeSubcommandArgs[Path | None] = None
    """Folder with `checkpoints/`, `pyiqa/` and `clip/` that hold the other metrics' weights."""
    offline: CascadeSubcommandArgs[bool] = False
    """Fetch no weights of metrics: those whose weights are absent are skipped, by name."""


def ablate(config: Ablate) -> int:
    """Train what is not trained yet, measure, write and print; returns the exit code."""
    names = named_settings(config.settings)
    require_training()

    require_evaluation()
    from allosr2.evaluation.ablation_run import measure_settings, train_settings
    from allosr2.evaluation.measure import check_images, pair_images
    from allosr2.evaluation.pairs import pairs_of
    from allosr2.training.distributed import started_processes

    count = started_processes().count
    if count > 1:
        raise ConfigError(
            f"WORLD_SIZE is {count}: settings are trained one after the other by one process; start it "
            "without torchrun"
        )
    # what measures is looked at before hours of training
    images = pairs_of(config.pairs, config.recipe.scale)
    scorers, skipped = scorers_of(_measuring(config), len(images.lr), hr=True, lr=True)
    check_images(pair_images(images.lr), scorers, scale=config.recipe.scale)
    try:
        with terminated_as_interrupted():
            settings = train_settings(
                config.recipe, names, lambda setting: train_with_bar(setting, leads=True)
            )
            ablation = measure_settings(settings, _evaluation(config, images, scorers, skipped))
    except KeyboardInterrupt:
        errors_console().print("allosr2: stopped; run the same command again to go on")
        return INTERRUPTED
    table, files = _write(config, ablation, [scorer.by for scorer in scorers])
    console().print(table)
    for path in files:
        console().print(str(path))
    return 0


def _measuring(config: Ablate) -> Measuring:
    return Measuring(
        metrics=config.metrics,
        perceptual=config.recipe.perceptual.perceptual,
        niqe=config.niqe,
        weights=config.weights,
        offline=config.offline,
        device=config.recipe.run.device,
    )


def _evaluation(
    config: Ablate, images: SetFolder, scorers: Sequence[Scorer], skipped: Mapping[str, str]
) -> Callable[[str, Path], Measured]:
    """What enlarges the pairs' LR images by a setting's model, into its folder, and measures them."""
    from allosr2.devices import resolve_device
    from allosr2.evaluation.measure import pair_images
    from allosr2.evaluation.methods import model_method
    from allosr2.evaluation.results import make

    def evaluate(name: str, model: Path) -> Measured:
        folder = config.recipe.run.output / name
        with progress_bar(TextColumn("{task.completed}/{task.total}", markup=False)) as bar:
            task = bar.add_task(name, total=len(images.lr))
            made = make(
                model_method(name, model),
                images.lr,
                folder,
                scale=config.recipe.scale,
                device=resolve_device(config.recipe.run.device),
                progress=lambda done: bar.update(task, completed=done),
            )
        pairs = pair_images(made.images, images.hr, images.lr)
        return measure_into(
            folder, f"{name}, metrics", pairs, scorers, skipped, workers=0, made_by=made.note
        )

    return evaluate


def _write(config: Ablate, ablation: Ablation, by: Sequence[str]) -> tuple[str, list[Path]]:
    """Write what was measured; returns the table and the files."""
    import json

    from allosr2.evaluation.comparison import libraries
    from allosr2.evaluation.sets import SETS, published_set
    from allosr2.evaluation.tables import ablation_table
    from allosr2.storage import save_text

    known = published_set(config.pairs)
    name = config.pairs.resolve().name if known is None else known.name
    if known is None and name in SETS:
        name = f"{name}, not as published"
    order = (*TABLE_2, *ablation.measured)  # the paper's rows in its order, then the others
    measured = {s: ablation.measured[s] for s in order if s in ablation.measured}
    run = ablation.settings[0].config.run
    trained = f"{run.steps} steps of {run.batch_size} images each, seed {run.seed}, one t*"
    notes = [
        f"Recipe {config.recipe.run.recipe}: {trained}.",
        f"Measured by {libraries(by)}.",
    ]
    table = ablation_table({name: measured}, notes=notes)
    output = config.recipe.run.output
    texts = {
        output / "table.md": table.markdown(),
        output / "table.tex": table.latex(),
        output / "ablation.json": json.dumps(ablation.fields(), indent=2) + "\n",
    }
    for path, text in texts.items():
        try:
            save_text(path, text)
        except OSError as error:
            raise ConfigError(
                f"output is {output}: {path.name} cannot be written ({one_line(error)}); make room there and "
                "run the same command again"
            ) from error
    return table.markdown(), list(texts)
