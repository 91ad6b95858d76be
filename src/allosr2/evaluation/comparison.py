"""What comes out of a comparison: tables, crop sheets, a plot and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from allosr2.errors import ConfigError
from allosr2.evaluation.crops import crop_sheet
from allosr2.evaluation.plots import default_axes, drawn, perception_distortion
from allosr2.evaluation.report import write_report
from allosr2.evaluation.sets import SetFolder
from allosr2.evaluation.summary import Result, versions
from allosr2.evaluation.tables import table
from allosr2.imaging.io import image_from_any, read_rgb, to_array, write_image
from allosr2.imaging.picture import Picture
from allosr2.imaging.resize import resize
from allosr2.storage import clear_partials, save_text

WRITTEN = ("report.html", "table.md", "table.tex", "crops", "perception_distortion.png")
"""What a comparison is written to."""

_TELLING = ("lpips", "lpips-squeeze", "dists", "ssim", "psnr", "niqe", "sharpness")
"""Metrics by which images are chosen on which methods differ, the first that there is."""


def write_comparison(
    output: Path,
    images: SetFolder,
    results: Sequence[Result],
    *,
    by: Sequence[str],
    crops: int,
    pages: int,
) -> list[Path]:
    """Write `table.md`, `table.tex`, `crops/`, `perception_distortion.png` and `report.html` into a folder.

    A former comparison is taken away before, so that a kill never leaves parts of both.

    Args:
        output: exists.
        images: what was compared on; published figures join where it is a whole benchmark set.
        results: a method each, in the order of the tables.
        by: what computed the metrics.
        crops: images on crop sheets, those on which methods differ most.
        pages: images on the page.

    Returns:
        The files, in the order of interest.

    Raises:
        ConfigError: if something cannot be written.
    """
    set_name = images.set.name if images.set and images.published else None
    title = images.set.title if images.set else "Comparison"
    notes = [f"Measured by {libraries(by)}."]
    if images.set and not images.published:
        part = len(images.lr) < images.set.count
        what = f"{len(images.lr)} of {images.set.count} images" if part else "crops of one's own"
        title = f"{title}, {what}"
        notes.append(f"{title}: published figures are of other images, and left out.")
    figures = table(results, set_name, notes=notes)
    made = [f"{result.method}: {result.note}." for result in results if result.note]
    noted = replace(figures, notes=(*figures.notes, *made))  # the page lists them itself
    sheets = {name: _sheet(name, images, results) for name in most_different(results, crops)}
    axes = default_axes(results)
    plot = None if axes is None else drawn(perception_distortion(results, set_name, *axes))
    written = [output / name for name in WRITTEN[:3]]
    try:
        _clear(output)
        if sheets:
            (output / "crops").mkdir(exist_ok=True)
        for name, sheet in sheets.items():
            written.append(output / "crops" / f"{name}.png")
            write_image(written[-1], Picture(color=sheet))
        if plot is not None:
            written.append(output / "perception_distortion.png")
            write_image(written[-1], Picture(color=plot))
        write_report(
            written[0],
            title=title,
            facts={
                "Date": date.today().isoformat(),
                "Versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
            },
            table=figures,
            results=results,
            lr=images.lr,
            hr=images.hr,
            plot=plot,
            sheets=sheets,
            limit=pages,
        )
        save_text(written[1], noted.markdown() + "\n")
        save_text(written[2], noted.latex() + "\n")
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written ({error.strerror}); choose another --output"
        ) from error
    return written


def _clear(output: Path) -> None:
    """Take away a former comparison, which may be of other methods and images."""
    crops = output / "crops"
    clear_partials([crops])
    for path in (*(output / name for name in WRITTEN if name != crops.name), *crops.glob("*.png")):
        path.unlink(missing_ok=True)


def libraries(by: Sequence[str]) -> str:
    """What computed metrics, each library once: "pyiqa 0.1.16 (psnr, ssim), allosr2 0.1.0"."""
    parts: dict[str, list[str]] = {}
    for text in dict.fromkeys(by):
        words = text.split(" ")
        parts.setdefault(" ".join(words[:2]), []).extend(words[2:])
    return ", ".join(
        f"{library} ({', '.join(names)})" if names else library for library, names in parts.items()
    )


def most_different(results: Sequence[Result], count: int) -> list[str]:
    """Names of the images on which methods differ most, by how far a metric's values lie apart."""
    images = [result.measured.images for result in results]
    names = list(images[0])
    metric = next((m for m in _TELLING if all(m in of[names[0]] for of in images)), None)
    if metric is None:
        return names[:count]
    values = {name: [of[name][metric] for of in images] for name in names}
    apart = {name: max(of_name) - min(of_name) for name, of_name in values.items()}
    return sorted(names, key=lambda name: -apart[name])[:count]


def _sheet(
    name: str, images: SetFolder, results: Sequence[Result]
) -> UInt8[np.ndarray, "height width 3"]:
    pictures = {result.method: read_rgb(result.images[name]) for result in results}
    size = next(iter(pictures.values())).shape[:2]
    whole = resize(image_from_any(read_rgb(images.lr[name])), size)
    hr = None if images.hr is None else read_rgb(images.hr[name])
    return crop_sheet(name, pictures, to_array(whole.clamp(0, 1)), hr=hr)
