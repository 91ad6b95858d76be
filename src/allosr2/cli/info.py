"""`allosr2 info`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from allosr2.cli.console import console

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Info:
    """Show a model's t*, scale, preset, base with its license, sizes, metrics and provenance.

    No weights are read, whatever the base's size.
    """

    model: Annotated[str, tyro.conf.Positional] = "mini"
    """A model folder (with `allosr2.json`), or `mini`, the model inside the package."""


def info(config: Info) -> int:
    """Print a table; returns the exit code."""
    from rich.table import Table

    from allosr2.backbones.base import codec_of
    from allosr2.backbones.known import outline
    from allosr2.licenses import describe_license
    from allosr2.model import ModelConfig, base_of, model_folder

    folder = model_folder(config.model)
    model = ModelConfig.read(folder)
    transformer, vae = outline(base_of(folder, model))
    codec = codec_of(vae)
    rows = [
        ("folder", str(folder)),
        ("t*", f"{model.t_star:.4f}"),
        ("scale", f"x{model.scale}"),
        ("preset", model.preset),
        ("base", model.base),
        ("license", describe_license(model.origin or model.base)),
        ("guidance", "none" if model.guidance is None else f"{model.guidance:g}"),
        ("text tokens", str(model.prompt_length)),
        ("latents", f"{codec.channels} channels, 1/{codec.factor} size"),
        ("VAE encoder", _count(codec.vae.encoder)),
        ("VAE decoder", _count(codec.vae.decoder)),
        ("transformer", _count(transformer)),
        ("adapters", _adapters(folder)),
        *((f"{m['metric']}, {m['dataset']}", f"{m['value']:g} ({m['by']})") for m in model.metrics),
    ]
    table = Table(title=config.model, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(overflow="fold")  # links are for copying
    for name, value in rows:
        table.add_row(name, value)
    if model.provenance:
        table.add_section()
        for name, value in _flatten("", model.provenance):
            table.add_row(name, value)
    console().print(table)
    return 0


def _count(module: nn.Module) -> str:
    return _parameters(sum(parameter.numel() for parameter in module.parameters()))


def _adapters(folder: Path) -> str:
    from allosr2.backbones.lora import adapter_totals

    count, ranks = adapter_totals(folder)
    return f"{_parameters(count)}, rank {' and '.join(map(str, ranks))}"


def _parameters(count: int) -> str:
    return f"{count:,} parameters"


def _flatten(prefix: str, value: object) -> list[tuple[str, str]]:
    """Nested provenance as rows, names joined by dots."""
    if not isinstance(value, dict):
        return [(prefix, str(value))]
    return [
        row
        for name, inner in value.items()
        for row in _flatten(f"{prefix}.{name}".lstrip("."), inner)
    ]
