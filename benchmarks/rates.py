"""What this processor reaches in products of matrices, 3x3 convolutions and attention of the sizes in `mini`.

    python benchmarks/rates.py

GFLOP/s, medians of 15 warm calls, one thread for each core; convolutions in channels_last.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from allosr2.devices import describe_device

CALLS = 15
CONVOLUTIONS = ((16, 512), (32, 256), (64, 128), (128, 64), (256, 64))
"""Channels, and side of the plane in pixels."""
TOKENS, HEADS, HEAD = 1024, 4, 64
"""Of the FLUX transformer that ships, at 512 px."""
SIDE = 2048


@torch.inference_mode()
def main() -> None:
    """Print a Markdown table."""
    print("| | float32 | bfloat16 |\n|---|---|---|")
    rows: dict[str, Callable[[torch.dtype], float]] = {f"{SIDE} x {SIDE} matrices": _product}
    for channels, side in CONVOLUTIONS:
        rows[f"3x3, {channels} channels, {side} px"] = partial(_convolution, channels, side)
    rows[f"attention, {HEADS} heads of {HEAD}, {TOKENS} tokens"] = _attention
    for name, rate in rows.items():
        print(f"| {name} | {rate(torch.float32):.0f} | {rate(torch.bfloat16):.0f} |")
    print(f"\n{describe_device(torch.device('cpu'))}; torch {torch.__version__}")


def _product(dtype: torch.dtype) -> float:
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype) for _ in range(2))
    return _rate(lambda: a @ b, 2 * SIDE**3)


def _convolution(channels: int, side: int, dtype: torch.dtype) -> float:
    x, weight = (
        torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((1, channels, side, side), (channels, channels, 3, 3))
    )
    return _rate(lambda: functional.conv2d(x, weight, padding=1), 2 * 9 * channels**2 * side**2)


def _attention(dtype: torch.dtype) -> float:
    q, k, v = (torch.randn(1, HEADS, TOKENS, HEAD, dtype=dtype) for _ in range(3))
    return _rate(
        lambda: functional.scaled_dot_product_attention(q, k, v), 4 * HEADS * TOKENS**2 * HEAD
    )


def _rate(compute: Callable[[], Tensor], flops: int) -> float:
    """GFLOP/s of a call."""
    for _ in range(2):
        compute()
    times: list[float] = []
    for _ in range(CALLS):
        start = time.perf_counter()
        compute()
        times.append(time.perf_counter() - start)
    return flops / statistics.median(times) / 1e9


if __name__ == "__main__":
    main()
