"""What a folder run costs beside the model: the model on pictures in memory against the whole run.

    python benchmarks/folder.py [--images DIR] [--model mini] [--device cpu] [--rounds 5]

Each round measures both, one after the other: (a) `Upscaler.upscale_picture` on every picture, already in
memory; (b) reading, enlarging and writing the folder as PNG, with the manifest that `allosr2 upscale` keeps.
The ratio is (a) / (b): by the clock, 1 means that reading and writing are hidden behind the model; of CPU
time, which other programs disturb less, it bounds that on a CPU whose cores the model keeps busy.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image

from allosr2 import Upscaler
from allosr2.batch import FileOptions, upscale_files
from allosr2.imaging.io import find_images, read_image
from allosr2.imaging.picture import Picture
from allosr2.imaging.size import OutputSize
from allosr2.manifest import Manifest
from allosr2.pipeline import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    images: Path | None = None
    """Folder of images; without it, --count photographs' stand-ins of --side pixels, as JPEG."""
    count: int = 12
    """How many images are made."""
    side: int = 256
    """Their sides in pixels."""
    model: str = "mini"
    """Model folder or name."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`."""
    rounds: int = 5
    """How often both are measured."""


def main(options: Options) -> None:
    """Print a Markdown table, a row a round."""
    upscaler = Upscaler.from_pretrained(options.model, device=options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = options.images or _stand_ins(Path(name) / "lr", options)
        sources = find_images(folder)
        pictures = [read_image(source) for source in sources]
        _seconds_of_model(upscaler, pictures[:1])  # warm
        print(
            "| round | model alone, s | folder, s | ratio | model alone, CPU s | folder, CPU s | ratio "
            "| MP/s of results |\n|---|---|---|---|---|---|---|---|"
        )
        ratios: list[float] = []
        cpu_ratios: list[float] = []
        for index in range(options.rounds):
            alone, cpu_alone = _seconds_of_model(upscaler, pictures)
            target = Path(name) / str(index)
            target.mkdir()
            whole, cpu_whole, megapixels = _seconds_of_folder(upscaler, sources, target)
            ratios.append(alone / whole)
            cpu_ratios.append(cpu_alone / cpu_whole)
            print(
                f"| {index + 1} | {alone:.2f} | {whole:.2f} | {ratios[-1]:.3f} | {cpu_alone:.2f} | "
                f"{cpu_whole:.2f} | {cpu_ratios[-1]:.3f} | {megapixels / whole:.2f} |"
            )
    print(
        f"\nMedian ratio {statistics.median(ratios):.3f}, of CPU time {statistics.median(cpu_ratios):.3f}; "
        f"{len(sources)} images, {megapixels:.1f} MP of results; {options.model} on {options.device}, "
        f"{os.cpu_count()} cores; torch {torch.__version__}, {torch.get_num_threads()} threads."
    )


def _seconds_of_model(upscaler: Upscaler, pictures: list[Picture]) -> tuple[float, float]:
    """Seconds by the clock, and of all cores."""
    started, cpu = time.perf_counter(), time.process_time()
    for picture in pictures:
        upscaler.upscale_picture(picture)
    return time.perf_counter() - started, time.process_time() - cpu


def _seconds_of_folder(
    upscaler: Upscaler, sources: list[Path], target: Path
) -> tuple[float, float, float]:
    """Seconds by the clock and of all cores, and megapixels of results."""
    jobs = [Job(source=source, target=target / f"{source.stem}.png") for source in sources]
    started, cpu = time.perf_counter(), time.process_time()
    outcomes = list(
        upscale_files(
            jobs,
            [
                lambda picture, where, progress: upscaler.upscale_picture(
                    picture, OutputSize(), where=where, progress=progress
                )
            ],
            FileOptions(),
            size_of=lambda height, width: upscaler.plan(height, width).size,
            manifest=Manifest(target),
            key="key",
        )
    )
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    assert all(outcome.status == "done" for outcome in outcomes)
    sizes = [outcome.output_size for outcome in outcomes if outcome.output_size]
    return seconds, cpu_seconds, sum(height * width for height, width in sizes) / 1e6


def _stand_ins(folder: Path, options: Options) -> Path:
    """Pictures with a photograph's spectrum, whose power falls with the square of the frequency."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    vertical, horizontal = np.fft.fftfreq(options.side), np.fft.rfftfreq(options.side)
    frequency = np.hypot(vertical[:, None], horizontal)
    frequency[0, 0] = np.inf
    for index in range(options.count):
        noise = generator.standard_normal((options.side, options.side, 3))
        spectrum = np.fft.rfft2(noise, axes=(0, 1)) / frequency[..., None]
        levels = np.fft.irfft2(spectrum, s=(options.side, options.side), axes=(0, 1))
        levels = 128 + 45 * levels / levels.std()
        picture = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        picture.save(folder / f"{index:03}.jpg", quality=92)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Options))
