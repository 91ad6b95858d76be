"""`allosr2 compare`: figures that are known, files, what is made once, what is refused, and going on."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.cli import main
from allosr2.imaging.io import image_from_any
from allosr2.imaging.quality import periodicity, sharpness

NAMES = ("a", "b", "c d")
METRICS = ("psnr", "ssim", "sharpness", "grid-8")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save(path: Path, levels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return path


def photo(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (32, 24, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((72, 96), Image.Resampling.BICUBIC))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with three pairs, 18 x 24 px to 72 x 96, and LR images enlarged by repetition."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        hr = photo(number)
        save(Path("hr", f"{name}.png"), hr)
        lr = np.asarray(Image.fromarray(hr).resize((18, 24), Image.Resampling.BOX))
        save(Path("lr", f"{name}.png"), lr)
        save(Path("blocks", f"{name}_x4.png"), lr.repeat(4, 0).repeat(4, 1))
    return tmp_path


def run(*words: object, hr: bool = True, metrics: tuple[str, ...] = METRICS) -> int:
    pairs = ["--lr", "lr", *(["--hr", "hr"] if hr else [])]
    options = [*pairs, "--offline", "--device", "cpu"]
    return main(["compare", *options, *map(str, words), "--metrics", *metrics])


def rows(table: str | None = None) -> dict[str, list[str]]:
    """The lines of `table.md` that have figures, by method, without the marks of the best."""
    lines = (table or Path("comparison/table.md").read_text()).splitlines()
    cells = [
        [cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines if "|" in line
    ]
    return {first: [re.sub(r"</?u>|\*", "", cell) for cell in rest] for first, *rest in cells}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(capsys: pytest.CaptureFixture[str], *words: object, **options: object) -> str:
    """The one line of a run that leaves everything as it was."""
    before = files(Path())
    code = run(*words, **options)
    streams = capsys.readouterr()
    (line,) = streams.err.splitlines()
    assert code in (2, 3, 4, 5)
    assert streams.out == ""
    assert files(Path()) == before
    assert not Path("comparison").exists()
    assert line.startswith("allosr2: error: ")
    return line.removeprefix("allosr2: error: ")


SCRIPT = """
import sys
from pathlib import Path
from PIL import Image

lr, sr = sys.argv[1:]
with Path(__file__).with_suffix(".calls").open("a") as calls:
    calls.write("call\\n")
for path in sorted(Path(lr).iterdir()):
    image = Image.open(path)
    image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST).save(
        Path(sr, path.stem + "_out.png")
    )
