from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from allosr2.errors import ConfigError
from allosr2.evaluation.plots import default_axes, drawn, perception_distortion
from allosr2.evaluation.summary import Measured, Result
from allosr2.imaging.io import write_image
from allosr2.imaging.picture import Picture


def result(method: str, **means: float) -> Result:
    return Result(method=method, images={}, measured=Measured(images={"a": means}))


CROWD = [
    result("OSEDiff", psnr=25.151, musiq=69.09),
    result("mini", psnr=25.16, musiq=69.2),
    result("bicubic", psnr=27.11, musiq=25.0),
    result("Lanczos", psnr=27.1, musiq=25.3),
    result("another method with a long name of its own", psnr=25.14, musiq=69.0),
]


def boxes(figure):
    """Labels in pixels, by text."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    return [
        (text.get_text(), super(type(text), text).get_window_extent(renderer))
        for text in figure.axes[0].texts
    ]


def test_labels_keep_clear_of_each_other_of_markers_and_of_the_frame():
    figure = perception_distortion(CROWD, "realsr", "psnr", "musiq")
    drawn(figure)
    labels = boxes(figure)
    assert len(labels) == 5 + 8
    axes = figure.axes[0]
    for (first, a), (second, b) in combinations(labels, 2):
        assert not a.overlaps(b), (first, second)
    frame = axes.get_window_extent()
    for text, box in labels:
        assert frame.contains(box.x0, box.y0), text
        assert frame.contains(box.x1, box.y1), text
    for line in axes.lines:
        x, y = axes.transData.transform(line.get_xydata())[0]
        for text, box in labels:
            assert not box.contains(x, y), text


def test_measured_are_filled_and_published_open():
    figure = perception_distortion(CROWD[:2], "realsr", "psnr", "musiq")
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines]
    assert faces[2:] == ["none"] * 8
    assert "none" not in faces[:2]
    places = {tuple(line.get_xydata()[0]) for line in figure.axes[0].lines}
    assert (26.31, 58.10) in places  # ResShift
    assert (25.151, 69.09) in places


def test_a_method_looks_the_same_measured_and_published():
    figure = perception_distortion(
        [result("osediff", psnr=25, musiq=69)], "realsr", "psnr", "musiq"
    )
    measured, *published = figure.axes[0].lines
    alike = [
        line
        for line in published
        if (line.get_color(), line.get_marker()) == (measured.get_color(), measured.get_marker())
    ]
    assert [tuple(line.get_xydata()[0]) for line in alike] == [(25.15, 69.09)]


@pytest.mark.parametrize(
    ("distortion", "perception", "inverted"),
    [
        ("psnr", "musiq", (True, True)),
        ("lpips", "niqe", (False, False)),
        ("ssim", "fid", (True, False)),
    ],
)
def test_better_is_to_the_lower_left(distortion, perception, inverted):
    figure = perception_distortion(
        [result("x", **{distortion: 0.5, perception: 5.0})], None, distortion, perception
    )
    axes = figure.axes[0]
    assert (axes.xaxis_inverted(), axes.yaxis_inverted()) == inverted
    assert axes.get_xlabel().endswith("(better ←)")
    assert axes.get_ylabel().endswith("(better ↓)")


def test_names_are_text_and_no_formulas():
    figure = perception_distortion([result("$x_1$ <b>", psnr=1, musiq=2)], None, "psnr", "musiq")
    text = figure.axes[0].texts[0]
    assert (text.get_text(), text.get_parse_math()) == ("$x_1$ <b>", False)


def test_picture_is_a_png_of_the_figures_size(tmp_path: Path):
    picture = drawn(perception_distortion(CROWD, "realsr", "psnr", "musiq"))
    assert picture.shape == (825, 1200, 3)
    assert picture.dtype == np.uint8
    write_image(tmp_path / "plot.png", Picture(color=picture))
    content = (tmp_path / "plot.png").read_bytes()
    with Image.open(BytesIO(content)) as image:
        assert (image.format, image.size) == ("PNG", (1200, 825))


def test_the_same_results_give_the_same_picture():
    first, second = (
        drawn(perception_distortion(CROWD, "realsr", "psnr", "musiq")) for _ in range(2)
    )
    assert np.array_equal(first, second)


def test_results_without_a_figure_are_left_out():
    results = [*CROWD, result("HR", psnr=float("inf"), musiq=70), result("half", psnr=25)]
    figure = perception_distortion(results, None, "psnr", "musiq")
    assert len(figure.axes[0].texts) == 5


def test_no_result_with_both():
    with pytest.raises(ConfigError, match=r"no method has finite figures of both psnr and fid"):
        perception_distortion(CROWD, "realsr", "psnr", "fid")


def test_default_axes_are_what_every_result_has():
    assert default_axes(CROWD) == ("psnr", "musiq")
    assert default_axes([*CROWD, result("x", psnr=1, niqe=2)]) is None
    assert default_axes([result("x", lpips=1, niqe=2, fid=3)]) == ("lpips", "niqe")


def test_plots_need_no_scipy():
    """`allosr2 snr --plot` is promised to do with matplotlib."""
    code = "import sys; sys.modules['scipy'] = None; import allosr2.evaluation.plots"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
