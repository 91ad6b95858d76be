"""`allosr2 diagnose`: how a model's flow runs from LR latents to data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allosr2.cli.console import console, progress_bar
from allosr2.errors import AlloSR2Error, ConfigError, ImageError, one_line

if TYPE_CHECKING:
    from rich.table import Table

    from allosr2.evaluation.diagnosis import Diagnosis


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnose:
    """Measure how straight a model's flow is, what more steps than one would give, and whether t* is right.

    Writes plots and `diagnosis.json`, which holds every number, into a folder.
    """

    pairs: Path
    """Folder with `lr/` and `hr/`, equal names in both; HR sides are the model's scale times LR's."""
    output: Path
    """Folder, made if need be, that receives the plots and `diagnosis.json`."""
    model: str = "mini"
    """A model folder (with `allosr2.json`), a hub id, or `mini`, the model inside the package."""
    limit: int | None = 20
    """Pairs that are used at most, spread evenly over the names; None uses all."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: CUDA if there is a GPU."""


def diagnose(config: Diagnose) -> int:
    """Measure pair by pair, then write and print; returns the exit code."""
    _check(config)

    from allosr2.evaluation.images import evenly
    from allosr2.evaluation.pairs import pairs_of, read_pair
    from allosr2.model import ModelConfig, model_folder

    scale = ModelConfig.read(model_folder(config.model)).scale
    images = pairs_of(config.pairs, scale)
    names = evenly(list(images.lr), config.limit or len(images.lr))

    import torch

    from allosr2.devices import is_out_of_memory, resolve_device
    from allosr2.evaluation.diagnosis import Diagnosis, PairDiagnosis, diagnose_pair
    from allosr2.model import AlloSR2, load_frozen_codec
    from allosr2.runner import Runner, precision_on

    precision = precision_on(resolve_device(config.device))
    model = AlloSR2.from_pretrained(config.model, precision).merge()
    runner = Runner(model, config.device)
    frozen = load_frozen_codec(config.model).to(runner.device, getattr(torch, precision))
    half = torch.autocast(
        runner.device.type, torch.bfloat16, enabled=precision == "bfloat16"
    )  # as images are upscaled

    def measure(name: str) -> PairDiagnosis:
        assert images.hr is not None
        files = images.lr[name], images.hr[name]
        pair = read_pair(*files, scale=scale, multiple=model.multiple)
        lr, hr = (image.to(runner.device) for image in pair)
        try:
            with torch.inference_mode(), half:
                return diagnose_pair(model, frozen, lr, hr)
        except AlloSR2Error as error:
            raise type(error)(f"{files[1]}: {error}") from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ImageError(
                f"{files[1]}: {runner.device} is out of memory; crop the pairs, or use another device"
            ) from error

    with progress_bar() as bar:
        pairs = {name: measure(name) for name in bar.track(names, description="pairs")}
    diagnosis = Diagnosis(t_star=model.config.t_star, pairs=pairs)
    about = {
        "model": {
            "name": config.model,
            "fingerprint": runner.fingerprint(),
            "origin": model.config.origin,
            "preset": model.config.preset,
            "scale": scale,
        },
        "precision": precision,
        "device": runner.device.type,
        "folder": str(config.pairs),
    }
    for path in _write(config.output, diagnosis, about):
        console().print(str(path))
    console().print(_table(config, diagnosis))
    return 0


def _check(config: Diagnose) -> None:
    """Raise ConfigError for what can be told before anything is read."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("diagnose needs matplotlib: pip install 'allosr2[eval]'")
    if config.limit is not None and config.limit < 1:
        raise ConfigError(f"limit is {config.limit}: use 1 or more")
    output = config.output
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise ConfigError(
            f"output is {output}: {nearest} is no folder that can be written in; choose another"
        )


def _write(folder: Path, diagnosis: Diagnosis, about: dict[str, Any]) -> list[Path]:
    """Write the plots and, last, the numbers; returns the files."""
    import json
    from importlib.metadata import version

    from allosr2.evaluation.trajectory_plots import PLOTS, save_figure
    from allosr2.storage import save_text

    versions = {name: version(name) for name in ("allosr2", "torch", "diffusers")}
    fields = about | {"versions": versions} | diagnosis.fields()
    numbers = folder / "diagnosis.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, plot in PLOTS.items():
            save_figure(folder / name, plot(diagnosis))
        save_text(numbers, json.dumps(fields, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"output is {folder}: it cannot be written ({one_line(error)}); choose another"
        ) from error
    return [*(folder / name for name in PLOTS), numbers]


def _table(config: Diagnose, diagnosis: Diagnosis) -> Table:
    from rich.table import Table

    fields = diagnosis.fields()
    means, times = fields["means"], fields["t_star"]
    table = Table(
        title=f"{config.model} on {len(diagnosis.pairs)} pairs, {config.pairs}",
        title_justify="left",
    )
    table.add_column("mean of the pairs")
    rows: dict[str, list[str]] = {
        "Euler steps": [str(steps) for steps in fields["steps"]],
        "error of z_sr (RMS)": [f"{value:.4f}" for value in means["error"].values()],
        "PSNR-Y (dB)": [f"{value:.2f}" for value in means["psnr_y"].values()],
        "SSIM-Y": [f"{value:.4f}" for value in means["ssim_y"].values()],
        "error of z_lr (RMS)": [f"{means['error_of_lr']:.4f}"],
        "arc / chord": [f"{means['detour']:.4f}"],
        "turning in all (degrees)": [f"{sum(means['turning']):.2f}"],
        "change of velocity at the end": [f"{means['velocity_change'][-1]:.4f}"],
        "off FATC's target at t*": [f"{means['fatc_residual'][0]:.4f}"],
        "t*: the model's": [f"{times['of_the_model']:.4f}"],
        "t*: pairs, adapted encoder": [f"{times['adapted_encoder']:.4f}"],
        "t*: pairs, frozen encoder": [f"{times['frozen_encoder']:.4f}"],
        "one step errs least at t* x": [f"{times['least_error_at_factor']:g}"],
    }
    for _ in fields["steps"]:
        table.add_column("", justify="right")
    for name, values in rows.items():
        table.add_row(name, *values)
    return table