"""


def command(name: str = "program") -> str:
    path = Path("enlarge.py")
    path.write_text(SCRIPT)
    return f"{name}={shlex.join([sys.executable, str(path)])} {{lr}} {{sr}}"


def test_methods_of_every_kind_and_their_files(here, capsys):
    assert run("bicubic", "lanczos", "itself=hr", "repeated=blocks", command(), "--crops", "2") == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    output = Path("comparison")
    table = (output / "table.md").read_text()
    shown = streams.out[: streams.out.index("comparison/")]
    figures = {
        line.split("│")[1].strip(): line.split("│")[4].strip()
        for line in shown.splitlines()
        if line.startswith("│")
    }
    assert figures == {
        "PSNR ↑": "80.00",
        "SSIM ↑": "1.0000",
        "sharpness ↑": "1.000",
        "grid 8 px → 1": figures["grid 8 px → 1"],
        "s / image": "-",
    }
    sheets = sorted(str(path) for path in (output / "crops").iterdir())
    assert len(sheets) == 2
    lines = streams.out.removeprefix(shown).splitlines()
    assert lines[:3] == [f"comparison/{name}" for name in ("report.html", "table.md", "table.tex")]
    assert sorted(lines[3:]) == sheets
    methods = ["bicubic", "lanczos", "itself", "repeated", "program"]

    figures = rows(table)
    assert [name for name in figures if name in methods] == methods
    head = figures["Method"]
    for name, metric, figure in (
        ("itself", "PSNR", "80.00"),  # where pyiqa ends
        ("itself", "SSIM", "1.0000"),
        ("itself", "sharpness", "1.000"),
    ):
        (column,) = [place for place, title in enumerate(head) if title.startswith(metric)]
        assert figures[name][column] == figure
    # by Pillow alone: PSNR of what is interpolated
    (psnr,) = [place for place, title in enumerate(head) if title.startswith("PSNR")]
    for name in ("bicubic", "lanczos"):
        assert float(figures[name][psnr]) == pytest.approx(of_pillow(name), abs=0.02)
    assert figures["program"][: len(METRICS)] == figures["repeated"][: len(METRICS)]
    assert "**80.00**" in table

    made = files(output)
    for method in methods:
        held = {name.partition("/")[2] for name in made if name.startswith(f"{method}/")}
        results = set()
        if method not in ("itself", "repeated"):
            results = {f"results/{name}.png" for name in NAMES} | {"made.json"}
        if method == "program":
            results.add("program.log")
        assert held == results | {"per_image.csv", "summary.json", ".measured.jsonl"}
    others = {name for name in made if name.partition("/")[0] not in methods}
    assert others - {".allosr2.lock"} == {
        "table.md",
        "table.tex",
        "report.html",
        *(str(Path(sheet).relative_to(output)) for sheet in sheets),
    }
    page = (output / "report.html").read_text()
    assert all(method in page for method in methods)
    for name in NAMES:
        assert Image.open(output / "bicubic" / "results" / f"{name}.png").size == (72, 96)
    summary = json.loads((output / "bicubic" / "summary.json").read_text())
    assert summary["method"] == "bicubic"
    assert summary["seconds"] > 0
    assert summary["made_by"].startswith("bicubic interpolation, allosr2 ")
    assert json.loads((output / "itself" / "summary.json").read_text())["seconds"] is None


def of_pillow(name: str) -> float:
    """Mean PSNR of Y (BT.601) of LR images that Pillow enlarges, in NumPy."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    values = []
    for image in NAMES:
        lr, hr = Image.open(f"lr/{image}.png"), np.asarray(Image.open(f"hr/{image}.png"), float)
        sr = np.asarray(lr.resize((72, 96), Image.Resampling[name.upper()]), float)
        values.append(10 * np.log10(255**2 / np.square((sr - hr) @ weights).mean()))
    return float(np.mean(values))


def test_again_nothing_is_made_and_the_figures_are_the_same(here, capsys):
    words = ("bicubic", command())
    assert run(*words) == 0
    first = files(Path("comparison"))
    times = {p: p.stat().st_mtime_ns for p in Path("comparison").rglob("results/*")}
    assert len(times) == 6
    assert run(*words) == 0
    second = files(Path("comparison"))
    assert {p: p.stat().st_mtime_ns for p in Path("comparison").rglob("results/*")} == times
    assert Path("enlarge.calls").read_text() == "call\n"
    assert second.keys() == first.keys()
    assert [name for name in first if first[name] != second[name]] == []
    # another method costs itself alone, and another metric too
    assert run(*words, "lanczos", metrics=("psnr", "grid-8")) == 0
    assert Path("enlarge.calls").read_text() == "call\n"
    assert {"bicubic", "program", "lanczos"} <= rows().keys()


