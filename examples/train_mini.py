"""Train `mini` whole, in the time that there is: codec, flow, Algorithm 1 and decoder, one after the other.

    python examples/train_mini.py --photos PHOTOS --perceptual lpips.safetensors --output runs/mini --hours 0.4

Run the same command again to go on: after a piece (`--piece`), after Ctrl-C, after a kill. OUTPUT receives

    plan.json      how long a step of each stage takes here, how many steps it gets, and what it took so far
    codec/ ...     a folder for each stage, as `allosr2 train` writes it
    model/         the finished model; its card says what each stage took, and on which machine
    mini.tar       model, logs and validation sheets
    parts/         the same in files of at most --part-mib, which `cat` joins
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path

import torch
import tyro
from mini_archive import save_archive, save_model, save_parts
from mini_plan import SHARES, Pace, Plan, Progress, refused

from allosr2.cli.console import console, describe, errors_console, set_up_logging
from allosr2.cli.train import (
    INTERRUPTED,
    STARTED,
    require_training,
    terminated_as_interrupted,
    train_with_bar,
)
from allosr2.data.drawn import cores
from allosr2.devices import describe_device, free_memory, resolve_device
from allosr2.errors import AlloSR2Error, ConfigError
from allosr2.manifest import locked
from allosr2.model import base_of, model_folder
from allosr2.model_config import ModelConfig
from allosr2.training.config import FlowTraining, TrainingConfig
from allosr2.training.distributed import started_processes
from allosr2.training.interrupts import TimeIsUp
from allosr2.training.log import Status
from allosr2.training.recipes import mini, mini_codec, mini_decoder, mini_flow

PIECE_USED = 0.97
"""Of a piece: the rest is for the last step, its checkpoint and the end of the process."""
LEAST_LEFT = 0.1
"""Of a piece, for another stage to begin in it: its networks take about a minute to compile."""
WARM_UP = 3
"""Steps in which networks are compiled."""
OPEN_END = 100_000
"""Steps of a stage while it is timed: far from the last ones, in which the learning rate falls."""
CHECKPOINT_SECONDS = 60.0
"""Time between two checkpoints: as much is lost by a kill."""
PLAN_SECONDS = 30.0
"""Time between two savings of the plan."""
LOOKS = 2
"""At the validation images, in each stage."""
MOST_WORKERS = 14
"""Loading processes beside a GPU."""
GPU_BATCHES = 8
"""How many of a recipe's batches make one on a GPU, which a single one leaves idle, if its memory allows."""
BATCH_MEMORY = 3 * 10**9
"""Bytes free on a GPU, when a stage begins, for each of them; stage 4 takes 1.1 GB for one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainMini:
    """Train `mini` whole, in the time that there is. Run the same command again to go on."""

    photos: tuple[str, ...]
    """Photographs to train on, as for `allosr2 train`; folders of images drawn beforehand among them."""
    output: Path
    """Folder of it all."""
    hours: float
    """Time for all stages together. Those that have not begun share what is left of it."""
    held_out: tuple[str, ...] = ()
    """Photographs to validate on, which are not trained on."""
    perceptual: Path | None = None
    """Safetensors file of LPIPS weights on SqueezeNet 1.1 (examples/lpips_weights.py)."""
    piece: float | None = None
    """Minutes after which to stop, with a checkpoint; None goes on to the end."""
    initial: str | None = None
    """Model folder, or `mini`, whose weights are trained on, in each stage its own; None begins anew."""
    codec: str | None = None
    """Model folder, or `mini`, whose codec is taken as it is: the first stage is left out."""
    procedural: float | None = None
    """Fraction of images drawn while it trains: None is the recipes', 0 if they were drawn beforehand."""
    device: str = "auto"
    """"cpu", "cuda", or "auto": CUDA if there is a GPU."""
    seed: int = 0
    """Seed of everything drawn."""
    part_mib: int | None = None
    """Cut the archive into files of at most so many MiB, in `parts/`."""


def train_whole(options: TrainMini) -> Path:
    """Train what is not trained yet; returns the archive.

    Raises TimeIsUp at the end of a piece, AlloSR2Error for what a user can put right.
    """
    _check(options)
    settings = {
        "photos": list(options.photos),
        "procedural": options.procedural,
        "perceptual": None if options.perceptual is None else str(options.perceptual),
        "initial": options.initial,
        "codec": options.codec,
        "seed": options.seed,
    }
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(options.output, error) from error
    with locked(options.output):
        plan, configs = Plan.read(options.output / "plan.json", settings), stages(options)
        begun = False
        for name, config in configs.items():
            if plan.stages[name].finished:
                continue
            if begun and _piece_left(options) < LEAST_LEFT:
                raise TimeIsUp
            train_stage(name, config, options, plan, hurried=begun)
            begun = True
        try:
            save_model(options.output, configs, plan, options.initial, options.codec)
            archive = save_archive(options.output, configs)
            if options.part_mib is not None:
                save_parts(archive, options.part_mib)
        except OSError as error:
            raise refused(options.output, error) from error
    return archive


def _check(options: TrainMini) -> None:
    for name in ("hours", "piece", "part_mib"):
        value = getattr(options, name)
        if value is not None and not 0 < value < inf:
            raise ConfigError(f"{name} is {value}: use a number above 0")
    count = started_processes().count
    if count > 1:
        raise ConfigError(
            f"WORLD_SIZE is {count}: one process trains all; start it without torchrun"
        )


