"""Published figures: Tables 1 and 2 of arXiv:2604.19238, digit for digit as they are printed there."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from allosr2.evaluation.metrics import PAPER

SET_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "div2k-val": "DIV2K-Val",
        "realsr": "RealSR",
        "drealsr": "DRealSR",
        "reallq250": "RealLQ250",
    }
)
"""The sets of Table 1 in its order: their names in commands, and as the paper writes them."""

_TABLE_1_SOURCE = "arXiv:2604.19238, Table 1"
_TABLE_2_SOURCE = "arXiv:2604.19238, Table 2"


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """What a paper prints of one method, or of one setting of a method, on one set."""

    method: str
    """As the paper writes it."""
    steps: int
    """Steps of the sampler."""
    values: Mapping[str, str]
    """Metrics by name, as printed: `6.50` keeps its zero."""
    source: str
    """Paper and table."""


_METHODS = (
    ("StableSR", 200),
    ("SeeSR", 50),
    ("ResShift", 15),
    ("SinSR", 1),
    ("OSEDiff", 1),
    ("TSD-SR", 1),
    ("CTMSR", 1),
    ("Allo{SR}2", 1),
)

# a line a metric, a figure a method, as in the paper
_TABLE_1 = {
    "div2k-val": """
        psnr    23.31 23.71 24.69 24.43 23.72 23.02 24.87 22.98
        ssim    0.5728 0.6045 0.6175 0.6012 0.6108 0.5808 0.6349 0.6123
        lpips   0.3129 0.3207 0.3374 0.3262 0.2941 0.2673 0.3011 0.2854
        dists   0.2138 0.1967 0.2215 0.2066 0.1976 0.1821 0.2102 0.1964
        fid     24.67 25.83 36.01 35.45 26.32 29.16 25.07 24.94
        niqe    4.76 4.82 6.82 6.02 4.71 4.32 5.3036 4.18
        musiq   65.63 68.49 60.92 62.80 67.97 71.69 66.59 72.00
        maniqa  0.6188 0.6239 0.5450 0.5395 0.6148 0.6192 0.5146 0.6432
        clipiqa 0.6682 0.6857 0.6089 0.6499 0.6683 0.7416 0.6602 0.6837
    """,
    "realsr": """
        psnr    24.69 25.33 26.31 26.30 25.15 24.81 26.00 24.97
        ssim    0.7052 0.7273 0.7411 0.7354 0.7341 0.7172 0.7549 0.7432
        lpips   0.3091 0.2985 0.3489 0.3212 0.2921 0.2743 0.2905 0.2755
        dists   0.2167 0.2213 0.2498 0.2346 0.2128 0.2104 0.2204 0.2162
        fid     127.20 125.66 142.81 137.05 123.49 114.45 134.97 112.88
        niqe    5.76 5.38 7.27 6.31 5.65 5.13 5.60 5.08
        musiq   65.42 69.37 58.10 60.41 69.09 71.19 64.52 70.11
        maniqa  0.6211 0.6439 0.5305 0.5389 0.6326 0.6347 0.5269 0.6725
        clipiqa 0.6195 0.6594 0.5450 0.6204 0.6693 0.7160 0.6391 0.6750
    """,
    "drealsr": """
        psnr    28.04 28.26 28.45 28.41 27.92 27.77 28.68 27.95
        ssim    0.7460 0.7698 0.7632 0.7495 0.7835 0.7559 0.7830 0.7694
        lpips   0.3354 0.3197 0.4073 0.3741 0.2968 0.2967 0.3242 0.2989
        dists   0.2287 0.2306 0.2700 0.2488 0.2165 0.2136 0.2360 0.2128
        fid     147.03 149.86 175.92 177.05 135.30 134.98 161.24 132.48
        niqe    6.51 6.52 8.28 7.02 6.49 5.91 6.21 5.82
        musiq   58.50 64.84 49.86 55.34 64.65 66.62 59.93 66.95
        maniqa  0.5602 0.6026 0.4573 0.4898 0.5899 0.5874 0.4866 0.6264
        clipiqa 0.6171 0.6672 0.5259 0.6367 0.6963 0.7344 0.6451 0.6883
    """,
    "reallq250": """
        niqe    4.62 4.44 5.33 5.82 3.97 3.49 4.58 3.59
        musiq   63.52 59.27 57.53 63.73 69.55 72.09 68.00 72.51
        maniqa  0.6733 0.7037 0.6572 0.5161 0.5782 0.5829 0.5078 0.6303
        clipiqa 0.5160 0.7013 0.6129 0.6990 0.6725 0.7221 0.6706 0.7055
    """,
}

_TABLE_2 = {
    "realsr": {
        "w/o FATC": "25.81 0.7317 0.2724 0.2079 116.77 5.11 69.32 0.6564 0.6654",
        "w/o ATM": "26.17 0.7498 0.2573 0.1986 100.54 5.21 68.83 0.6453 0.6073",
        "Full": "24.97 0.7432 0.2755 0.2162 112.88 5.08 70.11 0.6725 0.675",
    },
    "drealsr": {
        "w/o FATC": "27.88 0.7641 0.3106 0.2105 139.74 6.04 63.49 0.6192 0.6357",
        "w/o ATM": "28.68 0.7717 0.3008 0.2003 121.75 6.19 62.77 0.6049 0.6147",
        "Full": "27.95 0.7694 0.2989 0.2128 132.48 5.82 66.95 0.6264 0.6883",
    },
}


def published_rows(set_name: str) -> tuple[PublishedRow, ...]:
    """Table 1's eight methods on a set of `SET_TITLES`, in its order; none for any other set."""
    lines = [line.split() for line in _TABLE_1.get(set_name, "").strip().splitlines()]
    if not lines:
        return ()
    by_metric = {name: figures for name, *figures in lines}
    return tuple(
        PublishedRow(
            method=method,
            steps=steps,
            values={name: figures[column] for name, figures in by_metric.items()},
            source=_TABLE_1_SOURCE,
        )
        for column, (method, steps) in enumerate(_METHODS)
    )


def published(set_name: str, method: str) -> PublishedRow | None:
    """Table 1's row of a method on a set; case and punctuation do not matter: `tsdsr` is TSD-SR."""
    key = _key(method)
    return next((row for row in published_rows(set_name) if _key(row.method) == key), None)


def published_ablation(set_name: str) -> tuple[PublishedRow, ...]:
    """Table 2's three settings on `realsr` or `drealsr`, in its order; none for any other set."""
    return tuple(
        PublishedRow(
            method=setting,
            steps=1,
            values=dict(zip(PAPER, figures.split(), strict=True)),
            source=_TABLE_2_SOURCE,
        )
        for setting, figures in _TABLE_2.get(set_name, {}).items()
    )


def _key(method: str) -> str:
    # NFKC makes a superscript 2 a plain one
    plain = unicodedata.normalize("NFKC", method).casefold()
    return "".join(character for character in plain if character.isalnum())
