"""How long procedural images take, stage by stage, and a sheet of them to look at.

    python benchmarks/procedural.py [--images 60] [--sheet procedural.png --size 256 --rows 4 --columns 6]

Times are of one core, in its own CPU time: other programs lengthen them through shared caches, not by waiting.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import tyro

from allosr2.data.procedural import procedural_image, scene
from allosr2.devices import describe_device
from allosr2.imaging.io import write_image
from allosr2.imaging.picture import Picture
from allosr2.imaging.sheet import Panel, sheet

SIZES = (128, 256, 512)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured and drawn."""

    images: int = 60
    """How many images of each size are timed."""
    seed: int = 0
    """Seed of the images."""
    sheet: Path | None = None
    """A PNG of images, if wanted; then nothing is timed."""
    size: int = 256
    """Side of the sheet's images in pixels."""
    rows: int = 4
    columns: int = 6


class Stopwatch:
    """CPU milliseconds of the stages of `procedural_image`, and which family the last image was of."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.last = ""

    def timed(self, stage: str, function: Callable[..., Result]) -> Callable[..., Result]:
        def run(*arguments: object) -> Result:
            started = time.process_time()
            result = function(*arguments)
            self.spent[stage] += 1e3 * (time.process_time() - started)
            if stage.endswith("_scene"):
                self.last = stage.removesuffix("_scene")
            return result

        return run

    def attach(self) -> None:
        """Put itself around the stages, for good."""
        scene.sample_materials = self.timed("materials", scene.sample_materials)
        scene.photograph = self.timed("depth", scene.photograph)
        families = {self.timed(f.__name__, f): p for f, p in scene.FAMILIES.items()}
        scene.FAMILIES.clear()
        scene.FAMILIES.update(families)


def main(options: Options) -> None:
    """Print a Markdown table, or write the sheet."""
    watch = Stopwatch()
    watch.attach()
    if options.sheet:
        _write_sheet(options.sheet, options, watch)
        return
    print(
        "| px | ms an image | slowest | images a second | materials | layers | depth | light, lens, bytes |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        procedural_image(options.seed, options.images, size)  # fonts, and memory to draw in
        watch.spent.clear()
        taken: list[float] = []
        for index in range(options.images):
            started = time.process_time()
            procedural_image(options.seed, index, size)
            taken.append(1e3 * (time.process_time() - started))
        total = sum(taken)
        layers = sum(spent for stage, spent in watch.spent.items() if stage.endswith("_scene"))
        stages = [watch.spent["materials"], layers, watch.spent["depth"]]
        shares = [f"{stage / total:.0%}" for stage in (*stages, total - sum(stages))]
        mean = total / len(taken)
        print(
            f"| {size} | {mean:.1f} | {max(taken):.0f} | {1e3 / mean:.0f} | {' | '.join(shares)} |"
        )
    print(
        f"\n{options.images} images each, {describe_device(torch.device('cpu'))}; NumPy {np.__version__}"
    )


def _write_sheet(path: Path, options: Options, watch: Stopwatch) -> None:
    """The first images of the sequence, each under its number and family."""
    panels: list[Panel] = []
    for index in range(options.rows * options.columns):
        image = procedural_image(options.seed, index, options.size)
        panels.append((f"{index}: {watch.last}", image))
    starts = range(0, len(panels), options.columns)
    rows = [panels[start : start + options.columns] for start in starts]
    write_image(path, Picture(color=sheet(rows)))


if __name__ == "__main__":
    main(tyro.cli(Options))