def test_an_interruption_and_the_same_command_again(here, monkeypatch, capsys):
    from allosr2.evaluation import results

    write, calls = results.write_image, []

    def stopped(target, picture):
        calls.append(target.name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(target, picture)

    monkeypatch.setattr(results, "write_image", stopped)
    assert run("bicubic", "lanczos") == 130
    streams = capsys.readouterr()
    assert streams.err.splitlines() == ["allosr2: interrupted"]
    assert streams.out == ""
    assert not Path("comparison/table.md").exists()
    kept = Path("comparison/lanczos/results/a.png").stat().st_mtime_ns
    assert run("bicubic", "lanczos") == 0
    assert calls[4:] == ["b.png", "b.png", "c d.png"]
    assert Path("comparison/lanczos/results/a.png").stat().st_mtime_ns == kept
    assert {"bicubic", "lanczos"} <= rows().keys()
    partials = [name for name in files(Path("comparison")) if ".part" in name]
    assert partials == []


def test_a_termination_ends_the_program_and_is_an_interruption(here, capsys):
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(20)"
    # so that a run that does not heed it goes on, and fails here
    former = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run("bicubic", f"x={shlex.join([sys.executable, '-c', code])} {{lr}} {{sr}}") == 130
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, former)
    assert capsys.readouterr().err.splitlines() == ["allosr2: interrupted"]
    assert {path.name for path in Path("comparison/x").iterdir()} == {
        "made.json",
        "program.log",
        "results",
    }
    assert not list(Path("comparison/x/results").iterdir())
    assert not Path("comparison/table.md").exists()


def test_common_images(here, capsys):
    Path("blocks/b_x4.png").unlink()
    assert refusal(capsys, "bicubic", "blocks") == (
        "blocks: no result named b (1 of 3 are missing); add it, or compare with --common on the images that "
        "all have"
    )
    assert run("bicubic", "blocks", "--common") == 0
    assert "Images measured: 2." in Path("comparison/table.md").read_text()
    results = sorted(path.name for path in Path("comparison/bicubic/results").iterdir())
    assert results == ["a.png", "c d.png"]
    record = json.loads(Path("comparison/blocks/summary.json").read_text())
    assert record["images"] == 2


def test_no_common_image(here, capsys):
    Path("blocks/b_x4.png").unlink()
    save(Path("others/b.png"), photo(1))
    line = refusal(capsys, "blocks", "others", "--common")
    assert line == "no image has a result in every folder; give results the LR images' names"


def test_without_hr(here, capsys):
    assert run("bicubic", "blocks", hr=False, metrics=("grid-8",)) == 0
    blocks = [image_from_any(np.asarray(Image.open(f"blocks/{name}_x4.png"))) for name in NAMES]
    score = sum(float(periodicity(image, (8,))) for image in blocks) / len(NAMES)
    assert rows()["blocks"][0] == f"{score:.3f}"
    assert Image.open("comparison/bicubic/results/a.png").size == (72, 96)
    assert "HR" not in Path("comparison/table.md").read_text()


def test_another_scale_without_hr(here, capsys):
    for number, name in enumerate(NAMES):
        lr = np.asarray(Image.fromarray(photo(number)).resize((36, 48)))
        save(Path("lr", f"{name}.png"), lr)
    assert run("bicubic", "itself=hr", "--scale", "2", hr=False, metrics=("grid-8",)) == 0
    assert Image.open("comparison/bicubic/results/a.png").size == (72, 96)
    line = refusal_in(capsys, "o", "bicubic", "itself=hr", "--scale", "3")
    assert line.startswith("hr/a.png is 72 x 96 px, 3 times its LR image is 108 x 144 (one of 3 ")


def refusal_in(capsys: pytest.CaptureFixture[str], output: str, *words: object) -> str:
    capsys.readouterr()
    assert run(*words, "--output", output, hr=False, metrics=("grid-8",)) == 5
    assert not Path(output).exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("allosr2: error: ")


