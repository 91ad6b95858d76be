"""Means, their intervals, and the files that hold them."""

from __future__ import annotations

import json
import math
import random

import pytest

from allosr2.evaluation.metrics import METRICS
from allosr2.evaluation.scorers import Scorer
from allosr2.evaluation.summary import Measured, interval, per_image_csv, record

MEASURED = Measured(
    images={"a": {"psnr": 20.0, "ssim": 0.5}, "b": {"psnr": 30.0, "ssim": 0.1 + 0.2}},
    of_set={"fid": 12.5},
    skipped={"lpips": "its weights are absent"},
)


def test_means_over_images_and_figures_of_the_set():
    assert MEASURED.means() == pytest.approx({"psnr": 25.0, "ssim": 0.4, "fid": 12.5})


def test_the_interval_of_many_draws_is_that_of_the_normal_law():
    generator = random.Random(0)
    values = [generator.gauss(3.0, 2.0) for _ in range(400)]
    mean = sum(values) / 400
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 399)
    low, high = interval(values)
    half = 1.96 * deviation / math.sqrt(400)
    assert low == pytest.approx(mean - half, abs=0.05 * half)
    assert high == pytest.approx(mean + half, abs=0.05 * half)
    assert interval(values) == (low, high)


@pytest.mark.parametrize("values", [[4.0], [4.0, 4.0, 4.0]])
def test_the_interval_of_one_value_is_that_value(values):
    assert interval(values) == (4.0, 4.0)


def test_the_table_of_images_keeps_every_digit():
    assert per_image_csv(MEASURED).splitlines() == [
        "image,psnr,ssim",
        "a,20.0,0.5",
        "b,30.0,0.30000000000000004",
    ]


def test_the_record_says_what_computed_a_figure():
    scorers = [
        Scorer(metric=METRICS["psnr"], by="pyiqa 9"),
        Scorer(metric=METRICS["fid"], by="pyiqa 9", weights={"inception.pth": "abc"}),
    ]
    held = json.loads(record(MEASURED, scorers, sr="results"))
    assert held["sr"] == "results"
    assert held["images"] == 2
    assert held["metrics"]["psnr"]["mean"] == 25.0
    assert (held["metrics"]["psnr"]["low"], held["metrics"]["psnr"]["high"]) == (20.0, 30.0)
    assert held["metrics"]["fid"] == {
        "mean": 12.5,
        "by": "pyiqa 9",
        "weights_sha256": {"inception.pth": "abc"},
    }
    assert held["skipped"] == {"lpips": "its weights are absent"}
    assert held["versions"].keys() >= {"allosr2", "torch", "pyiqa", "python"}
