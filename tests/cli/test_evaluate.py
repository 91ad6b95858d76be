"""`allosr2 evaluate`: figures that others compute alike, files, what is kept, one line for what is wrong."""

from __future__ import annotations

import csv
import json
import math
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.cli import main
from allosr2.imaging.io import image_from_any
from allosr2.imaging.quality import periodicity, psnr_y, sharpness, ssim_y

SIDE = 72
METRICS = ("psnr", "ssim", "sharpness", "grid-8")
NAMES = ("a", "b", "c d")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def photo(number: int, noise: int = 0, side: int = SIDE) -> np.ndarray:
    """Soft noise, and on it as much noise as is asked for."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    levels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
    return (levels + rng.integers(-noise, noise + 1, levels.shape)).clip(0, 255).astype(np.uint8)


def save(path: Path, levels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with results in `sr` and what they are compared with in `hr`."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        save(Path("hr", f"{name}.png"), photo(number))
        save(Path("sr", f"{name}.webp" if number == 1 else f"{name}.png"), photo(number, 9))
    path = Path("sr/b.webp")
    Image.fromarray(photo(1, 9)).save(path, lossless=True)
    return tmp_path


def run(*options: object, metrics: tuple[str, ...] = METRICS) -> int:
    chosen = ["--metrics", *metrics] if metrics else []
    return main(["evaluate", "--sr", "sr", "--offline", *map(str, options), *chosen])


def rows(folder: Path) -> dict[str, dict[str, float]]:
    with (folder / "per_image.csv").open(newline="") as stream:
        return {
            row.pop("image"): {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(stream)
        }


def as_pyiqa(psnr: float) -> float:
    """pyiqa adds 1e-8 to the mean square of the error, of a peak of 1."""
    return -10 * math.log10(10 ** (-psnr / 10) + 1e-8)


def expected() -> dict[str, dict[str, float]]:
    values = {}
    for number, name in enumerate(NAMES):
        sr, hr = image_from_any(photo(number, 9)), image_from_any(photo(number))
        values[name] = {
            "psnr": as_pyiqa(float(psnr_y(sr, hr))),
            "ssim": float(ssim_y(sr, hr)),
            "sharpness": float(sharpness(sr, hr)),
            "grid-8": float(periodicity(sr, (8,))),
        }
    return values


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_figures_and_files(here, capsys):
    assert run("--hr", "hr") == 0
    output = Path("evaluation/sr")
    assert set(files(output)) == {"per_image.csv", "summary.json", ".measured.jsonl"}
    measured, due = rows(output), expected()
    assert list(measured) == list(NAMES)
    for name in NAMES:
        assert list(measured[name]) == list(METRICS)
        assert measured[name] == pytest.approx(due[name], abs=1e-5)

    record = json.loads((output / "summary.json").read_text())
    assert (record["sr"], record["hr"]) == (str(here / "sr"), str(here / "hr"))
    assert (record["lr"], record["images"]) == (None, 3)
    assert record["skipped"] == {}
    assert {"python", *("allosr2", "torch", "pyiqa")} <= set(record["versions"])
    assert record["versions"]["pyiqa"] == version("pyiqa")
    for metric in METRICS:
        values = [measured[name][metric] for name in NAMES]
        of_metric = record["metrics"][metric]
        assert of_metric["mean"] == pytest.approx(sum(values) / 3, abs=1e-12)
        assert min(values) - 1e-12 <= of_metric["low"] <= of_metric["mean"]
        assert of_metric["mean"] <= of_metric["high"] <= max(values)
        assert of_metric["weights_sha256"] == {}
    assert record["metrics"]["psnr"]["by"].startswith(f"pyiqa {version('pyiqa')} psnr")

    streams = capsys.readouterr()
    assert streams.err == ""
    lines = streams.out.splitlines()
    assert lines[0] == "3 images, sr"
    assert lines[-2:] == [str(output / "per_image.csv"), str(output / "summary.json")]
    (line,) = [line for line in lines if "PSNR ↑" in line]
    assert f" {record['metrics']['psnr']['mean']:.2f} " in line


def test_an_image_and_itself(here):
    assert (
        main(["evaluate", "--sr", "hr", "--hr", "hr", "--output", "o", "--metrics", *METRICS]) == 0
    )
    for values in rows(Path("o")).values():
        assert values["psnr"] == pytest.approx(80, abs=1e-3)  # where pyiqa ends
        assert values["ssim"] == pytest.approx(1, abs=1e-6)
        assert values["sharpness"] == pytest.approx(1, abs=1e-9)


def test_without_hr(here, capsys):
    assert run(metrics=("grid-8",)) == 0
    output = Path("evaluation/sr")
    assert rows(output) == {
        name: {"grid-8": pytest.approx(values["grid-8"], abs=1e-5)}
        for name, values in expected().items()
    }
    assert json.loads((output / "summary.json").read_text())["hr"] is None


def test_against_lr(here):
    for number, name in enumerate(NAMES):
        save(Path("lr", f"{name}.png"), np.full((18, 18, 3), 100 + number, np.uint8))
    assert run("--lr", "lr", metrics=("color-shift",)) == 0
    for number, (name, values) in enumerate(rows(Path("evaluation/sr")).items()):
        means = photo(number, 9).reshape(-1, 3).mean(axis=0)
        shift = np.abs(means - 100 - number).mean()
        assert values["color-shift"] == pytest.approx(shift, abs=1e-4), name


def test_by_default_what_needs_no_weights_that_are_absent(here, capsys):
    """The paper's metrics are asked for; those whose weights are absent are skipped, by name."""
    assert run("--weights", "nowhere", metrics=()) == 3
    assert "grid 16 px needs sides of 128 or more; leave grid-16 out with --metrics" in (
        capsys.readouterr().err
    )
    for number, name in enumerate(NAMES):
        save(Path("large", f"{name}.png"), photo(number, 9, side=144))
    arguments = ["--sr", "large", "--hr", "large", "--offline", "--weights", "nowhere"]
    assert main(["evaluate", *arguments]) == 0
    record = json.loads(Path("evaluation/large/summary.json").read_text())
    assert list(record["metrics"]) == ["psnr", "ssim", "sharpness", "grid-8", "grid-16"]
    skipped = ["lpips", "dists", "fid", "niqe", "musiq", "maniqa", "clipiqa"]
    assert list(record["skipped"]) == skipped
    warnings = capsys.readouterr().err.splitlines()
    titles = ["LPIPS", "DISTS", "FID", "NIQE", "MUSIQ", "MANIQA", "CLIPIQA"]
    for title in titles:
        assert any(w.startswith(f"allosr2: warning: {title} is skipped: ") for w in warnings)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The metrics that are computed and not taken from the journal, one entry an image."""
    from allosr2.evaluation import measure

    metrics: list[str] = []
    value = measure._value

    def counted(scorer, *arguments):
        metrics.append(scorer.metric.name)
        return value(scorer, *arguments)

    monkeypatch.setattr(measure, "_value", counted)
    return metrics


def test_again_nothing_is_computed_and_the_files_are_the_same(here, computed):
    assert run("--hr", "hr") == 0
    assert len(computed) == 12
    first = files(here)
    assert run("--hr", "hr") == 0
    assert len(computed) == 12
    assert files(here) == first
    # another metric costs itself alone
    assert run("--hr", "hr", metrics=("psnr", "grid-8", "ssim", "sharpness")) == 0
    assert len(computed) == 12
    save(Path("sr/a.png"), photo(0, 20))
    assert run("--hr", "hr") == 0
    assert len(computed) == 16


def test_a_torn_journal_goes_on(here, computed):
    assert run("--hr", "hr") == 0
    first = rows(Path("evaluation/sr"))
    journal = Path("evaluation/sr/.measured.jsonl")
    content = journal.read_bytes()
    computed.clear()
    journal.write_bytes(content[:-5])
    assert run("--hr", "hr") == 0
    assert len(computed) == 1
    assert rows(Path("evaluation/sr")) == first
    journal.write_bytes(b"\xff\x00 no text\n[1, 2, 3]\n{}\n" + content)
    assert run("--hr", "hr") == 0
    assert len(computed) == 1
    assert rows(Path("evaluation/sr")) == first


def test_an_interruption(here, monkeypatch, capsys):
    from allosr2.evaluation import measure

    value, calls = measure._value, []

    def stopped(scorer, path, *arguments):
        calls.append(path)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return value(scorer, path, *arguments)

    monkeypatch.setattr(measure, "_value", stopped)
    assert run("--hr", "hr", "--workers", "1") == 130
    assert capsys.readouterr().err.splitlines() == ["allosr2: interrupted"]
    assert set(files(Path("evaluation"))) <= {"sr/.measured.jsonl"}
    assert run("--hr", "hr") == 0
    assert rows(Path("evaluation/sr")).keys() == set(NAMES)


def test_what_is_no_rgb_of_8_bits_is_measured_as_such(here, capsys):
    deep = (photo(0, 9)[..., 0] * 257.0 + 40).clip(0, 65535).astype(np.uint16)
    gray = photo(1, 9)[..., 0]
    save(Path("sr/a.png"), deep)
    Path("sr/b.webp").unlink()
    save(Path("sr/b.png"), gray)
    assert run("--hr", "hr", metrics=("psnr",)) == 0
    measured = rows(Path("evaluation/sr"))
    for number, (name, plane) in enumerate({"a": photo(0, 9)[..., 0], "b": gray}.items()):
        sr = image_from_any(np.repeat(plane[..., None], 3, 2))
        psnr = float(psnr_y(sr, image_from_any(photo(number))))
        assert measured[name]["psnr"] == pytest.approx(psnr, abs=1e-4)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("were converted, one of them sr/a.png (rounded from 16 bits, gray)")


def break_names() -> None:
    Path("sr/a.png").rename("sr/e.png")


def take_one() -> None:
    Path("sr/a.png").unlink()


def other_size() -> None:
    save(Path("sr/a.png"), photo(0)[:, :-1])


def empty() -> None:
    for path in Path("sr").iterdir():
        path.unlink()


def torn() -> None:
    Path("sr/a.png").write_bytes(Path("sr/a.png").read_bytes()[:20])


def doubled() -> None:
    save(Path("sr/a.bmp"), photo(0))


@pytest.mark.parametrize(
    ("spoil", "options", "metrics", "code", "words"),
    [
        (take_one, (), METRICS, 5, "hr/a.png has no partner in sr: 2 images in sr, 3 in hr; give"),
        (break_names, (), METRICS, 5, "sr/e.png has no partner in hr: 3 images in sr, 3 in hr; "),
        (other_size, (), METRICS, 5, "sr/a.png is 71 x 72 px, hr/a.png is 72 x 72; measure "),
        (empty, (), METRICS, 5, "sr holds no image; name a folder with images"),
        (torn, (), METRICS, 5, "sr/a.png cannot be decoded (cut off "),
        (doubled, (), METRICS, 5, "sr/a.png has the name of sr/a.bmp; take one out"),
        (None, (), ("pnsr",), 2, "metric pnsr is unknown: did you mean psnr"),
        (None, (), ("SSIM",), 2, "metric SSIM is unknown: did you mean ssim or "),
        (None, ("--hr", "none"), METRICS, 5, "none"),
        (None, ("--workers", "-1"), METRICS, 2, "--workers is -1: use 1 or more, or 0 for one"),
        (None, ("--device", "gpu"), METRICS, 2, "device is gpu: this machine has no such device"),
        (None, (), ("niqe",), 2, "no metric is left; name others with --metrics, or give their"),
        (None, (), ("color-shift",), 2, "metric color-shift compares with images of --lr: add"),
        (None, ("--niqe", "none.npz"), ("niqe",), 4, "none.npz: no such file; name one with NIQE"),
        (None, ("--output", "sr/a.png/x"), METRICS, 2, "--output: sr/a.png/x cannot be made"),
    ],
)
def test_refusals_leave_nothing(here, capsys, spoil, options, metrics, code, words):
    if spoil:
        spoil()
    before = files(here)
    assert run("--hr", "hr", "--weights", "nowhere", *options, metrics=metrics) == code
    streams = capsys.readouterr()
    assert streams.out == ""
    *warnings, line = streams.err.splitlines()
    assert line.startswith(f"allosr2: error: {words}")
    assert all(w.startswith("allosr2: warning: ") for w in warnings)
    assert bool(warnings) == ("no metric is left" in words)
    assert files(here) == before
    assert not Path("evaluation").exists()


def test_a_metric_that_compares_with_hr_and_no_hr(here, capsys):
    assert run() == 2
    assert capsys.readouterr().err.splitlines() == [
        "allosr2: error: metric psnr compares with images of --hr: add that, or leave it out"
    ]
    assert not Path("evaluation").exists()


@pytest.fixture
def niqe(tmp_path: Path) -> Path:
    """Parameters in NIQE's layout that stand in for the published ones."""
    path = tmp_path / "niqe.npz"
    rng = np.random.default_rng(0)
    np.savez(path, mu_pris_param=rng.normal(size=(1, 36)), cov_pris_param=np.eye(36))
    return path


