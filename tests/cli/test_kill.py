"""`allosr2 upscale` in a process of its own: killed, interrupted, and without a reader."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.pictures import save_noise
from PIL import Image

from allosr2.manifest import LOCK, MANIFEST

logger = logging.getLogger(__name__)

PICTURES = 40


def interruptible() -> None:
    """Undo that shells have SIGINT ignored in what they run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start(tiny_model) -> Callable[..., subprocess.Popen[bytes]]:
    def upscale(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "allosr2", "upscale", *map(str, arguments)]
        return subprocess.Popen(
            [*command, "--model", str(tiny_model), "--device", "cpu"],
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            preexec_fn=interruptible,
            **options,
        )

    return upscale


def results(folder: Path) -> dict[str, bytes]:
    """What has a final name in a folder and the folders inside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("[!.]*")
        if path.is_file()
    }


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_kills(start, tmp_path, kills):
    """Killed at random moments of its work, it never shows part of a file, and goes on to the same files."""
    generator = random.Random(0)
    for index in range(PICTURES):
        folder = tmp_path / "lr" / ("deep" if index % 2 else "")
        save_noise(folder / f"{index}.png", 30 + index, 40)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "sr"

    process = start(tmp_path / "lr", "-r", "--output", undisturbed)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    expected = results(undisturbed)
    assert len(expected) == PICTURES

    killed = at_work = finished = 0
    while killed < kills:
        process = start(tmp_path / "lr", "-r", "--output", folder)
        # a moment while it starts, or any time within the next files
        enough = len(results(folder)) + generator.randint(0, 10)
        while len(results(folder)) < enough and process.poll() is None:
            time.sleep(0.001)
        time.sleep(generator.uniform(0, 0.1))
        if process.poll() is None:
            process.kill()
            process.communicate()
            killed += 1
            found = results(folder)
            at_work += 0 < len(found) < PICTURES
            assert found.items() <= expected.items()
        else:
            process.communicate()
        if results(folder) == expected:
            shutil.rmtree(folder)
            finished += 1

    before = {folder / name: (folder / name).stat().st_mtime_ns for name in results(folder)}
    process = start(tmp_path / "lr", "-r", "--output", folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert results(folder) == expected
    assert {path: path.stat().st_mtime_ns for path in before} == before
    hidden = {path.name for path in folder.rglob(".*")}
    assert hidden <= {MANIFEST, LOCK}
    assert at_work > 0
    logger.info(
        "%d kills, %d of them between a folder's first file and its last; %d folders",
        killed,
        at_work,
        finished + 1,
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_interrupt_ends_it_within_a_second(start, tmp_path):
    for index in range(3):
        save_noise(tmp_path / "lr" / f"{index}.png", 40 + 400 * index, 400)
    report = tmp_path / "report.json"
    process = start(tmp_path / "lr", "--output", tmp_path / "sr", "--json", report)
    wait_for(lambda: bool(results(tmp_path / "sr")), process)
    time.sleep(0.3)  # into the tiles of the next
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    seconds = time.monotonic() - began
    assert process.returncode == 130
    (line,) = errors.decode().splitlines()
    assert line.startswith("allosr2: interrupted, 1 of 3 images done")
    assert line.endswith("; the same command goes on from there")
    assert seconds < 1
    assert list(results(tmp_path / "sr")) == ["0.png"]
    assert {path.name for path in (tmp_path / "sr").glob(".*")} <= {MANIFEST, LOCK}
    found = json.loads(report.read_text())
    assert found["interrupted"] is True
    assert [file["status"] for file in found["files"]] == ["done"]


def test_a_second_interrupt_leaves_whole_files(start, tmp_path):
    for index in range(3):
        save_noise(tmp_path / "lr" / f"{index}.png", 40 + 400 * index, 400)
    process = start(tmp_path / "lr", "--output", tmp_path / "sr")
    wait_for(lambda: bool(results(tmp_path / "sr")), process)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGINT)
    assert list(results(tmp_path / "sr")) == ["0.png"]
    Image.open(tmp_path / "sr" / "0.png").load()


def test_a_folder_is_done_though_nobody_reads_the_names(start, tmp_path):
    for index in range(5):
        save_noise(tmp_path / "lr" / f"{index}.png", 30 + index, 40)
    process = start(tmp_path / "lr", "--output", tmp_path / "sr")
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait() == 0
    assert errors.startswith("allosr2: 5 of 5 images done")
    assert len(results(tmp_path / "sr")) == 5


def test_an_unbuffered_stdout_gets_the_whole_picture(start, tmp_path):
    source = save_noise(tmp_path / "lr.png", 160, 160)
    assert start(source, "--output", tmp_path / "sr.png").wait() == 0
    process = start(source, "--output", "-", env=os.environ | {"PYTHONUNBUFFERED": "1"})
    found, _ = process.communicate()
    assert process.returncode == 0
    assert found == (tmp_path / "sr.png").read_bytes()
    assert len(found) > 2**17  # more than a pipe holds


def test_a_reader_that_is_gone(start, tmp_path):
    source = save_noise(tmp_path / "lr.png", 60, 80)
    process = start(source, "--output", "-", "--json", tmp_path / "report.json")
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(), errors) == (1, b"")
    (file,) = json.loads((tmp_path / "report.json").read_text())["files"]
    assert file["status"] == "failed"
