from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from allosr2.evaluation.summary import Measured, Result
from allosr2.evaluation.tables import ablation_table, table


def result(method: str, seconds: float | None = None, **means: float) -> Result:
    names = {name.replace("_", "-"): value for name, value in means.items()}
    return Result(method=method, images={}, measured=Measured(images={"a": names}), seconds=seconds)


def test_markdown():
    results = [
        result("bicubic", psnr=27.111, lpips=0.4),
        result("mini", seconds=0.25, psnr=26.0, lpips=0.30004),
        result("b_a|d", psnr=25.0, lpips=0.3),
    ]
    assert table(results, None, notes=("pyiqa 0.1.16",)).markdown() == (
        "| Method | PSNR ↑ | LPIPS ↓ | s / image |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| bicubic | **27.11** | <u>0.4000</u> | - |\n"
        "| mini | <u>26.00</u> | **0.3000** | 0.250 |\n"
        "| b\\_a\\|d | 25.00 | **0.3000** | - |\n"
        "\n"
        "- Images measured: 1.\n"
        "- pyiqa 0.1.16\n"
    )


def test_latex():
    results = [result("a & b_1 [x]", psnr=20.0), result("100% {~^\\} #$ <|>", psnr=30.0)]
    assert table(results, None).latex() == (
        "\\begin{tabular}{lr}\n"
        "\\toprule\n"
        "Method & PSNR $\\uparrow$ \\\\\n"
        "\\midrule\n"
        "a \\& b\\_1 {[}x] & \\underline{20.00} \\\\\n"
        "100\\% \\{\\textasciitilde{}\\textasciicircum{}\\textbackslash{}\\} \\#\\$ "
        "\\textless{}\\textbar{}\\textgreater{} & \\textbf{30.00} \\\\\n"
        "\\bottomrule\n"
        "\\end{tabular}\n"
        "\\par{\\footnotesize Images measured: 1.\\par}\n"
    )


def test_html():
    results = [result('<b>&"', psnr=20.0), result("two", psnr=30.0, niqe=4.0)]
    assert table(results, None).html() == (
        '<div class="scroll"><table>\n'
        "<thead><tr>\n"
        '<th scope="col">Method</th>\n'
        '<th scope="col">PSNR&nbsp;↑</th>\n'
        '<th scope="col">NIQE&nbsp;↓</th>\n'
        "</tr></thead>\n"
        "<tbody>\n"
        '<tr class="measured"><th scope="row">&lt;b&gt;&amp;&quot;</th>'
        "<td><u>20.00</u></td><td>-</td></tr>\n"
        '<tr class="measured"><th scope="row">two</th><td><b>30.00</b></td><td>4.00</td></tr>\n'
        "</tbody>\n"
        "</table></div>\n"
        '<ul class="notes">\n'
        "<li>Images measured: 1.</li>\n"
        "</ul>"
    )


def line_of(text: str, start: str) -> list[str]:
    found = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_differences_to_published_rows():
    # published: PSNR 25.15, SSIM 0.7341, NIQE 5.65, MANIQA 0.6326
    results = [result("osediff", psnr=25.1511, ssim=0.7341, niqe=5.6449, maniqa=0.63307)]
    text = table(results, "realsr").markdown()
    assert line_of(text, "osediff, measured - published") == [
        "osediff, measured - published",
        "+0.001",
        "+0.00000",
        *["-"] * 3,
        "-0.005\\*",
        "-",
        "+0.00047\\*",
        "-",
    ]
    assert "- \\* The difference is more than half a unit of the last digit" in text
    assert " & +0.00047$^{*}$ & " in table(results, "realsr").latex()
    assert " & $-$0.005$^{*}$ & " in table(results, "realsr").latex()
    assert "<td>−0.005<sup>*</sup></td>" in table(results, "realsr").html()  # noqa: RUF001


def test_negative_figures_are_marked_as_any_others():
    """NIQE and PSNR of poor images fall below 0."""
    results = [result("x", psnr=-3.25, niqe=-1.5), result("y", psnr=-4.5, niqe=float("nan"))]
    made = table(results, None)
    assert "x & \\textbf{$-$3.25} & $-$1.50 \\\\" in made.latex()
    assert "y & \\underline{$-$4.50} & - \\\\" in made.latex()
    assert "| x | **-3.25** | -1.50 |" in made.markdown()
    assert "<td><b>−3.25</b></td><td>−1.50</td>" in made.html()  # noqa: RUF001


def test_half_a_unit_is_still_rounding():
    # binary 25.155 lies below 25.155, its shortest decimal does not
    text = table([result("osediff", psnr=25.155)], "realsr").markdown()
    assert line_of(text, "osediff, measured")[1] == "+0.005"


def test_differences_have_the_digits_of_the_printed_figure():
    # CTMSR's NIQE on DIV2K-Val is printed as 5.3036
    text = table([result("ctmsr", niqe=5.30)], "div2k-val").markdown()
    assert line_of(text, "ctmsr, measured")[6] == "-0.00360\\*"


