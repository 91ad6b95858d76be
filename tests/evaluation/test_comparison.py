"""A comparison is written whole, and nothing of a former one stays beside it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.evaluation import comparison
from allosr2.evaluation.comparison import most_different, write_comparison
from allosr2.evaluation.sets import SetFolder, open_pairs
from allosr2.evaluation.summary import Measured, Result

PSNR = {"a": (20.0, 21.0), "b": (20.0, 26.0), "c": (30.0, 27.0)}


@pytest.fixture
def images(tmp_path: Path) -> SetFolder:
    rng = np.random.default_rng(0)
    for part, side in (("lr", 16), ("hr", 64)):
        (tmp_path / part).mkdir()
        for name in PSNR:
            levels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(levels).save(tmp_path / part / f"{name}.png")
    return open_pairs(tmp_path / "lr", tmp_path / "hr")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "comparison"
    path.mkdir()
    return path


def results(images: SetFolder, names: str, *methods: str) -> list[Result]:
    """Methods whose pictures are HR's own, with PSNR and SSIM of some images."""
    assert images.hr is not None
    return [
        Result(
            method=method,
            images={name: images.hr[name] for name in names},
            measured=Measured(
                images={name: {"psnr": PSNR[name][number], "ssim": 0.5} for name in names}
            ),
        )
        for number, method in enumerate(methods)
    ]


def write(output: Path, images: SetFolder, measured: list[Result], crops: int = 2) -> list[str]:
    written = write_comparison(output, images, measured, by=["pyiqa"], crops=crops, pages=1)
    return [str(path.relative_to(output)) for path in written]


def files(output: Path) -> set[str]:
    return {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}


def some(images: SetFolder, names: str) -> SetFolder:
    assert images.hr is not None
    return SetFolder(
        set=None,
        lr={name: images.lr[name] for name in names},
        hr={name: images.hr[name] for name in names},
        scale=4,
        published=False,
    )


def test_the_images_on_which_methods_differ_most(images):
    measured = results(images, "abc", "one", "two")
    # SSIM, which stands before PSNR, is the same everywhere: the order of names
    assert most_different(measured, 2) == ["a", "b"]
    psnr = [
        Result(
            method=result.method,
            images=result.images,
            measured=Measured(
                images={n: {"psnr": v["psnr"]} for n, v in result.measured.images.items()}
            ),
        )
        for result in measured
    ]
    assert most_different(psnr, 2) == ["b", "c"]


def test_nothing_of_a_former_comparison_stays(images, output):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    first = write(output, images, results(images, "abc", "one", "two"), crops=3)
    assert set(first) == files(output)
    assert {"table.md", "table.tex", "report.html", "crops/a.png", "crops/c.png"} <= set(first)
    (output / "crops" / f".allosr2-{gone.pid}-0a.part").touch()
    second = write(output, some(images, "b"), results(images, "b", "one"))
    assert set(second) == files(output)
    assert [name for name in second if name.startswith("crops/")] == ["crops/b.png"]


def test_a_kill_leaves_no_parts_of_two_comparisons(images, output, monkeypatch):
    """Stopped at each thing that is written: what is there is all of one of the two."""
    write(output, images, results(images, "abc", "former", "two"))
    writers = ("write_image", "write_report", "save_text")
    seen: list[set[str]] = []
    for stop in range(20):
        left = stop

        def stopping(name: str, writer):
            def write_or_stop(*arguments, **options) -> None:
                nonlocal left
                if not left:
                    raise KeyboardInterrupt
                left -= 1
                writer(*arguments, **options)

            return write_or_stop

        with monkeypatch.context() as patch:
            for name in writers:
                patch.setattr(comparison, name, stopping(name, getattr(comparison, name)))
            try:
                write(output, images, results(images, "abc", "new", "two"))
            except KeyboardInterrupt:
                there = files(output)
            else:
                break
        seen.append(there)
        for path in (output / name for name in there if not name.endswith(".png")):
            assert "former" not in path.read_text()
        write(output, images, results(images, "abc", "former", "two"))
    assert "new" in (output / "table.md").read_text()
    # the tables come last
    assert {"table.md" in there for there in seen[:-1]} == {False}
    assert "report.html" in seen[-1]
