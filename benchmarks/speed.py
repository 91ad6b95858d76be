"""128 -> 512 px on this processor: `mini` beside RRDBNet-23, Real-ESRGAN x4plus's network.

    python benchmarks/speed.py [--repeats 7]

The networks alone, warm, without reading, color and writing: by PyTorch (channels_last) and by OpenVINO, in
float32 and, where the processor has it, in bfloat16. All take turns, so that what else the machine does falls
on all alike; seconds are medians. RRDBNet-23 has random weights, which take as long as any.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, cast

import torch
import tyro
from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet
from torch import Tensor, nn

from allosr2.backends import compile_on_cpu, import_openvino
from allosr2.devices import computes_bfloat16, describe_device
from allosr2.model import AlloSR2
from allosr2.runner import Runner

LR, SCALE, WARM_UP = 128, 4, 2
Enlarge = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is measured."""

    model: str = "mini"
    """A model folder whose flow is made of convolutions, or `mini`."""
    repeats: int = 7
    """Calls that are timed, after two that are not."""


@torch.inference_mode()
def main(options: Options) -> None:
    """Print a Markdown table, and the best of each network."""
    half = ("bfloat16",) if computes_bfloat16(torch.device("cpu")) else ()
    precisions = ("float32", *half)
    ours: dict[str, Enlarge] = {}
    theirs: dict[str, Enlarge] = {}
    for backend in ("torch", "openvino"):
        for precision in precisions:
            ours[f"{backend}, {precision}"] = _model(options.model, backend, precision)
            theirs[f"{backend}, {precision}"] = _rrdbnet(backend, precision)
    calls = {("mini", way): call for way, call in ours.items()}
    calls |= {("RRDBNet-23", way): call for way, call in theirs.items()}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for repeat in range(WARM_UP + options.repeats):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat >= WARM_UP:
                seconds[key].append(time.perf_counter() - start)
    medians = {key: statistics.median(times) for key, times in seconds.items()}
    print("| | mini, s | RRDBNet-23, s | ratio |\n|---|---|---|---|")
    for way in ours:
        mine, other = medians["mini", way], medians["RRDBNet-23", way]
        print(f"| {way} | {mine:.3f} | {other:.3f} | 1/{other / mine:.1f} |")
    best = {
        name: min((time, way) for (of, way), time in medians.items() if of == name)
        for name in ("mini", "RRDBNet-23")
    }
    (mine, my_way), (other, other_way) = best["mini"], best["RRDBNet-23"]
    print(f"| best | {mine:.3f} ({my_way}) | {other:.3f} ({other_way}) | 1/{other / mine:.1f} |")
    print(
        f"\n{describe_device(torch.device('cpu'))}; torch {torch.__version__}, "
        f"openvino {version('openvino')}"
    )


def _model(name: str, backend: str, precision: str) -> Enlarge:
    """The model as `allosr2 upscale` runs it on a tile."""
    runner = Runner(
        AlloSR2.from_pretrained(name).merge(),
        "cpu",
        precision=cast(Any, precision),
        backend=cast(Any, backend),
    )
    image = torch.rand(1, 3, SCALE * LR, SCALE * LR)
    return lambda: runner.apply(runner.decode, runner.apply(runner.encode, image, "here"), "here")


def _rrdbnet(backend: str, precision: str) -> Enlarge:
    network: nn.Module = RRDBNet(num_filters=64, num_blocks=23, scale=SCALE).eval()
    image = torch.rand(1, 3, LR, LR)
    if backend == "openvino":
        compiled = _compiled(network, image, precision)
        return lambda: torch.from_numpy(compiled(image.numpy())[0])
    dtype = getattr(torch, precision)
    network = network.to(dtype).to(memory_format=torch.channels_last)
    laid_out = image.to(dtype).contiguous(memory_format=torch.channels_last)
    return lambda: network(laid_out)


def _compiled(network: nn.Module, image: Tensor, precision: str) -> Any:  # noqa: ANN401
    with torch.inference_mode(mode=False), torch.no_grad():
        converted = import_openvino().convert_model(
            network.requires_grad_(False), example_input=torch.zeros(image.shape)
        )
    converted.reshape(list(image.shape))
    return compile_on_cpu(converted, getattr(torch, precision))


if __name__ == "__main__":
    main(tyro.cli(Options))
