"""Tables of results beside published rows, in the shapes of the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from math import isnan
from typing import Literal

from allosr2.evaluation.metrics import METRICS
from allosr2.evaluation.published import (
    SET_TITLES,
    PublishedRow,
    published,
    published_ablation,
    published_rows,
)
from allosr2.evaluation.summary import Measured, Result
from allosr2.evaluation.typeset import Block, Cell, Row, Table

_SETTINGS = {"without-fatc": "w/o FATC", "without-atm": "w/o ATM", "full": "Full"}


def table(
    results: Sequence[Result],
    set_name: str | None,
    *,
    notes: Sequence[str] = (),
) -> Table:
    """Methods by metrics, as Table 1: what was measured, and below it what the paper prints of the set.

    Best figures are bold, second best underlined, equal ones alike, as shown (rounded); measured and published
    ones each among themselves. A measured row whose method has a published one is followed by the difference,
    marked if rounding does not explain it.

    Args:
        results: of one set.
        set_name: one of `SET_TITLES`; published rows and differences are left out for any other, and None.
        notes: sentences below the table, such as the versions of the libraries that measured.
    """
    measured = _ranked(
        [
            Row(
                labels=(result.method,),
                cells=_figures(result.measured),
                kind="measured",
                seconds=result.seconds,
            )
            for result in results
        ]
    )
    sources = published_rows(set_name or "")
    compared = [
        _published_row((f"{row.method} ({row.steps} steps)" if row.steps > 1 else row.method,), row)
        for row in sources
    ]
    rows: list[Row] = []
    for result, row in zip(results, measured, strict=True):
        own = published(set_name or "", result.method)
        rows += [row] if own is None else [row, _difference(result, own)]
    blocks = [Block(rows=tuple(rows))]
    counts = ", ".join(sorted({str(len(result.measured.images)) for result in results}))
    said = [f"Images measured: {counts}."]
    if sources:
        source = sources[0].source
        blocks.append(Block(rows=tuple(_ranked(compared)), title=f"As published: {source}"))
        said[0] = f"Images measured: {counts}. Published figures are of the whole set."
        if len(rows) > len(measured):
            said.append(
                "* The difference is more than half a unit of the last digit of the published figure."
            )
    said += _skipped({result.method: result.measured for result in results})
    return Table(heads=("Method",), blocks=tuple(blocks), notes=(*said, *notes))


def ablation_table(
    measured: Mapping[str, Mapping[str, Measured]], *, notes: Sequence[str] = ()
) -> Table:
    """Settings by metrics, as Table 2, with the paper's own rows below; best and second as in `table`.

    Args:
        measured: set to setting to figures; a set by its name in `SET_TITLES` or any other, a setting as
            `allosr2 ablate` calls it.
        notes: sentences below the table.
    """
    blocks = [
        _ablation_block(
            name,
            [
                Row(
                    labels=("", _SETTINGS.get(setting, setting)),
                    cells=_figures(figures),
                    kind="measured",
                )
                for setting, figures in settings.items()
            ],
        )
        for name, settings in measured.items()
    ]
    title = "As published: arXiv:2604.19238, Table 2"
    for name in SET_TITLES:
        if own := published_ablation(name):
            rows = [_published_row(("", row.method), row) for row in own]
            blocks.append(replace(_ablation_block(name, rows), title=title))
            title = ""
    skipped = _skipped(
        {
            f"{SET_TITLES.get(name, name)} {_SETTINGS.get(setting, setting)}": figures
            for name, settings in measured.items()
            for setting, figures in settings.items()
        }
    )
    return Table(heads=("Datasets", "Settings"), blocks=tuple(blocks), notes=(*skipped, *notes))


def _ablation_block(name: str, rows: Sequence[Row]) -> Block:
    first, *others = _ranked(rows)
    labels = (SET_TITLES.get(name, name), first.labels[1])
    return Block(rows=(replace(first, labels=labels), *others))


def _figures(measured: Measured) -> dict[str, Cell]:
    return {
        name: Cell(text=f"{value:.{METRICS[name].digits}f}")
        for name, value in measured.means().items()
        if not isnan(value)
    }


def _published_row(labels: tuple[str, ...], row: PublishedRow) -> Row:
    cells = {name: Cell(text=figure) for name, figure in row.values.items()}
    return Row(labels=labels, cells=cells, kind="published")


def _difference(result: Result, own: PublishedRow) -> Row:
    cells: dict[str, Cell] = {}
    for name, value in result.measured.means().items():
        if name in own.values and not isnan(value):
            figure = Decimal(own.values[name])
            difference = Decimal(repr(value)) - figure
            unit = Decimal(1).scaleb(int(figure.as_tuple().exponent))
            # one digit more than is printed shows that rounding explains a small difference
            digits = 1 - int(figure.as_tuple().exponent)
            off = abs(difference) > unit / 2
            cells[name] = Cell(text=f"{difference:+z.{digits}f}", mark="off" if off else "")
    return Row(labels=(f"{result.method}, measured - published",), cells=cells, kind="difference")


def _ranked(rows: Sequence[Row]) -> list[Row]:
    marks: dict[tuple[str, str], Literal["best", "second"]] = {}
    for metric in METRICS.values():
        figures = [row.cells[metric.name].text for row in rows if metric.name in row.cells]
        ranks = {text: round(metric.worse(float(text)), metric.digits) for text in figures}
        if len(figures) > 1:
            best, *others = sorted(set(ranks.values()))
            for figure, rank in ranks.items():
                if rank in (best, *others[:1]):
                    marks[metric.name, figure] = "best" if rank == best else "second"
    return [
        replace(
            row,
            cells={
                name: replace(cell, mark=marks.get((name, cell.text), ""))
                for name, cell in row.cells.items()
            },
        )
        for row in rows
    ]


def _skipped(measured: Mapping[str, Measured]) -> list[str]:
    methods: dict[tuple[str, str], list[str]] = {}
    for method, figures in measured.items():
        for name, reason in figures.skipped.items():
            methods.setdefault((name, reason), []).append(method)
    return [
        f"{METRICS[name].title} is not measured"
        + ("" if len(named) == len(measured) else f" of {', '.join(named)}")
        + f": {reason}"
        for (name, reason), named in methods.items()
    ]
