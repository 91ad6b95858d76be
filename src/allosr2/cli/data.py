"""`allosr2 data`: prepare what training reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import TextColumn

from allosr2.cli.console import console, errors_console, progress_bar
from allosr2.cli.files import list_failures, make_folder
from allosr2.errors import ConfigError, DataError, ImageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Write photographs into WebDataset tar shards, for disks and networks that dislike many small files.

    Their bytes stay as they are. `allosr2 train --photos` takes the folder of shards as it takes theirs, and
    draws the same images from it. Run the same command again to go on where it was stopped.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Folders of photographs, searched recursively, or of shards; `ffhq:10000` takes the first 10,000."""
    output: Path
    """Folder, made if need be, that receives shard-000000.tar and so on, and holds nothing else."""
    shard_gigabytes: float = 1.0
    """Largest size of a shard, in 10^9 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Draw images beforehand, as PNG files for `allosr2 train --photos`.

    Each depends on seed, size and its number alone. Run the same command again to go on where it was stopped,
    or with a larger `--count` for more.
    """

    count: int
    """How many images."""
    output: Path
    """Folder, made if need be, that receives `drawn-SEED-SIZE-000000.png` and so on."""
    size: int = 512
    """Side in pixels; at least the `--crop` that is trained with."""
    seed: int = 0
    """Seed of everything drawn."""
    processes: int | None = None
    """How many draw at once; by default one for each core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Prepare training data."""

    verb: Shard | Draw


def data(config: Data) -> int:
    """Do what a verb of `data` asks for; returns the exit code."""
    return shard(config.verb) if isinstance(config.verb, Shard) else draw(config.verb)


def draw(config: Draw) -> int:
    """Draw the images that are not there yet; returns the exit code."""
    from allosr2.data.drawn import cores, draw_images

    processes = cores() if config.processes is None else config.processes
    for option, value, least in (
        ("count", config.count, 1),
        ("size", config.size, 32),
        ("seed", config.seed, 0),
        ("processes", processes, 1),
    ):
        if value < least:
            raise ConfigError(f"--{option} is {value}: use {least} or more")
    make_folder(config.output)
    with progress_bar(TextColumn("{task.completed}/{task.total}", markup=False)) as bar:
        task = bar.add_task(str(config.output), total=config.count)
        were_there = draw_images(
            config.output,
            count=config.count,
            size=config.size,
            seed=config.seed,
            processes=processes,
            progress=lambda done: bar.update(task, completed=done),
        )
    if were_there:
        errors_console().print(f"allosr2: {were_there} of {config.count} images were there already")
    console().print(f"{config.output}: {config.count} images of {config.size} px")
    return 0


def shard(config: Shard) -> int:
    """Write shards; photographs that cannot be read are left out and listed. Returns the exit code."""
    from allosr2.data.shards import (
        Member,
        missing_shards,
        name_members,
        plan_shards,
        write_shard,
    )
    from allosr2.data.sources import Source

    gigabytes = config.shard_gigabytes
    if not (gigabytes > 0 and isfinite(gigabytes)):
        raise ConfigError(f"--shard-gigabytes is {gigabytes}: use a number above 0")
    if not config.sources:
        raise ConfigError("no photographs to write; name a folder of them")
    for source in map(Source.parse, config.sources):
        if config.output.resolve().is_relative_to(source.path.resolve()):
            raise ConfigError(
                f"--output is {config.output}: it lies in {source.path}, whose photographs it is to hold; "
                "name a folder elsewhere"
            )

    failures: list[tuple[str, Exception]] = []

    def readable(members: Iterator[Member]) -> Iterator[Member]:
        for member in members:
            try:
                member.photo.size()
            except ImageError as error:
                failures.append((member.photo.name, error))
            else:
                yield member
            bar.advance(task)

    count = TextColumn("{task.completed}/{task.total}", markup=False)
    with progress_bar(count) as bar:
        task = bar.add_task("headers", total=None)
        shards = plan_shards(readable(name_members(config.sources)), config.output, gigabytes * 1e9)
        if not shards:
            list_failures(failures)
            raise DataError(
                f"{', '.join(config.sources)}: no photograph that can be read; name another folder"
            )
        missing = missing_shards(shards, config.output)
        done = len(shards) - len(missing)
        bar.update(task, description=str(config.output), completed=done, total=len(shards))
        for planned in missing:
            write_shard(planned)
            plural = "s" if len(planned.members) > 1 else ""
            console().print(f"{planned.path}: {len(planned.members)} photograph{plural}")
            bar.advance(task)
    if done:
        errors_console().print(f"allosr2: {done} of {len(shards)} shards were there already")
    return list_failures(failures)
