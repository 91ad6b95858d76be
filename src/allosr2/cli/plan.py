"""`allosr2 train RECIPE --dry-run`: what a run will need, and whether a GPU has it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from allosr2.cli.console import console
from allosr2.errors import ConfigError
from allosr2.training.config import AlloSR2Training, TrainingConfig

if TYPE_CHECKING:
    from allosr2.training.plan import Plan

_A100 = 80_000_000_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB)")


def print_plan(config: TrainingConfig, fits: str | None) -> int:
    """Print tables and whether the run fits; returns the exit code, which is 0 for one that does not too.

    Raises ConfigError for a recipe that has no base, and for a size that is none.
    """
    if not isinstance(config, AlloSR2Training):
        raise ConfigError(
            f"recipe is {config.run.recipe}: --dry-run knows recipes that train adapters on a base, such as "
            "mini or flux-dev-x4; this one is small, just start it"
        )
    room, device = (_size(fits), "as asked") if fits else _memory(config.run.device)

    from allosr2.training.plan import plan, remedies

    needed = plan(config)
    _print_parameters(config, needed)
    _print_memory(needed)
    _print_step(config, needed)
    if config.perceptual.perceptual_weight and not config.perceptual.used:
        console().print("without LPIPS: --perceptual names no file of its weights")
    does = "fits" if needed.total <= room else "does not fit"
    console().print(f"{_gigabytes(needed.total)} {does} in {_gigabytes(room)} ({device})")
    if needed.total > room:
        for remedy in remedies(config, needed):
            less = _gigabytes(needed.total - remedy.total)
            verdict = "fits" if remedy.total <= room else "not enough"
            console().print(
                f"  {remedy.change}: {less} less, {_gigabytes(remedy.total)}, {verdict}"
            )
    return 0


def _print_parameters(config: AlloSR2Training, plan: Plan) -> None:
    from allosr2.licenses import describe_license
    from allosr2.model import named_base, origin_of

    rows = [
        ("base", config.base),
        ("license", describe_license(origin_of(named_base(config.base)))),
        *((f"parameters, {part}", f"{count:,}") for part, count in plan.parameters.items()),
        (f"trainable, rank {config.adapter.rank}", f"{plan.trainable:,}"),
        *((f"  {layer}", f"{count:,}") for layer, count in plan.adapters.items()),
        ("tokens of an image", f"{plan.image_tokens:,}"),
        ("tokens of the text", f"{plan.text_tokens:,} ({plan.text_source})"),
        ("tokens of a step", f"{plan.tokens:,} in {plan.sequences} sequences"),
    ]
    _print_table(config.run.recipe, (), rows)


def _print_memory(plan: Plan) -> None:
    rows = [(part, _gigabytes(size)) for part, size in plan.memory.items() if size]
    images = "1 image" if plan.images == 1 else f"{plan.images} images"
    title = f"memory of each device, {images} a pass"
    _print_table(title, ("part", "size"), [*rows, ("total", _gigabytes(plan.total))])


def _print_step(config: AlloSR2Training, plan: Plan) -> None:
    rows = [(phase.name, _teraflops(phase.flops), _gigabytes(phase.peak)) for phase in plan.phases]
    title = f"one step, {config.run.batch_size} images; activations of one pass"
    columns = ("phase", "FLOPs", "activations, at most")
    _print_table(title, columns, [*rows, ("total", _teraflops(plan.flops), "")])


def _print_table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*columns, title=title, show_header=bool(columns), title_justify="left")
    for _ in range(0 if columns else 2):
        table.add_column(overflow="fold")  # links are for copying
    for row in rows:
        if row[0] == "total":
            table.add_section()
        table.add_row(*row)
    console().print(table)


def _memory(device: str) -> tuple[int, str]:
    """Bytes of the run's GPU and its name; where there is none, of the GPU that the paper trained on."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        index = torch.device("cuda" if device == "auto" else device).index or 0
        properties = torch.cuda.get_device_properties(index)
        return properties.total_memory, properties.name
    return _A100, "an A100, as there is no GPU here; name another size with --fits"


def _size(text: str) -> int:
    """Bytes of a size such as 24GB. Raises ConfigError for what is none."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ConfigError(f"fits is {text}: write a size such as 24GB or 22.5GiB")
    return int(float(match[1]) * (10**9 if match[2] == "GB" else 2**30))


def _gigabytes(size: int) -> str:
    return f"{size / 10**9:.2f} GB"


def _teraflops(flops: int) -> str:
    return f"{flops / 10**12:,.1f} TFLOP"
