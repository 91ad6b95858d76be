"""One HTML file that shows a comparison whole: table, plot, crops, and every picture under a slider."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from allosr2.errors import ConfigError
from allosr2.evaluation.images import evenly
from allosr2.evaluation.metrics import METRICS
from allosr2.evaluation.summary import Result
from allosr2.evaluation.typeset import Table
from allosr2.imaging.io import read_rgb, write_image
from allosr2.imaging.picture import Picture
from allosr2.storage import save_text

QUALITY = 90
"""Of the JPEGs that stand for results in a report."""


def write_report(
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    table: Table,
    results: Sequence[Result],
    lr: Mapping[str, Path],
    hr: Mapping[str, Path] | None,
    plot: UInt8[np.ndarray, "h w 3"] | None = None,
    sheets: Mapping[str, UInt8[np.ndarray, "h w 3"]] | None = None,
    limit: int = 20,
) -> None:
    """Write a page that needs no network: images are in it, as JPEG (LR and the plot as PNG).

    Args:
        path: HTML file to write, whole or not at all; its folder must exist.
        title: of the page.
        facts: said below the title, such as set, date and the versions of libraries.
        table: as `tables.table` makes it.
        results: at least one; those of their images that all have are shown.
        lr: LR images by name without suffix; their order is the page's.
        hr: HR images likewise; None where there are none.
        plot: as `plots.drawn` makes it.
        sheets: crop sheets by the name of the image, as `crops.crop_sheet` makes them.
        limit: images under the slider at most, evenly spread over the set. One of 512 px takes about
            0.1 MB for each method.

    Raises:
        ConfigError: if there is no image that all have, for a limit below 1, and for a file that cannot be
            written.
        ImageError: for an image that cannot be read.
    """
    if limit < 1:
        raise ConfigError(f"images in the report: {limit}; use 1 or more")
    sources = [lr, *(result.images for result in results), *([] if hr is None else [hr])]
    names = [name for name in lr if all(name in images for images in sources)]
    if not names:
        raise ConfigError(f"{path}: no image that every method has; compare results of one set")
    labels = ["LR", *(result.method for result in results), *([] if hr is None else ["HR"])]
    shown = evenly(names, limit)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = files("allosr2.evaluation").joinpath("report.html.jinja").read_text("utf-8")
    page = environment.from_string(template).render(
        title=title,
        facts=facts,
        table=Markup(table.html()),  # escapes what it is given
        plot=None if plot is None else _png(plot),
        sheets={name: _jpeg(sheet) for name, sheet in (sheets or {}).items()},
        methods=[(result.method, result.note) for result in results],
        count=len(names),
        quality=QUALITY,
        viewer={
            "labels": labels,
            # the first method against the last, or LR against the only one
            "start": [min(len(results) - 1, 1), len(results)],
            "metrics": _metrics(results),
            "images": [_image(name, results, lr, hr) for name in shown],
        },
    )
    try:
        save_text(path, page)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}; choose a writable folder"
        ) from error


def _metrics(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Metrics of single images, as the page names them."""
    present = {
        name
        for result in results
        for figures in result.measured.images.values()
        for name in figures
    }
    return [
        {
            "name": metric.name,
            "title": f"{metric.title} {metric.arrow}",
            "lower": metric.lower_is_better,
            "target": metric.target,
        }
        for metric in METRICS.values()
        if metric.name in present
    ]


def _image(
    name: str, results: Sequence[Result], lr: Mapping[str, Path], hr: Mapping[str, Path] | None
) -> dict[str, Any]:
    """One image as the page's script reads it: its size, and what is shown of it in the order of labels."""
    pictures = [read_rgb(result.images[name]) for result in results]
    versions = [{"source": _png(read_rgb(lr[name])), "figures": {}}]
    for result, picture in zip(results, pictures, strict=True):
        figures = {
            metric: f"{value:.{METRICS[metric].digits}f}"
            for metric, value in result.measured.images.get(name, {}).items()
        }
        versions.append({"source": _jpeg(picture), "figures": figures})
    if hr is not None:
        versions.append({"source": _jpeg(read_rgb(hr[name])), "figures": {}})
    height, width = pictures[0].shape[:2]
    return {"name": name, "width": width, "height": height, "versions": versions}


def _png(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    return _data_uri(picture, "PNG", None)


def _jpeg(picture: UInt8[np.ndarray, "h w 3"]) -> str:
    return _data_uri(picture, "JPEG", QUALITY)


def _data_uri(picture: UInt8[np.ndarray, "h w 3"], file_format: str, quality: int | None) -> str:
    stream = BytesIO()
    write_image(stream, Picture(color=picture), file_format=file_format, quality=quality)
    content = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{file_format.lower()};base64,{content}"
