"""`allosr2.json`: what a model folder says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path, PurePath
from typing import Any

from allosr2.errors import ModelError

FORMAT_VERSION = 1
CONFIG_NAME = "allosr2.json"
EMBEDDED = "mini"
"""Name of the model that the package carries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What `allosr2.json` says of a model."""

    base: str
    """Base in diffusers layout: a folder inside the model's, an absolute path, or a hub id."""
    origin: str = ""
    """What the base is, wherever it lies: a hub id, or a folder's name; its license holds."""
    t_star: float
    """Time at which LR latents enter the flow (Eq. 6)."""
    scale: int
    """Upscaling factor."""
    preset: str
    """Degradation preset that it was trained with."""
    prompt_length: int
    """Text tokens of the constant prompt."""
    guidance: float | None = None
    """Guidance given to a guidance-distilled base."""
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])
    """How it was trained: recipe, data, steps, versions."""
    metrics: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """What was measured: `dataset`, `metric`, `value`, and `by`, the program and version that measured it."""
    format_version: int = FORMAT_VERSION
    """Version of this layout."""

    def __post_init__(self) -> None:
        if not isinstance(self.base, str):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON
            raise ModelError(f"base is {self.base}; it must be a folder or a hub id")
        if not PurePath(self.base).parts or ".." in PurePath(self.base).parts:
            raise ModelError(
                f"base is {self.base!r}; it must be a folder's name, an absolute path or a hub id"
            )
        if not isinstance(self.scale, int):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON
            raise ModelError(f"scale is {self.scale}; it must be a whole number")
        if not isinstance(self.guidance, int | float | None) or not isfinite(self.guidance or 0):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError(f"guidance is {self.guidance!r}; it must be a number or null")
        if not (isinstance(self.origin, str) and isinstance(self.preset, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError(f"origin and preset are {self.origin!r}, {self.preset!r}; write names")
        if not isinstance(self.provenance, dict):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError(f"provenance is {self.provenance!r}; it must be an object")
        if not all(_is_metric(metric) for metric in self.metrics):
            raise ModelError("metrics must each have dataset, metric, value (a number) and by")
        if not 0 < self.t_star < 1:
            raise ModelError(f"t_star is {self.t_star}; it must lie in (0, 1)")
        if self.scale < 1:
            raise ModelError(f"scale is {self.scale}; it must be 1 or more")

    @classmethod
    def read(cls, folder: Path) -> ModelConfig:
        """Read a model folder's `allosr2.json`. Raises ModelError, saying what is wrong with it."""
        path = folder / CONFIG_NAME
        if not path.is_file():
            raise ModelError(
                f"{folder}: no {CONFIG_NAME} in it; name a model folder, or {EMBEDDED}"
            )
        try:
            fields = json.loads(path.read_text())
            version = fields["format_version"]
            if version != FORMAT_VERSION:  # asked first: another version may have other fields
                raise ModelError(
                    f"format_version is {version}, this version reads {FORMAT_VERSION}; "
                    "upgrade allosr2 or export the model again"
                )
            return cls(**fields)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"{path}: not a model's config ({error}); export the model again"
            ) from error


def _is_metric(metric: object) -> bool:
    return (
        isinstance(metric, dict)
        and {"dataset", "metric", "value", "by"} <= metric.keys()
        and isinstance(metric["value"], int | float)
        and all(isinstance(metric[name], str) for name in ("dataset", "metric", "by"))
    )
