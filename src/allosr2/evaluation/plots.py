"""Perception against distortion: a method is good only if it is good at both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import cos, isfinite, pi, sin
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from allosr2.errors import ConfigError
from allosr2.evaluation.metrics import METRICS
from allosr2.evaluation.published import SET_TITLES, published, published_rows

if TYPE_CHECKING:
    from allosr2.evaluation.summary import (
        Result,
    )  # it imports scipy, which `allosr2 snr` does without

_DISTORTION = ("psnr", "lpips", "ssim", "dists", "lpips-squeeze")
_PERCEPTION = ("musiq", "maniqa", "clipiqa", "niqe", "fid")

# Okabe and Ito's, which color-blind people tell apart; the palest (yellow) left out, black first
_COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")  # one fewer: 42 pairs before any comes again
_LONGEST = 28
_TURNS = tuple((cos(turn * pi / 8), sin(turn * pi / 8)) for turn in range(16))
_MARKER = 8.5  # half of the largest, a diamond, in points
_REACHES = (10, 17, 26, 40, 60, 85)  # in points


class _Point(NamedTuple):
    method: str
    x: float
    y: float
    measured: bool


def default_axes(results: Sequence[Result]) -> tuple[str, str] | None:
    """A metric of distortion and one of perception that every result has; None if there are no such two."""
    means = [result.measured.means() for result in results]
    both = [
        next((name for name in names if all(name in figures for figures in means)), None)
        for names in (_DISTORTION, _PERCEPTION)
    ]
    return None if both[0] is None or both[1] is None else (both[0], both[1])


def perception_distortion(
    results: Sequence[Result], set_name: str | None, distortion: str, perception: str
) -> Figure:
    """Methods in the plane of two metrics, each axis turned so that better is to the lower left.

    Measured methods have filled markers, published ones (`published_rows`) open ones. Labels keep clear of each
    other, of markers and of the frame.

    Args:
        results: of one set; those that lack a metric, or have a value that is not finite, are left out.
        set_name: whose published rows are shown; None or another set's name for none.
        distortion: metric along x, such as `psnr`.
        perception: metric along y, such as `musiq`.

    Raises:
        ConfigError: if no result has both.
    """
    x, y = METRICS[distortion], METRICS[perception]
    means = [(result.method, result.measured.means()) for result in results]
    points = [
        _Point(method, figures[x.name], figures[y.name], measured=True)
        for method, figures in means
        if isfinite(figures.get(x.name, np.nan)) and isfinite(figures.get(y.name, np.nan))
    ]
    if not points:
        raise ConfigError(
            f"no method has finite figures of both {x.name} and {y.name}; measure both to plot them"
        )
    sources = published_rows(set_name or "")
    points += [
        _Point(row.method, float(row.values[x.name]), float(row.values[y.name]), measured=False)
        for row in sources
        if x.name in row.values and y.name in row.values
    ]
    figure = Figure(figsize=(8, 5.5), dpi=150)
    axes = figure.add_axes((0.1, 0.11, 0.87, 0.81))
    looks = _looks([_published_name(set_name, point.method) for point in points])
    for point, (color, marker) in zip(points, looks, strict=True):
        axes.plot(
            point.x,
            point.y,
            marker,
            markersize=7 if point.measured else 11,  # a ring around a filled one stays visible
            color=color,
            markerfacecolor=color if point.measured else "none",
            markeredgewidth=1.5,
        )
    axes.margins(0.15)
    axes.set_xlabel(f"distortion: {x.title} (better ←)")
    axes.set_ylabel(f"perception: {y.title} (better ↓)")
    if not x.lower_is_better:
        axes.invert_xaxis()
    if not y.lower_is_better:
        axes.invert_yaxis()
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_title(SET_TITLES.get(set_name or "", set_name or ""), loc="right", fontsize=11)
    _explain(axes, sources[0].source if sources else None)
    _label(axes, points)
    return figure


def drawn(figure: Figure) -> UInt8[np.ndarray, "h w 3"]:
    """The figure as an RGB picture at its own size and resolution."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _published_name(set_name: str | None, method: str) -> str:
    own = published(set_name or "", method)
    return method if own is None else own.method


def _looks(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Color and marker of each method, the same for one that comes twice."""
    order = {method: place for place, method in enumerate(dict.fromkeys(methods))}
    return [
        (_COLORS[order[method] % len(_COLORS)], _MARKERS[order[method] % len(_MARKERS)])
        for method in methods
    ]


def _explain(axes: Axes, source: str | None) -> None:
    """A legend above the axes, where it hides nothing."""
    kinds = [("measured", "0.3")] + ([] if source is None else [(f"published ({source})", "none")])
    handles = [
        Line2D([], [], linestyle="", marker="o", color="0.3", markerfacecolor=face, label=label)
        for label, face in kinds
    ]
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        frameon=False,
        borderaxespad=0.2,
        handletextpad=0.1,
    )


def _label(axes: Axes, points: Sequence[_Point]) -> None:
    """Write each method beside its marker, at the nearest place that is free; a line leads to it from far."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    pixels = figure.dpi / 72  # a point
    frame = axes.get_window_extent(renderer)
    centers = [axes.transData.transform((point.x, point.y)) for point in points]
    taken = [
        Bbox.from_extents(*(center - _MARKER * pixels), *(center + _MARKER * pixels))
        for center in centers
    ]
    for point, center in zip(points, centers, strict=True):
        text = axes.annotate(
            _short(point.method),
            (point.x, point.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            color="black" if point.measured else "0.4",
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "shrinkA": 0},
        )
        extent = text.get_window_extent(renderer)
        half = np.array([extent.width, extent.height]) / 2
        places: list[tuple[float, int, np.ndarray, Bbox]] = []
        for reach, turn in product(_REACHES, _TURNS):
            offset = np.multiply(turn, reach * pixels + half)
            box = Bbox.from_extents(*(center + offset - half), *(center + offset + half))
            places.append((_hidden(box, taken, frame), reach, offset, box))
        _, reach, offset, box = min(places, key=lambda place: place[:2])
        text.set_position(tuple(offset / pixels))
        if reach == _REACHES[0]:
            assert text.arrow_patch is not None
            text.arrow_patch.set_visible(False)
        taken.append(box)


def _hidden(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """Area in pixels of a label that lies on others or outside the frame."""
    shared = [Bbox.intersection(box, other) for other in taken]
    inside = Bbox.intersection(box, frame)
    outside = box.width * box.height - (0 if inside is None else inside.width * inside.height)
    return round(outside + sum(part.width * part.height for part in shared if part is not None), 3)


def _short(method: str) -> str:
    return method if len(method) <= _LONGEST else method[: _LONGEST - 1] + "…"
