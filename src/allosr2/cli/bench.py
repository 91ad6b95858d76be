"""`allosr2 bench`: benchmark sets, checked, and a synthetic one made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import TextColumn

from allosr2.cli.console import console, errors_console, progress_bar
from allosr2.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Check that a benchmark set is all there: names, partners, counts, sizes.

    Folders may be called `lr` and `hr`, or as in the published archives.
    """

    set: Annotated[str, tyro.conf.Positional]
    """`realsr`, `drealsr`, `div2k-val` or `reallq250`."""
    folder: Path
    """Where its folders of images lie, or the archive's folder with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare:
    """Make a synthetic DIV2K-Val: crops of DIV2K's validation photographs.

    Figures on it compare with each other, not with published ones: those are of StableSR's own 3000 crops.
    Pair i is a crop of photograph i modulo their number, in the order of names, and what a degradation makes
    of it; its place and the degradation are drawn by (seed, i) alone. Run the same command again to go on
    where it was stopped.
    """

    set: Annotated[str, tyro.conf.Positional]
    """`div2k-val`; the others can only be downloaded."""
    source: Path
    """Folder of DIV2K's 100 validation photographs in full size (DIV2K_valid_HR)."""
    output: Path
    """Folder, made if need be, that receives `hr/`, `lr/` and `set.json`."""
    preset: str = "stablesr"
    """Degradation: `real-esrgan`, `mild`, `stablesr`, `camera`, `bicubic`, or several as `mild+camera`."""
    crops: int = 3000
    """How many pairs."""
    seed: int = 0
    """Seed of everything drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Check benchmark sets, or make the synthetic one."""

    verb: Check | Prepare


def bench(config: Bench) -> int:
    """Do what a verb of `bench` asks for; returns the exit code."""
    return check(config.verb) if isinstance(config.verb, Check) else prepare(config.verb)


def check(config: Check) -> int:
    """Say in one line what a set's folder holds; returns the exit code."""
    from allosr2.evaluation.sets import open_set, set_named
    from allosr2.evaluation.synthetic import NOTE

    expected = set_named(config.set)
    found = open_set(config.set, config.folder)
    lr = next(iter(found.lr.values())).parent
    line = f"{expected.title}: {len(found.lr)} images of {expected.lr_side} px in {lr}"
    if found.hr is not None:
        hr = next(iter(found.hr.values())).parent
        line += f", and of {expected.hr_side} px in {hr}"
    console().print(line if found.published else f"{line}; {NOTE}")
    return 0


def prepare(config: Prepare) -> int:
    """Make the pairs that are not there yet; returns the exit code."""
    from allosr2.evaluation.sets import set_named
    from allosr2.evaluation.synthetic import NOTE, prepare_pairs

    wanted = set_named(config.set)
    if wanted.name != "div2k-val":
        raise ConfigError(
            f"{wanted.title} cannot be made, only downloaded, as it is part of {wanted.source}; "
            "what can be made is div2k-val"
        )
    for option, value, least in (("crops", config.crops, 1), ("seed", config.seed, 0)):
        if value < least:
            raise ConfigError(f"--{option} is {value}: use {least} or more")
    with progress_bar(TextColumn("{task.completed}/{task.total}", markup=False)) as bar:
        task = bar.add_task(str(config.output), total=config.crops)
        were_there = prepare_pairs(
            wanted,
            config.source,
            config.output,
            preset_name=config.preset,
            crops=config.crops,
            seed=config.seed,
            progress=lambda done: bar.update(task, completed=done),
        )
    if were_there:
        errors_console().print(f"allosr2: {were_there} of {config.crops} pairs were there already")
    console().print(f"{config.output}: {config.crops} pairs, preset {config.preset}; {NOTE}")
    return 0
