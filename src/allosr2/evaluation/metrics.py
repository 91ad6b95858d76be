"""The metrics that results are judged by: what each is called, what it needs, and which way it points.

The paper's nine follow the field's protocol (the one that reproduces published figures): PSNR and SSIM of Y of
YCbCr (BT.601, 16 to 235) without a border crop, LPIPS on AlexNet, MUSIQ trained on KonIQ, MANIQA on PIPAL,
CLIPIQA (not +), FID between the two folders as clean-fid computes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric, as tables and commands know it."""

    name: str
    """As commands name it, such as `lpips`."""
    title: str
    """As tables head it, such as `LPIPS`."""
    lower_is_better: bool
    digits: int
    """Decimal places that tables show."""
    against: Literal["hr", "lr"] | None
    """What it compares results with; None if with nothing."""
    least_side: int = 1
    """Pixels that an image's sides need at least."""
    target: float | None = None
    """The best value, where it is neither the least nor the greatest."""
    of_set: bool = False
    """Whether it is one number of all images together, not one an image."""

    @property
    def arrow(self) -> str:
        """Which way is better."""
        if self.target is not None:
            return f"→ {self.target:g}"
        return "↓" if self.lower_is_better else "↑"

    def worse(self, value: float) -> float:
        """A number that is the greater, the worse a value is."""
        if self.target is not None:
            return abs(value - self.target)
        return value if self.lower_is_better else -value


def _metric(
    name: str,
    title: str,
    digits: int,
    *,
    lower: bool,
    against: Literal["hr", "lr"] | None = "hr",
    least_side: int = 1,
    target: float | None = None,
    of_set: bool = False,
) -> Metric:
    return Metric(
        name=name,
        title=title,
        lower_is_better=lower,
        digits=digits,
        against=against,
        least_side=least_side,
        target=target,
        of_set=of_set,
    )


_ALL = (
    _metric("psnr", "PSNR", 2, lower=False),
    _metric("ssim", "SSIM", 4, lower=False, least_side=11),
    _metric("lpips", "LPIPS", 4, lower=True, least_side=64),
    _metric("dists", "DISTS", 4, lower=True, least_side=32),
    _metric("fid", "FID", 2, lower=True, of_set=True),
    # a covariance over blocks of 96 px: two blocks are the least
    _metric("niqe", "NIQE", 2, lower=True, against=None, least_side=192),
    _metric("musiq", "MUSIQ", 2, lower=False, against=None, least_side=32),
    _metric("maniqa", "MANIQA", 4, lower=False, against=None, least_side=224),
    _metric("clipiqa", "CLIPIQA", 4, lower=False, against=None, least_side=32),
    _metric("lpips-squeeze", "LPIPS (SqueezeNet)", 4, lower=True, least_side=32),
    _metric("sharpness", "sharpness", 3, lower=False),
    _metric("color-shift", "color shift /255", 3, lower=True, against="lr"),
    _metric("grid-8", "grid 8 px", 3, lower=True, against=None, target=1.0, least_side=64),
    _metric("grid-16", "grid 16 px", 3, lower=True, against=None, target=1.0, least_side=128),
)

METRICS: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in _ALL})
"""Every metric by its name, in the order of tables: the paper's nine, then this package's own."""

PAPER = tuple(METRICS)[:9]
"""The metrics of the paper's tables."""