def test_images_that_are_too_small_for_niqe(here, niqe, capsys):
    assert run("--niqe", niqe, metrics=("niqe",)) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("allosr2: error: sr/")
    assert line.endswith(
        " is 72 x 72 px, NIQE needs sides of 192 or more; leave niqe out with --metrics"
    )
    assert not list(Path("evaluation").rglob("*.csv"))


def test_an_image_of_one_color_has_no_niqe(here, niqe, capsys):
    save(Path("flat/a.png"), np.full((192, 192, 3), 128, np.uint8))
    arguments = ["--sr", "flat", "--niqe", str(niqe), "--metrics", "niqe"]
    assert main(["evaluate", *arguments]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "allosr2: error: flat/a.png: NIQE is nan, as of a picture of one color; leave the image out, or niqe "
        "with --metrics"
    )
    assert not list(Path("evaluation").rglob("*.csv"))


def test_one_image(here):
    for name in ("b.webp", "c d.png"):
        Path("sr", name).unlink()
    for name in ("b.png", "c d.png"):
        Path("hr", name).unlink()
    assert run("--hr", "hr", metrics=("psnr",)) == 0
    psnr = json.loads(Path("evaluation/sr/summary.json").read_text())["metrics"]["psnr"]
    assert psnr["mean"] == psnr["low"] == psnr["high"]
    assert math.isfinite(psnr["mean"])


