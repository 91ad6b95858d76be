"""`allosr2 snr`: where on the flow LR images belong (arXiv:2604.19238, Eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from allosr2.cli.console import console, progress_bar
from allosr2.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from allosr2.backbones.codec import Codec
    from allosr2.trajectory import LatentPower

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
    names = paired_names(config.pairs)

    import torch
    from rich.table import Table

    from allosr2.devices import resolve_device
    from allosr2.model import ModelConfig, load_frozen_codec, model_folder
    from allosr2.trajectory import latent_power, optimal_time, optimal_time_on_grid

    model = ModelConfig.read(model_folder(config.model))
    device = resolve_device(config.device)
    codec = load_frozen_codec(config.model).to(device)
    with progress_bar() as bar, torch.inference_mode():
        latents = _latents(config.pairs, names, codec, model.scale, device)
        power = latent_power(bar.track(latents, total=len(names), description="pairs"))
    t_star = optimal_time(power)
    spread = torch.quantile(
        power.pair_times, torch.tensor(PERCENTILES, dtype=torch.float64) / 100
    ).tolist()
    table = Table(title=f"t* of {len(names)} pairs, {config.pairs}", title_justify="left")
    table.add_column("quantity")
    table.add_column("t", justify="right")
    table.add_row("t* (Eq. 6, exact)", f"{t_star:.4f}")
    table.add_row("t* (Eq. 6, grid of 1000)", f"{optimal_time_on_grid(power):.4f}")
    table.add_row(f"t* of {config.model} (preset {model.preset})", f"{model.t_star:.4f}")
    for percent, t in zip(PERCENTILES, spread, strict=True):
        table.add_row(f"t of single pairs, percentile {percent}", f"{t:.4f}")
    console().print(table)
    if config.plot is not None:
        draw(config.plot, power, t_star)
        console().print(str(config.plot))
    return 0


def paired_names(folder: Path) -> list[str]:
    """Names that `folder/lr` and `folder/hr` share. Raises DataError where they do not agree."""
    from allosr2.imaging.io import find_images

    for part in ("lr", "hr"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder}: no folder {part} in it; name one with lr/ and hr/")
    lr, hr = ({path.name for path in find_images(folder / part)} for part in ("lr", "hr"))
    if not lr and not hr:
        raise DataError(f"{folder}: no image in lr/ and hr/; name a folder with pairs")
    alone = sorted(lr ^ hr)
    if alone:
        where = "lr" if alone[0] in lr else "hr"
        raise DataError(
            f"{folder}: {where}/{alone[0]} has no partner ({len(alone)} such files); "
            "give both images of a pair one name"
        )
    return sorted(lr)


def draw(path: Path, power: LatentPower, t_star: float) -> None:
    """Draw the path's SNR over t, t* on it, and beside it how the pairs' measured SNR spreads."""
    import torch
    from matplotlib.figure import Figure

    from allosr2.flow import path_snr

    measured = 1 / power.residual
    times = power.pair_times
    t = torch.linspace(0.02, 0.98, 400, dtype=torch.float64)
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    curve, spread = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    curve.semilogy(t, path_snr(t), label="path: ((1 - t) / t)²")
    curve.plot(times, measured, "|", markersize=12, label="pairs: 1 / residual")
    curve.axvline(t_star, color="black", linestyle="--", label=f"t* = {t_star:.4f}")
    curve.set(xlabel="t", ylabel="SNR / mean z_hr²", xlim=(0, 1))
    curve.legend()
    low, high = float(measured.min().log10()) - 0.05, float(measured.max().log10()) + 0.05
    spread.hist(measured, bins=torch.logspace(low, high, 13).tolist(), orientation="horizontal")
    spread.axhline(float(path_snr(torch.tensor(t_star))), color="black", linestyle="--")
    spread.set(xlabel="pairs", ylim=(float(measured.min()) / 10, float(measured.max()) * 10))
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise ConfigError(
            f"--plot is {path}: {error.strerror}; choose a writable folder"
        ) from error


def _latents(
    folder: Path, names: list[str], codec: Codec, scale: int, device: torch.device
) -> Iterator[tuple[Float[Tensor, "1 c h w"], Float[Tensor, "1 c h w"]]]:
    """Both latents of each pair: LR enlarged bicubically, sides cropped to what the codec takes."""
    from allosr2.imaging.io import image_from_any, read_rgb
    from allosr2.imaging.resize import enlarge

    for name in names:
        lr, hr = (image_from_any(read_rgb(folder / part / name)) for part in ("lr", "hr"))
        height, width = lr.shape[-2] * scale, lr.shape[-1] * scale
        if hr.shape[-2:] != (height, width):
            raise DataError(
                f"{folder}: hr/{name} is {hr.shape[-1]}x{hr.shape[-2]}, "
                f"x{scale} of its LR image is {width}x{height}; pair them by the model's scale"
            )
        rows, columns = (side // codec.factor * codec.factor for side in (height, width))
        if not rows or not columns:
            raise DataError(
                f"{folder}: hr/{name} is smaller than {codec.factor} px; remove the pair"
            )
        images = (image[..., :rows, :columns].to(device) for image in (enlarge(lr, scale), hr))
        z_lr, z_hr = (codec.encode(image) for image in images)
        yield z_lr, z_hr


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'allosr2[train]', or leave it out")