def test_names_with_spaces_umlauts_and_slashes(here, capsys):
    odd = "unsere Größe = 4/5 | *a* {x}"
    names = {"Übergröße (neu)": "bicubic", "a b": "lanczos", "<i>&": "blocks"}
    assert run(*(f"{name}={what}" for name, what in names.items())) == 0
    table = Path("comparison/table.md").read_text()
    assert "Übergröße (neu)" in table
    folders = {path.name for path in Path("comparison").iterdir() if path.is_dir()}
    assert folders == {"Übergröße-neu", "a-b", "i", "crops"}
    page = Path("comparison/report.html").read_text()
    assert "<i>&" not in page
    capsys.readouterr()
    assert run(f"{odd}=bicubic", "--output", "o") == 2
    assert not Path("o").exists()
    # a name may hold no slash: it is a path then
    assert capsys.readouterr().err.startswith("allosr2: error: method 'unsere Größe = 4/5 ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "no method is named; name one or more, such as bicubic mini"),
        (("bicubic", "bicubic"), "two methods are called bicubic; name one otherwise, as NAME="),
        (("HR=bicubic",), "a method is called HR, as images are; name it otherwise"),
        (("a b=bicubic", "a-b=lanczos"), "method a-b: comparison/a-b is for something else; name "),
        (("crops=bicubic",), "method crops: comparison/crops is for something else; name "),
        (("table.md=bicubic",), "method table.md: comparison/table.md is for something else; "),
        (
            ("...=bicubic",),
            "method ...: comparison is for something else; name the method otherwise",
        ),
        (
            ("bicubik",),
            "method 'bicubik': bicubik is no file or folder; name one, bicubic, lanczos, ",
        ),
        (("bicubic", "lr"), "lr/a.png is 18 x 24 px, 4 times its LR image is 72 x 96 (one of 3 "),
        (("bicubic", "none=empty"), "empty holds no image; name a folder with images"),
        (("bicubic", "--crops", "-1"), "--crops is -1: use 0 or more"),
        (("bicubic", "--pages", "0"), "--pages is 0: use 1 or more"),
        (("bicubic", "--scale", "0"), "--scale is 0: use 1 or more"),
        (("bicubic", "--folder", "lr"), "name the images: --set NAME --folder DIR, or --lr DIR"),
        (("bicubic", "--set", "realsr"), "--set goes with --folder DIR, and without --lr and"),
        (("bicubic", "--device", "gpu"), "device is gpu: this machine has no such device; use "),
        (("bicubic", "--output", "lr/a.png"), "--output: lr/a.png cannot be made (File exists)"),
        (("x=program {lr}",), "method 'x=program {lr}': a command is named and takes both "),
    ],
)
def test_refusals_leave_nothing(here, capsys, words, expected):
    Path("empty").mkdir()
    assert refusal(capsys, *words).startswith(expected)


def test_refused_metrics_and_pairs(here, capsys):
    line = refusal(capsys, "bicubic", metrics=("pnsr",))
    assert line.startswith("metric pnsr is unknown: did you mean psnr")
    line = refusal(capsys, "bicubic", hr=False)
    assert line == "metric psnr compares with images of --hr: add that, or leave it out"
    save(Path("hr/b.png"), photo(1)[:-1])
    line = refusal(capsys, "bicubic")
    assert line == "hr/b.png is 72 x 95 px, no whole multiple of its LR image's 18 x 24; crop it"
    Path("hr/b.png").unlink()
    line = refusal(capsys, "bicubic")
    assert line.startswith("lr/b.png has no partner in hr: 3 images in lr, 2 in hr; ")


def test_images_too_small_for_a_metric_are_refused_before_anything_is_run(here, capsys):
    expected = "lr/a.png, enlarged by 4, is 72 x 96 px, grid 16 px needs sides of 128 or more; leave grid-16 "
    for hr in (True, False):
        line = refusal(capsys, command(), hr=hr, metrics=("grid-8", "grid-16"))
        assert line.startswith(expected)
    assert not Path("enlarge.calls").exists()


def test_results_in_the_place_of_a_methods_folder(here, capsys):
    """What a comparison keeps of a method must not lie among results."""
    for name in NAMES:
        save(Path("comparison/ours", f"{name}.png"), photo(0))
    before = files(Path("comparison"))
    assert run("comparison/ours") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "allosr2: error: method ours: comparison/ours is for results; name the method otherwise, as NAME=..."
    )
    assert files(Path("comparison")) == before
    assert run("mine=comparison/ours") == 0
    assert {f"ours/{name}.png" for name in NAMES} == {
        name for name in files(Path("comparison")) if name.startswith("ours/")
    }


