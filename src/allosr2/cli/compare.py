"""`allosr2 compare`: methods side by side, in figures and in pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.progress import TextColumn

from allosr2.cli.console import console, progress_bar
from allosr2.cli.files import make_folder
from allosr2.cli.measuring import Measuring, measure_into, require_evaluation, scorers_of
from allosr2.cli.train import terminated_as_interrupted
from allosr2.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rich.table import Table

    from allosr2.evaluation.methods import Method
    from allosr2.evaluation.sets import SetFolder
    from allosr2.evaluation.summary import Result


@dataclass(frozen=True, kw_only=True, slots=True)
class Compare:
    """Run methods on a set of images, measure them all, and write tables, crop sheets, a plot and a page.

    A method is `bicubic`, `lanczos`, `mini`, a model folder or a model on the hub; a folder of results; a file
    of a network that spandrel reads, such as RealESRGAN_x4plus.pth; or a command, run once on all images:
    "osediff=python test_osediff.py -i {lr} -o {sr}". `NAME=` before any of them names it in the tables.
    What was made and measured is not made again, also after an interruption.
    """

    methods: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Methods, in the order of the tables."""
    set: str | None = None
    """A benchmark set: realsr, drealsr, div2k-val or reallq250. It is checked, and published figures join."""
    folder: Path | None = None
    """Where the set lies."""
    lr: Path | None = None
    """Instead of a set: a folder of LR images."""
    hr: Path | None = None
    """HR images by the same names."""
    scale: int = 4
    """How many times larger sides become, where no HR image says it."""
    common: bool = False
    """Compare on those images that every folder of results has; without it a missing one is an error."""
    output: Path = Path("comparison")
    """Folder, made if need be, for all that comes out; one inside it for each method."""
    crops: int = 8
    """Images on crop sheets, those that methods differ most on."""
    pages: int = 20
    """Images that the page shows, spread evenly over the set."""
    measuring: Annotated[Measuring, tyro.conf.OmitArgPrefixes] = field(default_factory=Measuring)
    """Which metrics, and how they are computed."""


def compare(config: Compare) -> int:
    """Run, measure, and write what came out; returns the exit code."""
    require_evaluation()
    from allosr2.devices import resolve_device
    from allosr2.evaluation.comparison import write_comparison
    from allosr2.evaluation.measure import check_images, pair_images
    from allosr2.evaluation.methods import Folder, method_named
    from allosr2.evaluation.results import found, make
    from allosr2.evaluation.summary import Result
    from allosr2.manifest import locked

    methods = [method_named(text) for text in config.methods]
    folders = _folders(methods, config.output)
    images = _images(config, methods)
    hr, scale = images.hr, images.scale or config.scale
    # what can be refused is, before methods are run for hours
    for method in methods:
        if isinstance(method, Folder):
            found(method, images.lr, scale)
    scorers, skipped = scorers_of(config.measuring, len(images.lr), hr=hr is not None, lr=True)
    check_images(pair_images(images.lr), scorers, scale=scale)
    make_folder(config.output)
    results: list[Result] = []
    with locked(config.output), terminated_as_interrupted():
        for method in methods:
            make_folder(folders[method.name])
            with progress_bar(TextColumn("{task.completed}/{task.total}", markup=False)) as bar:
                task = bar.add_task(method.name, total=len(images.lr))
                made = make(
                    method,
                    images.lr,
                    folders[method.name],
                    scale=scale,
                    device=resolve_device(config.measuring.device),
                    progress=lambda done, task=task, bar=bar: bar.update(task, completed=done),
                )
            pairs = pair_images(made.images, hr, images.lr)
            measured = measure_into(
                folders[method.name],
                f"{method.name}, metrics",
                pairs,
                scorers,
                skipped,
                workers=config.measuring.workers,
                method=method.name,
                made_by=made.note,
                seconds=made.seconds,
            )
            result = Result(
                method=method.name,
                images=made.images,
                measured=measured,
                seconds=made.seconds,
                note=made.note,
            )
            results.append(result)
        written = write_comparison(
            config.output,
            images,
            results,
            by=[scorer.by for scorer in scorers],
            crops=config.crops,
            pages=config.pages,
        )
    console().print(_table(results))
    for path in written:
        console().print(str(path))
    return 0