def test_published_rows_stand_apart_and_are_ranked_among_themselves():
    text = table([result("bicubic", psnr=99.0), result("mini", psnr=1.0)], "realsr").markdown()
    title, *published = text.splitlines()[4:13]
    assert title == "| *As published: arXiv:2604.19238, Table 1* |" + "  |" * 9
    assert len(published) == 8
    assert line_of(text, "StableSR (200 steps)")[:2] == ["StableSR (200 steps)", "24.69"]
    assert line_of(text, "ResShift")[1] == "**26.31**"
    assert line_of(text, "SinSR")[1] == "<u>26.30</u>"
    assert line_of(text, "bicubic")[1] == "**99.00**"
    assert "measured - published" not in text


def test_one_row_is_neither_best_nor_second():
    assert "| one | 20.00 |" in table([result("one", psnr=20.0)], None).markdown()


def test_infinite_and_undefined_figures():
    results = [result("HR", psnr=float("inf"), niqe=float("nan")), result("x", psnr=30, niqe=4)]
    assert "| HR | **inf** | - |" in table(results, None).markdown()


def test_skipped_metrics_are_named_with_the_reason():
    skipped = {"fid": "clean-fid is not installed"}
    results = [
        Result(method=name, images={}, measured=Measured(images={"a": {"psnr": 1}}, skipped=also))
        for name, also in (("x", skipped), ("y", skipped | {"niqe": "no file"}))
    ]
    text = table(results, None).markdown()
    assert "- FID is not measured: clean-fid is not installed\n" in text
    assert "- NIQE is not measured of y: no file\n" in text


def test_columns_are_in_the_order_of_metrics():
    text = table([result("x", grid_8=1, psnr=2, lpips_squeeze=3, musiq=4)], None).markdown()
    heads = "| Method | PSNR ↑ | MUSIQ ↑ | LPIPS (SqueezeNet) ↓ | grid 8 px → 1 |"
    assert text.splitlines()[0] == heads


class Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append(0)
        elif tag in ("th", "td"):
            self.rows[-1] += int(dict(attrs).get("colspan", 1))


@pytest.mark.parametrize("set_name", ["realsr", "reallq250", None])
def test_every_row_has_every_column(set_name):
    made = table([result("osediff", 1.0, niqe=3.0, psnr=20), result("a & b", niqe=4.0)], set_name)
    columns = len(made.metrics) + 2
    latex = made.latex()
    assert f"{{l{'r' * (columns - 1)}}}" in latex
    for line in latex.splitlines():
        if line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1
    cells = Cells()
    cells.feed(made.html())
    assert set(cells.rows) == {columns}
    for line in made.markdown().split("\n\n")[0].splitlines():
        assert line.count("|") == columns + 1


def test_ablation_table_has_the_shape_of_table_2():
    def measured(psnr: float, musiq: float) -> Measured:
        return Measured(images={"a": {"psnr": psnr, "musiq": musiq}})

    settings = {
        "without-fatc": measured(24.0, 50.0),
        "without-atm": measured(26.0, 40.0),
        "full": measured(25.0, 60.0),
        "t-star-half": measured(25.0, 30.0),
    }
    text = ablation_table({"realsr": settings, "own": {"full": measured(1, 2)}}).markdown()
    lines = text.splitlines()
    assert lines[0].startswith("| Datasets | Settings | PSNR ↑ | SSIM ↑ | LPIPS ↓ |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [[*row[:3], row[8]] for row in rows[:6]] == [
        ["RealSR", "w/o FATC", "24.00", "<u>50.00</u>"],
        ["", "w/o ATM", "**26.00**", "40.00"],
        ["", "Full", "<u>25.00</u>", "**60.00**"],
        ["", "t-star-half", "<u>25.00</u>", "30.00"],
        ["own", "Full", "1.00", "2.00"],
        ["*As published: arXiv:2604.19238, Table 2*", "", "", ""],
    ]
    assert lines[8] == (
        "| RealSR | w/o FATC | <u>25.81</u> | 0.7317 | <u>0.2724</u> | <u>0.2079</u> | 116.77 "
        "| <u>5.11</u> | <u>69.32</u> | <u>0.6564</u> | <u>0.6654</u> |"
    )
    assert lines[10].endswith("**5.08** | **70.11** | **0.6725** | **0.675** |")
    assert lines[11].startswith("| DRealSR | w/o FATC |")
    assert len(lines) == 14


def test_a_metric_with_a_best_value_is_ranked_by_the_distance_to_it():
    """A grid of 0.6 is no better than one of 1.4: 1 is none at all."""
    figures = {"nearest": 0.601, "clean": 0.98, "woven": 1.1, "hr": 1.02}
    results = [
        Result(method=name, images={}, measured=Measured(images={"a": {"grid-8": value}}))
        for name, value in figures.items()
    ]
    made = table(results, None)
    lines = made.markdown().splitlines()
    assert "grid 8 px → 1" in lines[0]
    shown = [line.split("|")[2].strip() for line in lines[2:6]]
    assert shown == ["0.601", "**0.980**", "<u>1.100</u>", "**1.020**"]
    assert r"grid 8 px $\to$ 1" in made.latex()
