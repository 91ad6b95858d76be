"""`allosr2 snr`: where on the flow LR images belong (arXiv:2604.19238, Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allosr2.cli.console import console, progress_bar
from allosr2.errors import ConfigError

PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snr:
    """Measure t* (Eq. 6) of pairs of LR and HR images, with the fixed encoder of a model's base."""

    pairs: Path
    """Folder with `lr/` and `hr/`, equal names in both; HR sides are the model's scale times LR's."""
    model: str = "mini"
    """A model folder (with `allosr2.json`), or `mini`, the model inside the package."""
    plot: Path | None = None
    """PNG file to draw the path's SNR and the pairs' into; needs matplotlib (`allosr2[train]`)."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: CUDA if there is a GPU."""


def snr(config: Snr) -> int:
    """Print a table and draw the plot; returns the exit code."""
    if config.plot is not None:
        _require_matplotlib()

    import torch
    from rich.table import Table

    from allosr2.devices import resolve_device
    from allosr2.evaluation.pairs import pairs_of, read_pair
    from allosr2.model import ModelConfig, load_frozen_codec, model_folder
    from allosr2.trajectory import latent_power, optimal_time, optimal_time_on_grid

    model = ModelConfig.read(model_folder(config.model))
    pairs = pairs_of(config.pairs, model.scale)
    assert pairs.hr is not None
    device = resolve_device(config.device)
    codec = load_frozen_codec(config.model).to(device)
    with progress_bar() as bar, torch.inference_mode():
        images = (
            read_pair(path, pairs.hr[name], scale=model.scale, multiple=codec.factor)
            for name, path in pairs.lr.items()
        )
        latents = ((codec.encode(lr.to(device)), codec.encode(hr.to(device))) for lr, hr in images)
        power = latent_power(bar.track(latents, total=len(pairs.lr), description="pairs"))
    t_star = optimal_time(power)
    spread = torch.quantile(
        power.pair_times, torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    ).tolist()
    table = Table(title=f"t* of {len(pairs.lr)} pairs, {config.pairs}", title_justify="left")
    table.add_column("quantity")
    table.add_column("t", justify="right")
    table.add_row("t* (Eq. 6, exact)", f"{t_star:.4f}")
    table.add_row("t* (Eq. 6, grid of 1000)", f"{optimal_time_on_grid(power):.4f}")
    table.add_row(f"t* of {config.model} (preset {model.preset})", f"{model.t_star:.4f}")
    for percent, t in zip(PERCENTILES, spread, strict=True):
        table.add_row(f"t of single pairs, percentile {percent}", f"{t:.4f}")
    console().print(table)
    if config.plot is not None:
        from allosr2.evaluation.trajectory_plots import save_figure, snr_curve

        save_figure(config.plot, snr_curve({"pairs": power}, {f"t* = {t_star:.4f}": t_star}))
        console().print(str(config.plot))
    return 0


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'allosr2[train]', or leave it out")
