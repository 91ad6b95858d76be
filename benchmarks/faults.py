"""Kill and interrupt training while it writes a checkpoint, and count what cannot be resumed.

Every try is a process of its own that trains with a checkpoint after each step, one kept, and is sent a
signal at a random moment between the begin and the end of writing one. Afterwards the newest checkpoint has to
load, whole as it was written, and not to be older than the last one that was finished before the signal.
`accelerate` is put to the same test with its own `save_state`, automatic names and one state kept.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn

from allosr2.data.pairs import Batch
from allosr2.errors import ModelError
from allosr2.training import loop, state
from allosr2.training.checkpoint import checkpoints, load_checkpoint
from allosr2.training.config import (
    CodecTraining,
    ImagesConfig,
    OptimizationConfig,
    PerceptualConfig,
    RunConfig,
    WatchConfig,
)

SIDE = 768
"""Side of the trained matrix: 2.4 MB, and four times that in a checkpoint, takes long enough to be hit."""


class Matrix:
    """A stage that trains one matrix."""

    degradation = None
    scale = 1
    fingerprint = ""

    def __init__(self) -> None:
        self.module = nn.Linear(SIDE, SIDE, bias=False)
        self.constants: dict[str, float] = {}

    def losses(self, batch: Batch, _: Sequence[torch.Generator]) -> dict[str, Tensor]:
        total = self.module.weight.square().mean() * batch.hr.mean()
        return {"total": total}


def config(output: Path) -> CodecTraining:
    return CodecTraining(
        run=RunConfig(
            output=output,
            steps=100_000,
            batch_size=1,
            checkpoint_every=1,
            keep_checkpoints=1,
            device="cpu",
            precision="float32",
        ),
        images=ImagesConfig(procedural=1.0, crop=32, workers=0),
        optimization=OptimizationConfig(),
        perceptual=PerceptualConfig(perceptual_weight=0.0),
        watch=WatchConfig(tracker="none", validate_every=0),
    )


def train_ours(output: Path, said: Connection) -> None:
    """Train until a signal comes; say when writing a checkpoint begins and ends."""
    save, prune = state.save_checkpoint, state.prune

    def saved(*arguments: object) -> Path:
        said.send("begin")
        return save(*arguments)

    def pruned(*arguments: object) -> None:
        prune(*arguments)
        said.send(int(checkpoints(output / "checkpoints")[-1].name.split("_")[1]))

    state.save_checkpoint, state.prune = saved, pruned
    loop.build_stage = lambda *_: Matrix()
    with suppress(KeyboardInterrupt):
        loop.train(config(output))


def latest_of_ours(output: Path) -> int:
    """Step of the newest checkpoint; -1 if there is none, or it does not load, whole as it was written."""
    try:
        return load_checkpoint(checkpoints(output / "checkpoints")[-1], config(output)).step
    except (IndexError, ModelError):
        return -1


def train_accelerate(output: Path, said: Connection) -> None:
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    settings = ProjectConfiguration(
        project_dir=str(output), automatic_checkpoint_naming=True, total_limit=1
    )
    accelerator = Accelerator(cpu=True, project_config=settings)
    model = nn.Linear(SIDE, SIDE, bias=False)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    with suppress(KeyboardInterrupt):
        for step in range(100_000):
            model.weight.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            said.send("begin")
            accelerator.save_state()
            said.send(step)


def latest_of_accelerate(output: Path) -> int:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = nn.Linear(SIDE, SIDE, bias=False)
    model, _ = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    states = sorted(
        (output / "checkpoints").glob("checkpoint_*"), key=lambda p: int(p.name.split("_")[1])
    )
    try:
        accelerator.load_state(str(states[-1]))
    except Exception:  # whatever it raises, the run cannot go on from its latest
        return -1
    return int(states[-1].name.split("_")[1])


def attempt(
    train: Callable[[Path, Connection], None],
    latest: Callable[[Path], int],
    sent: signal.Signals,
    generator: random.Random,
) -> bool | None:
    """Whether the newest checkpoint survived a signal; None if it came when none was being written."""
    output = Path(tempfile.mkdtemp(prefix="faults-"))
    here, there = Pipe(duplex=False)
    child = os.fork()  # everything is imported by now: hundreds of processes start in no time
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        train(output, there)
        os._exit(0)
    there.close()
    finished, durations = -1, []
    for _ in range(generator.randint(3, 6)):  # a few, to know how long one takes
        assert here.recv() == "begin"
        begun = time.perf_counter()
        finished = here.recv()
        durations.append(time.perf_counter() - begun)
    assert here.recv() == "begin"
    time.sleep(generator.uniform(0, 1.1 * sorted(durations)[len(durations) // 2]))
    hit = not here.poll()
    os.kill(child, sent)
    os.waitpid(child, 0)
    try:
        survived = latest(output) >= finished
    except ValueError:
        survived = False
    shutil.rmtree(output, ignore_errors=True)
    return survived if hit else None


def count(
    name: str,
    train: Callable[[Path, Connection], None],
    latest: Callable[[Path], int],
    sent: signal.Signals,
    tries: int,
) -> int:
    """Lost checkpoints among `tries` signals that came while one was being written."""
    generator = random.Random(0)
    results: list[bool] = []
    while len(results) < tries:
        result = attempt(train, latest, sent, generator)
        if result is not None:
            results.append(result)
    lost = results.count(False)
    print(f"| {name} | {sent.name} | {tries} | {lost} |", flush=True)
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=100, help="signals of each kind")
    parser.add_argument("--reference", type=int, default=40, help="signals sent to accelerate")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}")
    print("| checkpoints by | signal | while one was written | lost |")
    print("|---|---|---|---|")
    lost = sum(
        count("allosr2", train_ours, latest_of_ours, sent, arguments.tries)
        for sent in (signal.SIGKILL, signal.SIGINT)
    )
    if arguments.reference:
        name = "accelerate's `save_state`"
        count(name, train_accelerate, latest_of_accelerate, signal.SIGKILL, arguments.reference)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