def _table(results: Sequence[Result]) -> Table:
    """Metrics by methods, as Table 1 of the paper has them: so it fits a terminal."""
    from rich.table import Table

    from allosr2.evaluation.metrics import METRICS

    table = Table(title=f"{len(results[0].images)} images", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for result in results:
        table.add_column(result.method, justify="right", min_width=6)
    means = [result.measured.means() for result in results]
    for name, metric in METRICS.items():
        if any(name in of for of in means):
            figures = [f"{of[name]:.{metric.digits}f}" if name in of else "-" for of in means]
            table.add_row(f"{metric.title} {metric.arrow}", *figures)
    seconds = [result.seconds for result in results]
    if any(value is not None for value in seconds):
        table.add_row("s / image", *("-" if s is None else f"{s:.3f}" for s in seconds))
    return table


def _folders(methods: Sequence[Method], output: Path) -> dict[str, Path]:
    """A folder for each method. Raises ConfigError for one that others, results or tables have."""
    from allosr2.evaluation.comparison import WRITTEN
    from allosr2.evaluation.methods import Folder

    taken = {output / name for name in ("", *WRITTEN)}
    results = {m.folder.resolve() for m in methods if isinstance(m, Folder)}
    folders: dict[str, Path] = {}
    for name in (method.name for method in methods):
        if name in folders:
            raise ConfigError(f"two methods are called {name}; name one otherwise, as NAME=...")
        if name in ("HR", "LR"):
            raise ConfigError(f"a method is called {name}, as images are; name it otherwise")
        folder = output / re.sub(r"[^\w.+-]+", "-", name).strip("-.")
        if folder in taken or folder.resolve() in results:
            what = "results" if folder.resolve() in results else "something else"
            raise ConfigError(
                f"method {name}: {folder} is for {what}; name the method otherwise, as NAME=..."
            )
        taken.add(folder)
        folders[name] = folder
    return folders


def _images(config: Compare, methods: Sequence[Method]) -> SetFolder:
    """The images that methods are compared on, checked."""
    from allosr2.evaluation.images import images_of, partners
    from allosr2.evaluation.methods import Folder
    from allosr2.evaluation.sets import open_pairs, open_set

    if not config.methods:
        raise ConfigError("no method is named; name one or more, such as bicubic mini")
    for option, value, least in (
        ("crops", config.crops, 0),
        ("pages", config.pages, 1),
        ("scale", config.scale, 1),
    ):
        if value < least:
            raise ConfigError(f"--{option} is {value}: use {least} or more")
    if config.set is not None:
        if config.folder is None or config.lr is not None or config.hr is not None:
            raise ConfigError("--set goes with --folder DIR, and without --lr and --hr")
        images = open_set(config.set, config.folder)
    elif config.lr is None or config.folder is not None:
        raise ConfigError("name the images: --set NAME --folder DIR, or --lr DIR and --hr DIR")
    else:
        images = open_pairs(config.lr, config.hr)
    if not config.common:
        return images
    held = [
        partners(list(images.lr), images_of(method.folder))
        for method in methods
        if isinstance(method, Folder)
    ]
    names = [name for name in images.lr if all(name in of_folder for of_folder in held)]
    if not names:
        raise DataError("no image has a result in every folder; give results the LR images' names")
    if len(names) == len(images.lr):
        return images
    # published figures are of whole sets
    return replace(
        images,
        published=False,
        lr={name: images.lr[name] for name in names},
        hr=None if images.hr is None else {name: images.hr[name] for name in names},
    )
