"""How long metrics of a folder take: ours against a plain loop over the same networks.

    python benchmarks/metrics.py --sr DIR --hr DIR --niqe FILE --perceptual FILE

Both compute PSNR, SSIM, NIQE and LPIPS on SqueezeNet of every image, in one process, ours first. The plain loop
reads an image, asks each metric in turn with all threads, and reads the next.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from allosr2.devices import describe_device
from allosr2.evaluation.images import images_of
from allosr2.evaluation.measure import measure, pair_images
from allosr2.evaluation.scorers import load_scorers
from allosr2.evaluation.weights import Weights
from allosr2.imaging.io import image_from_any, read_rgb

METRICS = ("psnr", "ssim", "niqe", "lpips-squeeze")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    sr: Path
    """Folder of results."""
    hr: Path
    """Folder of HR images by the same names."""
    niqe: Path
    """NIQE's parameters."""
    perceptual: Path
    """Safetensors file of LPIPS weights."""


def main(options: Options) -> None:
    """Time both and print a Markdown table."""
    device = torch.device("cpu")
    started = time.perf_counter()
    weights = Weights(niqe=options.niqe, perceptual=options.perceptual, offline=True)
    scorers, _ = load_scorers(METRICS, weights, device)
    pairs = pair_images(images_of(options.sr), images_of(options.hr))
    loaded = time.perf_counter()
    measured = measure(pairs, scorers)
    ours = time.perf_counter()
    most = 0.0
    for name, pair in pairs.items():
        assert pair.hr is not None
        sr, hr = (image_from_any(read_rgb(path)) for path in (pair.sr, pair.hr))
        for scorer in scorers:
            assert scorer.of_image is not None
            value = scorer.of_image(sr, hr)
            most = max(most, abs(value / measured.images[name][scorer.metric.name] - 1))
    plain = time.perf_counter()
    print("| | s | times faster |")
    print("|---|---|---|")
    print(f"| a plain loop | {plain - ours:.1f} | 1.00 |")
    print(f"| ours | {ours - loaded:.1f} | {(plain - ours) / (ours - loaded):.2f} |")
    print(
        f"\n{len(pairs)} images; loading metrics and checking sizes {loaded - started:.1f} s; largest relative "
        f"difference of a value {most:.1e}; {describe_device(device)}; torch {torch.__version__}"
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