def test_osediff(shared_data, tmp_path):
    """Published images against the published rows of a measurement by pyiqa."""
    realsr = shared_data / "realsr"
    names = sorted(path.stem for path in (realsr / "osediff").glob("*.png"))[:3]
    for part in ("osediff", "hr"):
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / f"{name}.png").symlink_to(realsr / part / f"{name}.png")
    arguments = ["--sr", tmp_path / "osediff", "--hr", tmp_path / "hr", "--output", tmp_path / "o"]
    assert main(["evaluate", *map(str, arguments), "--metrics", "psnr", "ssim"]) == 0
    with (realsr / "osediff_published.csv").open(newline="") as stream:
        published = {Path(row["image"]).stem: row for row in csv.DictReader(stream)}
    for name, values in rows(tmp_path / "o").items():
        assert values["psnr"] == pytest.approx(float(published[name]["psnr_y"]), abs=1e-4)
        assert values["ssim"] == pytest.approx(float(published[name]["ssim_y"]), abs=1e-5)


def test_figures_of_another_folder_of_this_name_are_not_replaced(here, capsys):
    assert run("--hr", "hr", metrics=("psnr",)) == 0
    before = Path("evaluation/sr/summary.json").read_bytes()
    shutil.copytree("sr", "other/sr")
    capsys.readouterr()
    assert main(["evaluate", "--sr", "other/sr", "--hr", "hr", "--metrics", "psnr"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    figures = f"evaluation/sr holds figures of {here / 'sr'}; choose another --output"
    assert line == f"allosr2: error: {figures}"
    assert Path("evaluation/sr/summary.json").read_bytes() == before


def test_one_image_is_measured_without_fid(here, capsys):
    for name in ("b.webp", "c d.png"):
        Path("sr", name).unlink()
    for name in ("b.png", "c d.png"):
        Path("hr", name).unlink()
    assert run("--hr", "hr", metrics=("psnr", "fid")) == 0
    summary = json.loads(Path("evaluation/sr/summary.json").read_text())
    assert summary["skipped"] == {"fid": "it compares sets of 2 images or more"}
    assert list(summary["metrics"]) == ["psnr"]
