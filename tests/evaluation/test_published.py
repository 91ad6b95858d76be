from __future__ import annotations

from decimal import Decimal

import pytest

from allosr2.evaluation.metrics import METRICS, PAPER
from allosr2.evaluation.published import (
    SET_TITLES,
    published,
    published_ablation,
    published_rows,
)

TYPED_FROM_TABLE_1 = [
    ("div2k-val", "StableSR", "psnr", "23.31"),
    ("div2k-val", "CTMSR", "niqe", "5.3036"),
    ("div2k-val", "Allo{SR}2", "musiq", "72.00"),
    ("div2k-val", "SeeSR", "fid", "25.83"),
    ("realsr", "OSEDiff", "psnr", "25.15"),
    ("realsr", "OSEDiff", "fid", "123.49"),
    ("realsr", "TSD-SR", "clipiqa", "0.7160"),
    ("realsr", "ResShift", "niqe", "7.27"),
    ("realsr", "Allo{SR}2", "maniqa", "0.6725"),
    ("drealsr", "SinSR", "dists", "0.2488"),
    ("drealsr", "StableSR", "musiq", "58.50"),
    ("drealsr", "Allo{SR}2", "lpips", "0.2989"),
    ("reallq250", "SeeSR", "maniqa", "0.7037"),
    ("reallq250", "TSD-SR", "niqe", "3.49"),
    ("reallq250", "Allo{SR}2", "clipiqa", "0.7055"),
]


@pytest.mark.parametrize(("set_name", "method", "metric", "figure"), TYPED_FROM_TABLE_1)
def test_table_1(set_name, method, metric, figure):
    row = published(set_name, method)
    assert row is not None
    assert row.values[metric] == figure
    assert row.source == "arXiv:2604.19238, Table 1"


def test_number_of_figures():
    rows = [row for name in SET_TITLES for row in published_rows(name)]
    assert sum(len(row.values) for row in rows) == (7 + 1) * (9 * 3 + 4)
    assert all(set(row.values) <= set(METRICS) for row in rows)


def test_methods_and_steps_in_the_papers_order():
    for name in SET_TITLES:
        assert [(row.method, row.steps) for row in published_rows(name)] == [
            ("StableSR", 200),
            ("SeeSR", 50),
            ("ResShift", 15),
            ("SinSR", 1),
            ("OSEDiff", 1),
            ("TSD-SR", 1),
            ("CTMSR", 1),
            ("Allo{SR}2", 1),
        ]


@pytest.mark.parametrize(
    ("metric", "total"), [("psnr", "203.56"), ("ssim", "5.8584"), ("fid", "1018.51")]
)
def test_sums_of_realsr(metric, total):
    # the printed figures of all eight methods added up: one wrong digit anywhere changes it
    assert sum(Decimal(row.values[metric]) for row in published_rows("realsr")) == Decimal(total)


def test_no_reference_set_has_no_reference_metrics():
    assert all(
        list(row.values) == ["niqe", "musiq", "maniqa", "clipiqa"]
        for row in published_rows("reallq250")
    )


@pytest.mark.parametrize(
    ("written", "method"),
    [
        ("osediff", "OSEDiff"),
        ("tsd_sr", "TSD-SR"),
        ("TSDSR", "TSD-SR"),
        ("allosr2", "Allo{SR}2"),
        ("Allo{SR}^2", "Allo{SR}2"),
        ("Allo{SR}²", "Allo{SR}2"),
    ],
)
def test_names_match_without_case_and_punctuation(written, method):
    row = published("realsr", written)
    assert row is not None
    assert row.method == method


def test_unknown_methods_and_sets_have_no_rows():
    assert published("realsr", "bicubic") is None
    assert published("own", "osediff") is None
    assert published_rows("own") == published_ablation("div2k-val") == ()


def test_table_2():
    realsr, drealsr = published_ablation("realsr"), published_ablation("drealsr")
    assert [row.method for row in realsr] == ["w/o FATC", "w/o ATM", "Full"]
    assert realsr[0].values["fid"] == "116.77"
    assert realsr[1].values["psnr"] == "26.17"
    assert realsr[2].values["clipiqa"] == "0.675"
    assert drealsr[0].values["niqe"] == "6.04"
    assert drealsr[1].values["dists"] == "0.2003"
    assert all(tuple(row.values) == PAPER for row in (*realsr, *drealsr))


def test_full_setting_of_table_2_is_the_method_of_table_1():
    for name in ("realsr", "drealsr"):
        full, method = published_ablation(name)[2], published(name, "allosr2")
        assert method is not None
        assert {key: Decimal(text) for key, text in full.values.items()} == {
            key: Decimal(text) for key, text in method.values.items()
        }
