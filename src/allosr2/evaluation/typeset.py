"""A table of figures, written as Markdown, LaTeX or HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from allosr2.evaluation.metrics import METRICS, Metric

_OF_MARKDOWN = re.compile(r"([\\`*_\[\]<>|&~$])")
_OF_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # at the start of a row it would be an option of the row above, as would a star
    "*": "{*}",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\to$",
} | {character: "\\" + character for character in "{}$&#%_"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One figure."""

    text: str
    mark: Literal["", "best", "second", "off"] = ""
    """`off`: a difference that rounding of the published figure does not explain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of figures."""

    labels: tuple[str, ...]
    """A method, or a set and a setting."""
    cells: Mapping[str, Cell]
    """Figures by the name of the metric."""
    kind: Literal["measured", "published", "difference"]
    seconds: float | None = None
    """An image takes this long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Rows between two rules."""

    rows: tuple[Row, ...]
    title: str = ""
    """A line above them; none if empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table, ready to be written in any of three languages."""

    heads: tuple[str, ...]
    """Of the columns of labels."""
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()
    """Sentences that stand below."""

    @property
    def metrics(self) -> list[Metric]:
        """Columns: the metrics that any row has, in the order of `METRICS`."""
        present = {name for block in self.blocks for row in block.rows for name in row.cells}
        return [metric for metric in METRICS.values() if metric.name in present]

    def markdown(self) -> str:
        """As GitHub's Markdown, where `<u>` underlines."""
        marks = {"": "{}", "best": "**{}**", "second": "<u>{}</u>", "off": r"{}\*"}

        def line(cells: Iterable[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        heads = self._heads(_markdown, lambda metric: f"{_markdown(metric.title)} {metric.arrow}")
        labels = len(self.heads)
        lines = [line(heads), line(["---"] * labels + ["---:"] * (len(heads) - labels))]
        for block in self.blocks:
            if block.title:
                lines.append(line([f"*{_markdown(block.title)}*", *[""] * (len(heads) - 1)]))
            lines += [
                line(self._cells(row, _markdown, lambda cell: marks[cell.mark].format(cell.text)))
                for row in block.rows
            ]
        notes = [f"- {_markdown(note)}" for note in self.notes]
        return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"

    def latex(self) -> str:
        """As a LaTeX tabular with its notes; needs the package booktabs."""
        marks = {
            "": "{}",
            "best": r"\textbf{{{}}}",
            "second": r"\underline{{{}}}",
            "off": "{}$^{{*}}$",
        }

        def figure(cell: Cell) -> str:
            # a hyphen before a digit is a minus sign
            return marks[cell.mark].format(re.sub(r"-(?=.)", "$-$", cell.text))

        def line(cells: Iterable[str]) -> str:
            return " & ".join(cells) + r" \\"

        heads = self._heads(
            _latex,
            lambda metric: f"{_latex(metric.title)} {_latex(metric.arrow)}",
        )
        labels = len(self.heads)
        lines = [
            rf"\begin{{tabular}}{{{'l' * labels}{'r' * (len(heads) - labels)}}}",
            r"\toprule",
            line(heads),
        ]
        for block in self.blocks:
            lines.append(r"\midrule")
            if block.title:
                title = rf"\emph{{{_latex(block.title)}}}"
                lines.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{{title}}} \\")
            lines += [line(self._cells(row, _latex, figure)) for row in block.rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
        notes = [rf"\par{{\footnotesize {_latex(note)}\par}}" for note in self.notes]
        return "\n".join([*lines, *notes]) + "\n"

    def html(self) -> str:
        """As an HTML fragment: a table in a box of class `scroll`, and a list of class `notes`."""
        marks = {"": "{}", "best": "<b>{}</b>", "second": "<u>{}</u>", "off": "{}<sup>*</sup>"}

        def figure(cell: Cell) -> str:
            # a hyphen before a digit is a minus sign
            return marks[cell.mark].format(re.sub(r"-(?=.)", "−", cell.text))  # noqa: RUF001

        heads = self._heads(
            html.escape, lambda metric: f"{html.escape(metric.title)}&nbsp;{metric.arrow}"
        )
        labels = len(self.heads)
        lines = ['<div class="scroll"><table>', "<thead><tr>"]
        lines += [f'<th scope="col">{head}</th>' for head in heads]
        lines.append("</tr></thead>")
        for block in self.blocks:
            lines.append("<tbody>")
            if block.title:
                title = html.escape(block.title)
                lines.append(f'<tr class="title"><th colspan="{len(heads)}">{title}</th></tr>')
            for row in block.rows:
                cells = self._cells(row, html.escape, figure)
                lines.append(
                    f'<tr class="{row.kind}">'
                    + "".join(f'<th scope="row">{cell}</th>' for cell in cells[:labels])
                    + "".join(f"<td>{cell}</td>" for cell in cells[labels:])
                    + "</tr>"
                )
            lines.append("</tbody>")
        lines.append("</table></div>")
        notes = [f"<li>{html.escape(note)}</li>" for note in self.notes]
        return "\n".join([*lines, *(['<ul class="notes">', *notes, "</ul>"] if notes else [])])

    def _heads(self, plain: Callable[[str], str], metric: Callable[[Metric], str]) -> list[str]:
        return [
            *map(plain, self.heads),
            *map(metric, self.metrics),
            *(["s / image"] if self._timed else []),
        ]

    def _cells(
        self, row: Row, plain: Callable[[str], str], figure: Callable[[Cell], str]
    ) -> list[str]:
        absent = Cell(text="-")
        cells = [row.cells.get(metric.name, absent) for metric in self.metrics]
        if self._timed:
            cells.append(absent if row.seconds is None else Cell(text=f"{row.seconds:.3f}"))
        return [*map(plain, row.labels), *map(figure, cells)]

    @property
    def _timed(self) -> bool:
        return any(row.seconds is not None for block in self.blocks for row in block.rows)


def _markdown(text: str) -> str:
    return _OF_MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _latex(text: str) -> str:
    return "".join(_OF_LATEX.get(character, character) for character in " ".join(text.split()))
