"""`allosr2 info`: what a model is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from allosr2.cli.console import console

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Info:
    """Show a model's t*, scale, preset, base, sizes and provenance."""

    model: Annotated[str, tyro.conf.Positional] = "mini"
    """A model folder (with `allosr2.json`), or `mini`, the model inside the package."""


def info(config: Info) -> int:
    """Print a table; returns the exit code."""
    from rich.table import Table

    from allosr2.licenses import describe_license
    from allosr2.model import AlloSR2, model_folder

    model = AlloSR2.from_pretrained(config.model)
    vae, transformer = model.codec.vae, model.velocity.transformer
    rows = [
        ("folder", str(model_folder(config.model))),
        ("t*", f"{model.config.t_star:.4f}"),
        ("scale", f"x{model.config.scale}"),
        ("preset", model.config.preset),
        ("base", model.config.base),
        ("license", describe_license(model.config.base)),
        ("guidance", "none" if model.config.guidance is None else f"{model.config.guidance:g}"),
        ("text tokens", str(model.config.prompt_length)),
        ("latents", f"{model.codec.channels} channels, 1/{model.codec.factor} size"),
        ("VAE encoder", _count(vae.encoder)),
        ("VAE decoder", _count(vae.decoder)),
        ("transformer", _count(transformer)),
        ("adapters", _adapters(vae, transformer)),
    ]
    table = Table(title=config.model, show_header=False, title_justify="left")
    for name, value in rows:
        table.add_row(name, value)
    if model.config.provenance:
        table.add_section()
        for name, value in _flatten("", model.config.provenance):
            table.add_row(name, value)
    console().print(table)
    return 0


def _count(module: nn.Module) -> str:
    """Parameters of a part as it is without its adapters."""
    return _parameters(sum(p.numel() for n, p in module.named_parameters() if ".lora_" not in n))


def _adapters(*parts: nn.Module) -> str:
    from allosr2.backbones.lora import adapter_size

    count = sum(p.numel() for part in parts for n, p in part.named_parameters() if ".lora_" in n)
    ranks = sorted({adapter_size(part)[0] for part in parts})
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
