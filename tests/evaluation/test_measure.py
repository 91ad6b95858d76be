"""Folders measured: which images belong together, what is kept, what is refused."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from allosr2.errors import DataError, ImageError
from allosr2.evaluation.measure import Pair, measure, pair_images
from allosr2.evaluation.metrics import METRICS
from allosr2.evaluation.scorers import Scorer
from allosr2.imaging.io import write_image
from allosr2.imaging.picture import Picture


def mean_difference(calls: list[str] | None = None, metric: str = "psnr") -> Scorer:
    """A metric whose value can be told beforehand: 255 times the mean of SR less HR."""

    def of_image(sr: Tensor, hr: Tensor | None) -> float:
        if calls is not None:
            calls.append(threading.current_thread().name)
        return 255 * float((sr if hr is None else sr - hr).mean())

    return Scorer(metric=METRICS[metric], by="test 1", of_image=of_image)


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Pair]:
    """Gray levels 10, 11, 12 ... against 0."""
    made: dict[str, Pair] = {}
    for number in range(5):
        name = f"image{number}"
        sr, hr = tmp_path / f"{name}_sr.png", tmp_path / f"{name}_hr.png"
        write_image(sr, Picture(color=np.full((64, 64, 3), 10 + number, np.uint8)))
        write_image(hr, Picture(color=np.zeros((64, 64, 3), np.uint8)))
        made[name] = Pair(sr=sr, hr=hr)
    return made


EXPECTED = {f"image{number}": {"psnr": 10.0 + number} for number in range(5)}


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_values_and_their_order_do_not_depend_on_the_workers(pairs, workers):
    threads = torch.get_num_threads()
    done: list[int] = []
    measured = measure(pairs, [mean_difference()], workers=workers, progress=done.append)
    assert list(measured.images) == list(pairs)
    for name, values in EXPECTED.items():
        assert measured.images[name] == pytest.approx(values, abs=1e-4)
    assert done == [1, 2, 3, 4, 5]
    assert torch.get_num_threads() == threads


def test_what_is_known_is_not_computed_again(pairs, tmp_path):
    calls: list[str] = []
    journal = tmp_path / "journal"
    first = measure(pairs, [mean_difference(calls)], journal=journal)
    assert len(calls) == 5
    assert measure(pairs, [mean_difference(calls)], journal=journal) == first
    assert len(calls) == 5


def test_other_pixels_metrics_and_weights_are_computed_anew(pairs, tmp_path):
    calls: list[str] = []
    journal = tmp_path / "journal"
    made = mean_difference(calls)
    measure(pairs, [made], journal=journal)
    write_image(pairs["image3"].sr, Picture(color=np.full((64, 64, 3), 99, np.uint8)))
    assert measure(pairs, [made], journal=journal).images["image3"]["psnr"] == pytest.approx(99)
    assert len(calls) == 6
    other = Scorer(metric=made.metric, by="test 2", of_image=made.of_image)
    measure(pairs, [other], journal=journal)
    assert len(calls) == 11
    weighted = Scorer(metric=made.metric, by="test 2", weights={"w": "1"}, of_image=made.of_image)
    measure(pairs, [weighted], journal=journal)
    assert len(calls) == 16


def test_a_stopped_run_goes_on(pairs, tmp_path):
    journal = tmp_path / "journal"

    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(pairs, [mean_difference()], journal=journal, workers=1, progress=stop)
    with journal.open("a") as stream:
        stream.write('\n["torn')
    calls: list[str] = []
    measured = measure(pairs, [mean_difference(calls)], journal=journal, workers=1)
    assert 1 <= len(calls) <= 2
    assert measured.images["image4"]["psnr"] == pytest.approx(14)
    # the torn line harms nothing that is written after it
    measure(pairs, [mean_difference(calls)], journal=journal)
    assert len(calls) <= 2
    lines = [line for line in journal.read_text().splitlines() if line and line != '["torn']
    assert len([json.loads(line) for line in lines]) == 5


def test_metrics_of_a_set_see_all_files_in_order(pairs, tmp_path):
    seen: list[list[str]] = []

    def of_set(sr: list[Path], hr: list[Path]) -> float:
        seen.append([path.name for path in (*sr, *hr)])
        return 7.0

    made = Scorer(metric=METRICS["fid"], by="test 1", of_set=of_set)
    for _ in range(2):
        measured = measure(pairs, [mean_difference(), made], journal=tmp_path / "journal")
        assert measured.of_set == {"fid": 7.0}
    (names,) = seen
    assert names == [f"image{n}_{part}.png" for part in ("sr", "hr") for n in range(5)]


def test_one_hr_image_is_enough_for_metrics_that_need_none(pairs):
    alone = {name: Pair(sr=pair.sr) for name, pair in pairs.items()}
    measured = measure(alone, [mean_difference(metric="grid-8")], workers=1)
    assert measured.images["image2"]["grid-8"] == pytest.approx(12)


def test_what_is_no_rgb_of_8_bits_is_said_and_measured(tmp_path, caplog):
    levels = {"gray": np.full((64, 64, 1), 20, np.uint8)}
    levels["deep"] = np.full((64, 64, 3), 20 * 257 + 100, np.uint16)
    for name, color in levels.items():
        write_image(tmp_path / f"{name}.png", Picture(color=color))
    alone = {name: Pair(sr=tmp_path / f"{name}.png") for name in levels}
    with caplog.at_level(logging.WARNING):
        measured = measure(alone, [mean_difference(metric="grid-8")])
    assert [values["grid-8"] for values in measured.images.values()] == pytest.approx([20, 20])
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 images are not RGB of 8 bits and were converted, "
        f"one of them {tmp_path / 'deep.png'} (rounded from 16 bits)"
    )


def test_an_image_that_is_too_small_or_has_no_value(tmp_path, pairs):
    with pytest.raises(
        ImageError, match=r"image\d_sr.png is 64 x 64 px, NIQE needs sides of 192 or more"
    ):
        measure(pairs, [mean_difference(metric="niqe")])
    empty = Scorer(metric=METRICS["psnr"], by="test", of_image=lambda *_: float("nan"))
    with pytest.raises(ImageError, match=r"PSNR is nan, as of a picture of one color"):
        measure(pairs, [empty], journal=tmp_path / "journal")
    assert not (tmp_path / "journal").exists()


def test_settings_of_the_process_are_as_before(pairs, monkeypatch):
    """Values are computed in float32 as it is; what the process had is put back, whoever ran last."""

    def settings() -> tuple[object, ...]:
        cudnn = torch.backends.cudnn
        return (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_num_threads())

    seen: list[object] = []

    def of_image(sr: Tensor, hr: Tensor | None) -> float:
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
        return 0.0

    before = settings()
    torch.set_float32_matmul_precision("high")
    try:
        measure(pairs, [Scorer(metric=METRICS["psnr"], by="test", of_image=of_image)], workers=3)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [(False, "highest")] * 5
    assert settings() == before


def test_values_of_another_device_are_not_taken(pairs, tmp_path):
    calls: list[str] = []
    made = mean_difference(calls)
    measure(pairs, [made], journal=tmp_path / "journal")
    other = Scorer(metric=made.metric, by=made.by, device="cuda", of_image=made.of_image)
    measure(pairs, [other], journal=tmp_path / "journal")
    assert len(calls) == 10


def test_memory_that_runs_out_is_said(pairs):
    def of_image(sr: Tensor, hr: Tensor | None) -> float:
        raise torch.OutOfMemoryError

    made = Scorer(metric=METRICS["psnr"], by="test", of_image=of_image)
    with pytest.raises(ImageError, match="memory ran out for PSNR; use --workers 1"):
        measure(pairs, [made])


def test_one_image_is_no_set(pairs):
    made = Scorer(metric=METRICS["fid"], by="test", of_set=lambda *_: 0.0)
    with pytest.raises(DataError, match="FID compares sets of 2 images or more"):
        measure({"image0": pairs["image0"]}, [made])
    empty = Scorer(metric=METRICS["fid"], by="test", of_set=lambda *_: float("nan"))
    with pytest.raises(DataError, match="FID is nan; leave fid out"):
        measure(pairs, [empty])


def test_sizes_that_differ(tmp_path):
    write_image(tmp_path / "sr.png", Picture(color=np.zeros((8, 9, 3), np.uint8)))
    write_image(tmp_path / "hr.png", Picture(color=np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(DataError, match=r"sr\.png is 9 x 8 px, .*hr\.png is 8 x 8; measure"):
        pair_images({"a": tmp_path / "sr.png"}, {"a": tmp_path / "hr.png"})