def _piece_left(options: TrainMini) -> float:
    """Fraction of the piece that is left."""
    return 1 if options.piece is None else 1 - (time.monotonic() - STARTED) / (60 * options.piece)


def stages(options: TrainMini) -> dict[str, TrainingConfig]:
    """The recipe of each stage, on what the one before exports and from the initial model's weights."""
    last, codec = (
        None if model is None else _base_of(model) for model in (options.initial, options.codec)
    )
    exported = {name: options.output / name / "model" for name in SHARES}
    first: dict[str, TrainingConfig] = {}
    if codec is None:
        first["codec"] = replace(mini_codec(), initial=last)
    return first | {
        "flow": replace(mini_flow(), codec=codec or exported["codec"], initial=last),
        "mini": replace(mini(), base=str(exported["flow"]), initial=options.initial),
        "decoder": replace(mini_decoder(), model=str(exported["mini"])),
    }


def _base_of(model: str) -> Path:
    folder = model_folder(model)
    return Path(base_of(folder, ModelConfig.read(folder)))


def fitted(
    name: str, config: TrainingConfig, options: TrainMini, progress: Progress
) -> TrainingConfig:
    """A stage's config for this machine, these photographs and the steps that it gets, if that is known."""
    steps, seconds = progress.steps, progress.seconds_a_step
    run = replace(
        config.run,
        output=options.output / name,
        seed=options.seed,
        device=options.device,
        minutes=None if options.piece is None else PIECE_USED * options.piece,
        steps=steps or OPEN_END,
        batch_size=progress.batch_size or config.run.batch_size,
        checkpoint_every=max(1, round(CHECKPOINT_SECONDS / seconds)) if seconds else OPEN_END,
    )
    images = replace(config.images, photos=options.photos)
    if options.procedural is not None:
        images = replace(images, procedural=options.procedural)
    if resolve_device(options.device).type == "cuda":
        # on an H200 compiling takes 90 s a stage and saves a tenth of each step
        run = replace(run, compile=False)
        # beside a CPU that trains no core is idle
        workers = max(1, min(cores() - 1, MOST_WORKERS))
        # each keeps photographs of its own: as many as a single one does, in a quarter of the memory at most
        spare = free_memory(torch.device("cpu")) / 2**30 / 4
        cache = min(images.cache_gigabytes * workers, spare)
        images = replace(images, workers=workers, cache_gigabytes=cache)
    watch = replace(
        config.watch,
        validation_photos=options.held_out,
        validate_every=ceil(steps / LOOKS) if steps else 0,
    )
    config = replace(config, run=run, images=images, watch=watch)
    if isinstance(config, FlowTraining):
        return config
    return replace(config, perceptual=replace(config.perceptual, perceptual=options.perceptual))


def train_stage(
    name: str, config: TrainingConfig, options: TrainMini, plan: Plan, *, hurried: bool
) -> None:
    """Time a stage's steps if that was not done yet, and train it to its end. Raises TimeIsUp.

    `hurried`: whether it has but the rest of a piece, in which too few steps are no reason to plan with them.
    """
    progress, say = plan.stages[name], errors_console().print
    device = resolve_device(options.device)
    machine = describe_device(device)
    if progress.batch_size is None:  # kept where another machine goes on
        room = free_memory(device) // BATCH_MEMORY if device.type == "cuda" else 1
        factor = min(max(room, 1), GPU_BATCHES)
        progress.batch_size = factor * config.run.batch_size
    if machine not in progress.machines:
        progress.machines.append(machine)
    torch.compiler.reset()  # what was compiled for other stages counts toward a limit
    if progress.steps is None:
        say(f"train_mini: {name}: its first steps are timed")
        timed = fitted(name, config, options, progress)
        pace = Pace(skipped=WARM_UP + 2 * timed.images.workers)  # two batches ahead each
        try:
            _train(timed, progress, plan, pace.note)
        except TimeIsUp:
            if hurried and not pace.sure:
                raise
            steps = plan.fix_steps(name, pace, options.hours)
            say(f"train_mini: {name}: {steps} steps of {pace.seconds:.3g} s on {machine}")
            if not pace.sure:  # a whole piece was too short
                raise
    _train(fitted(name, config, options, progress), progress, plan)
    progress.finished = True
    plan.save()


def _train(
    config: TrainingConfig,
    progress: Progress,
    plan: Plan,
    note: Callable[[Status], None] = lambda _: None,
) -> None:
    """Train, and write down how long it takes."""
    before, begun = progress.seconds, time.monotonic()
    saved = begun

    def count(status: Status) -> None:
        nonlocal saved
        now = time.monotonic()
        progress.seconds = before + now - begun
        if now - saved > PLAN_SECONDS:
            plan.save()
            saved = now
        note(status)

    try:
        train_with_bar(config, leads=True, note=count)
    finally:
        progress.seconds = before + time.monotonic() - begun
        plan.save()


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or a piece of it; returns the exit code: 0, an error's as `allosr2` has it, or 130."""
    options = tyro.cli(TrainMini, args=argv)
    set_up_logging(debug=False)
    say = errors_console().print
    try:
        require_training()
        with terminated_as_interrupted():
            archive = train_whole(options)
    except TimeIsUp:
        say(f"train_mini: {options.piece:g} minutes are over; run the same command again")
        return 0
    except KeyboardInterrupt:
        say("train_mini: stopped; run the same command again")
        return INTERRUPTED
    except AlloSR2Error as error:
        say(f"train_mini: error: {describe(error)}")
        return error.exit_code
    console().print(str(archive))
    return 0


if __name__ == "__main__":
    sys.exit(main())
