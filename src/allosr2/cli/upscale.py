"""`allosr2 upscale`: enlarge image files."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from allosr2.cli.console import abandon_stdout, errors_console
from allosr2.cli.files import (
    STREAM,
    Existing,
    Format,
    Naming,
    Plan,
    list_failures,
    make_folder,
    plan_jobs,
    sort_out,
)
from allosr2.cli.report import (
    BatchBar,
    check_report,
    document,
    follow,
    pixels_of_results,
    summary,
    write_report,
)
from allosr2.cli.train import INTERRUPTED
from allosr2.errors import ConfigError
from allosr2.pipeline import Job, Outcome

if TYPE_CHECKING:
    from allosr2.batch import FileOptions
    from allosr2.imaging.size import OutputSize
    from allosr2.manifest import Manifest
    from allosr2.upscaler import Upscaler

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upscale:
    """Enlarge images with a model, in one step each.

    Transparency, color profiles and metadata are kept. A file that fails is listed at the end and stops no
    other. After an interruption the same command goes on where it was.
    """

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files, folders, patterns such as 'photos/*.jpg', or `-` for stdin."""
    output: Path
    """A file for one input; else a folder, made if need be. `-` writes one image to stdout."""
    recursive: Annotated[bool, tyro.conf.arg(aliases=["-r"])] = False
    """Take the folders inside input folders too, and write the same tree."""
    existing: Existing = "error"
    """What to do where a result would replace a file: `error` refuses before any work. What an interrupted run
    of the same command has done is never done again."""
    dry_run: bool = False
    """Say what goes where, in what size, time and memory, and stop."""
    json: Path | None = None
    """Write a report on every file as JSON into this file; `-` is stdout."""

    format: Format | None = None
    """File format of the results; without it, a single file's own suffix decides, and folders get PNG."""
    quality: int | None = None
    """Quality of lossy formats, from 1 to 100."""
    suffix: str = ""
    """Put behind the names of results in a folder: `_x4` makes a_x4.png of a.png."""
    strip_metadata: bool = False
    """Leave out EXIF, XMP (place, camera, ...) and color profiles; colors are converted to sRGB first."""

    scale: float | None = None
    """Enlargement factor; without any size the one that the model was trained for (`mini`: 4)."""
    width: int | None = None
    """Width of results in pixels; the height follows."""
    height: int | None = None
    """Height of results in pixels; the width follows."""
    max_side: int | None = None
    """Longer side of results in pixels."""
    megapixels: float | None = None
    """Area of results in megapixels."""

    model: str = "mini"
    """A model folder (with `allosr2.json`), or `mini`, the model inside the package."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`, or `auto`: CUDA if there is a GPU. Several share the files: `cuda:0,cuda:1`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPUs and on CPUs that compute in it (AVX512-BF16, AMX), else float32. On other CPUs
    OpenVINO has no bfloat16."""
    backend: Literal["torch", "openvino"] = "torch"
    """`openvino` is faster on CPUs, for flows of convolutions; needs `pip install 'allosr2[openvino]'`."""
    tile: int | Literal["auto"] = "auto"
    """Largest side of a tile in pixels; smaller ones need less memory. `auto` goes by what is free."""
    overlap: int | None = None
    """Least pixels that neighboring tiles share; without it a ninth of a tile."""
    color_fix: Literal["wavelet", "adain", "lab", "none"] = "wavelet"
    """How results get the colors of their inputs."""
    color_strength: float = 1.0
    """How much of that, from 0 to 1."""
    fidelity: float = 0.0
    """From 0, as the model was trained, to 1, closer to the input with less detail made up."""
    jitter: int = 1
    """Evaluations, moved against each other, whose mean is the result; 2 to 4 wear down a grid."""
    seed: int = 0
    """Seed of PyTorch's generator. The models draw nothing: equal inputs give equal files with any seed."""

    max_megapixels: float = 150
    """Refuse inputs of more millions of pixels; `inf` refuses none."""
    max_megabytes: float = 2000
    """Refuse input files of more millions of bytes."""
    max_seconds: float = 60
    """Refuse inputs that take longer to decode."""


_IDLE = 600.0
"""Seconds after which a half-written file of an unknown process is taken for abandoned."""


def upscale(config: Upscale) -> int:
    """Enlarge every input; returns the exit code."""
    _check_streams(config)

    from allosr2.batch import upscale_files
    from allosr2.manifest import Manifest, key_of

    size, options = _size(config), _options(config)
    naming = Naming(format=config.format, suffix=config.suffix, recursive=config.recursive)
    plan = plan_jobs(config.inputs, config.output, naming, Manifest(config.output).source_of)
    check_report(config.json, plan.jobs)
    manifest = None if plan.folder is None else Manifest(plan.folder)
    # what no run has written is in the way whatever the model is: said before one is loaded
    sort_out(plan.jobs, config.existing, _is_done(manifest))

    asked = {
        "model": config.model,
        "device": _devices(config)[0].split(":")[0],
        "tile": config.tile,
    }
    upscalers = _load(config, None if manifest is None else manifest.tile_of(asked))
    settings = {**upscalers[0].settings, **asdict(size)}
    settings |= {"quality": config.quality, "strip_metadata": config.strip_metadata}
    settings["version"] = version("allosr2")
    # not what `--tile auto` came to, which depends on the memory that happens to be free
    asked_tiles = {"tile": config.tile, "overlap": config.overlap, "batch": None}
    key = key_of({**settings, **asked_tiles})
    if config.dry_run:
        from allosr2.cli.forecast import print_forecast

        to_do, passed_over = sort_out(plan.jobs, config.existing, _is_done(manifest, key))
        return print_forecast(to_do, passed_over, upscalers, size, options)

    def size_of(height: int, width: int) -> tuple[int, int]:
        return size.of(height, width, upscalers[0].model.config.scale)

    with _held(plan) as manifest:
        to_do, passed_over = sort_out(plan.jobs, config.existing, _is_done(manifest, key))
        if manifest is not None:
            manifest.begin(asked, upscalers[0].tile)
        bar = BatchBar(to_do, pixels_of_results(to_do, size_of, options.limits))
        results = upscale_files(
            to_do,
            [upscaler.lane(size) for upscaler in upscalers],
            options,
            size_of=size_of,
            manifest=manifest,
            key=key,
            progress=bar.after_tile,
        )
        started = time.monotonic()
        outcomes, interrupted = follow(results, bar, quiet=STREAM in (config.output, config.json))
        return _conclude(
            config,
            plan,
            _in_order(plan.jobs, [*passed_over, *outcomes]),
            time.monotonic() - started,
            settings,
            interrupted=interrupted,
        )