def test_a_program_that_fails(here, capsys):
    assert run(command().replace("enlarge.py", "absent.py")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    log = Path("comparison/program/program.log")
    assert line.startswith(
        "allosr2: error: method program: its command ended with code 2 and said last: "
    )
    assert line.endswith(f"; all of it is in {log}")
    assert "absent.py" in log.read_text()
    assert not Path("comparison/table.md").exists()


def test_two_runs_into_one_folder(here, capsys):
    from allosr2.manifest import locked

    Path("comparison").mkdir()
    with locked(Path("comparison")):
        assert run("bicubic") == 2
    assert "another run is writing into comparison; wait for it" in capsys.readouterr().err


def test_sheets_are_of_the_images_that_methods_differ_most_on(here):
    """One is shown as it is in HR, and one in SR is spoilt: there sharpness and SSIM differ most."""
    for number, name in enumerate(NAMES):
        spoilt = 255 - photo(number) if name == "c d" else photo(number)
        save(Path("x", f"{name}.png"), spoilt)
    words = ("x", "itself=hr", "--pages", "1", "--crops")
    assert run(*words, "3", metrics=("sharpness",)) == 0
    assert len(list(Path("comparison/crops").iterdir())) == 3
    assert run(*words, "1", metrics=("sharpness",)) == 0
    assert [path.name for path in Path("comparison/crops").iterdir()] == ["c d.png"]
    value = float(sharpness(image_from_any(255 - photo(2)), image_from_any(photo(2))))
    text = Path("comparison/x/per_image.csv").read_text().splitlines()
    assert float(text[3].split(",")[1]) == pytest.approx(value, abs=1e-9)


def test_a_model_of_ours(here, tiny_model, capsys):
    assert run(f"ours={tiny_model}", metrics=("psnr",)) == 0
    assert Image.open("comparison/ours/results/b.png").size == (72, 96)
    table = Path("comparison/table.md").read_text()
    (note,) = [line for line in table.splitlines() if "ours: model" in line]
    assert "0.4, sha256 " in note


def test_realsr_beside_published_figures(shared_data, tmp_path, monkeypatch, capsys):
    """OSEDiff's figures of 20 images; the whole set is checked all the same."""
    monkeypatch.chdir(tmp_path)
    realsr = shared_data / "realsr"
    words = ["OSEDiff=" + str(realsr / "osediff"), "--common", "--set", "realsr"]
    options = ["--folder", str(realsr), "--metrics", "psnr", "--crops", "1", "--pages", "1"]
    assert main(["compare", *words, *options]) == 0
    table = Path("comparison/table.md").read_text()
    assert "Images measured: 20." in table
    assert "As published" not in table
    note = "RealSR, 20 of 100 images: published figures are of other images, and left out."
    assert note in table
    assert "<title>RealSR, 20 of 100 images" in Path("comparison/report.html").read_text()
    with (realsr / "osediff_published.csv").open() as stream:
        published = {line.split(",")[0]: line.split(",")[1] for line in stream}
    names = [path.name for path in (realsr / "osediff").glob("*.png")]
    mean = sum(float(published[name]) for name in names) / len(names)
    assert rows(table)["OSEDiff"][0] == f"{mean:.2f}"


@pytest.mark.slow
def test_the_whole_of_realsr(shared_data, tmp_path, monkeypatch):
    """Bicubic enlargement of all 100 pairs has the field's 27.11 dB, beside the figures of the paper."""
    monkeypatch.chdir(tmp_path)
    folder = ["--set", "realsr", "--folder", str(shared_data / "realsr")]
    options = ["--metrics", "psnr", "--crops", "1", "--pages", "1", "--device", "cpu"]
    assert main(["compare", "bicubic", *folder, *options]) == 0
    figures = rows()
    assert figures["bicubic"][0] == "27.11"
    assert figures["OSEDiff"][0] == "25.15"
    assert "Images measured: 100." in Path("comparison/table.md").read_text()