def _in_order(jobs: Sequence[Job], outcomes: Sequence[Outcome]) -> list[Outcome]:
    outcome_of = {outcome.job: outcome for outcome in outcomes}
    return [outcome_of[job] for job in jobs if job in outcome_of]


def _conclude(
    config: Upscale,
    plan: Plan,
    outcomes: Sequence[Outcome],
    seconds: float,
    settings: Mapping[str, Any],
    *,
    interrupted: bool,
) -> int:
    """List failures, sum up, write the report; returns the exit code."""
    failures = [(outcome.job.name, outcome.error) for outcome in outcomes if outcome.error]
    unread = any(isinstance(error, BrokenPipeError) for _, error in failures)
    if unread:  # the picture is lost; its reader knows why
        abandon_stdout()
    exit_code = 1 if unread else list_failures(failures)
    if config.json is not None:
        write_report(config.json, document(outcomes, seconds, settings, interrupted=interrupted))
    line = summary(outcomes, len(plan.jobs), seconds)
    if interrupted:
        if plan.folder is None:
            raise KeyboardInterrupt
        errors_console().print(f"allosr2: interrupted, {line}; the same command goes on from there")
        return INTERRUPTED
    if len(plan.jobs) > 1:
        errors_console().print(f"allosr2: {line}")
    elif outcomes[0].status == "skipped":
        logger.info("%s: skipped, %s", outcomes[0].job.target, outcomes[0].notes[0])
    return exit_code


def _check_streams(config: Upscale) -> None:
    if not config.inputs:
        raise ConfigError("no input; name image files or a folder of them")
    if config.json is not None and config.dry_run:
        raise ConfigError("--json reports on a run, and --dry-run is none; leave one out")
    if config.output == STREAM:
        if config.json == STREAM:
            raise ConfigError("--output and --json are both -: stdout takes one; give one a file")
        if sys.stdout.isatty() and not config.dry_run:
            raise ConfigError("--output is -, a terminal here; lead stdout into a file or pipe")


def _size(config: Upscale) -> OutputSize:
    from allosr2.imaging.size import OutputSize

    return OutputSize(
        scale=config.scale,
        width=config.width,
        height=config.height,
        max_side=config.max_side,
        megapixels=config.megapixels,
    )


def _options(config: Upscale) -> FileOptions:
    from allosr2.batch import FileOptions
    from allosr2.imaging.io import Limits

    return FileOptions(
        file_format=config.format if config.format in (None, "same") else config.format.upper(),
        quality=config.quality,
        strip_metadata=config.strip_metadata,
        replace=config.existing == "overwrite",
        limits=Limits(
            pixels=config.max_megapixels * 1e6,
            bytes=config.max_megabytes * 1e6,
            seconds=config.max_seconds,
        ),
    )


def _devices(config: Upscale) -> list[str]:
    devices = config.device.split(",")
    if len({device.split(":")[0] for device in devices}) > 1:
        # they compute in different precision: who happened to take a file would show in it
        raise ConfigError(f"--device is {config.device}: name one kind, as cuda:0,cuda:1")
    return devices


def _load(config: Upscale, recorded_tile: int | None) -> list[Upscaler]:
    """An upscaler a device; with `--tile auto` all take the tile of an earlier run, or else the first's."""
    import torch

    from allosr2.upscaler import Upscaler

    torch.manual_seed(config.seed)
    tile = config.tile
    if tile == "auto" and recorded_tile is not None:
        tile = recorded_tile
    upscalers: list[Upscaler] = []
    for device in _devices(config):
        upscaler = Upscaler.from_pretrained(
            config.model,
            device=device,
            tile=tile,
            overlap=config.overlap,
            color_fix=config.color_fix,
            color_strength=config.color_strength,
            fidelity=config.fidelity,
            jitter=config.jitter,
            precision=config.precision,
            backend=config.backend,
        )
        upscalers.append(upscaler)
        tile = upscaler.tile
    return upscalers


def _is_done(manifest: Manifest | None, key: str | None = None) -> Callable[[Path, Path], bool]:
    if manifest is None:
        return lambda source, target: False  # noqa: ARG005 - a single file keeps no record
    return partial(manifest.is_done, key=key)


@contextmanager
def _held(plan: Plan) -> Generator[Manifest | None]:
    """Make the folder of the results and hold it, with its manifest, which a single file does without."""
    from allosr2.manifest import Manifest, locked
    from allosr2.storage import clear_partials

    written_into = {job.target.resolve().parent for job in plan.jobs if job.target}
    if plan.folder is None:
        clear_partials(written_into, idle=_IDLE)  # nothing holds the folder for this run alone
        yield None
        return
    make_folder(plan.folder)
    with locked(plan.folder, written_into):
        yield Manifest(plan.folder)
