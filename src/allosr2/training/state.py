"""What moves from step to step: parameters, their optimizer and their average."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from math import hypot

import torch
from torch import Tensor

from allosr2.data.photos import HRImages
from allosr2.devices import memory_in_use
from allosr2.errors import AlloSR2Error, ModelError, one_line
from allosr2.training.checkpoint import Checkpoint, prune, save_checkpoint
from allosr2.training.config import TrainingConfig
from allosr2.training.distributed import Processes
from allosr2.training.log import Status
from allosr2.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer
from allosr2.training.stage import Stage

logger = logging.getLogger(__name__)


class TrainingState:
    """Parameters, their optimizer and their average, moved from step to step."""

    def __init__(
        self,
        config: TrainingConfig,
        stage: Stage,
        images: HRImages,
        processes: Processes,
        restored: Checkpoint | None,
    ) -> None:
        """Start at step 0 with the first process's parameters, or where a checkpoint left off.

        Raises ModelError if the checkpoint is one of other parameters, or was made with other frozen weights or
        photographs and the config does not allow changes.
        """
        self.step = 0
        self.settled = True
        """Whether parameters, optimizer and average belong to the same step."""
        self.parameters = {n: p for n, p in stage.module.named_parameters() if p.requires_grad}
        self._config = config
        self._stage = stage
        self._processes = processes
        self._optimizer = build_optimizer(self.parameters.values(), config.optimization)
        self._fingerprints = {
            "frozen weights": stage.fingerprint,
            "photographs": images.fingerprint,
        }
        self._modules: dict[str, list[Tensor]] = {}
        """Parameters by the part of the model that they belong to."""
        for name, parameter in self.parameters.items():
            self._modules.setdefault(name.split(".")[0], []).append(parameter)
        processes.copy_from_first_(p.detach() for p in self.parameters.values())
        self._average = (
            {n: p.detach().clone() for n, p in self.parameters.items()}
            if config.optimization.ema_decay > 0
            else {}
        )
        if restored:
            self._restore(restored)

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._compare(checkpoint.fingerprints)
        saved = {name: tensor.shape for name, tensor in checkpoint.weights.items()}
        if saved != {name: parameter.shape for name, parameter in self.parameters.items()}:
            raise ModelError(
                f"{self._config.run.output}: the checkpoints hold other parameters than the model that the "
                "config describes; put the former base back, or use another --output"
            )
        self.step = checkpoint.step
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(checkpoint.weights[name])
            for name, tensor in self._average.items():
                # the weights, where the run began without an average
                tensor.copy_(checkpoint.average.get(name, checkpoint.weights[name]))
        restore_optimizer(self._optimizer, self.parameters, checkpoint.optimizer)

    def _compare(self, saved: Mapping[str, str]) -> None:
        others = [name for name, mark in self._fingerprints.items() if saved.get(name) != mark]
        if not others:
            return
        differ = f"{self._config.run.output}: {' and '.join(others)} are not those that the run began with"
        if not self._config.run.allow_changes:
            raise ModelError(
                f"{differ}; put the former ones back, use --allow-changes to go on with these, or another "
                "--output"
            )
        logger.warning("%s; goes on", differ)

    def update(self, terms: Mapping[str, float], started: float) -> Status:
        """One optimizer step, `started` by `time.perf_counter`, by the gradients that the parameters hold.

        A loss or a gradient that is not finite leaves the parameters as they are. All processes hold the same
        sums, and so agree.
        """
        optimization, run = self._config.optimization, self._config.run
        learning_rate = optimization.learning_rate_at(self.step, run.steps)
        norms = self._gradient_norms()
        norm = hypot(*norms.values())
        status = Status(
            step=self.step + 1,
            steps=run.steps,
            learning_rate=learning_rate,
            gradient_norm=norm,
            gradient_norms=norms,
            terms=dict(terms),
            seconds=time.perf_counter() - started,
            memory=memory_in_use(next(iter(self.parameters.values())).device),
        )
        self.settled = False
        if status.is_finite:
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters.values(), optimization.gradient_clip, torch.tensor(norm)
            )
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            # a young average follows fast: the first weights are the worst
            decay = min(optimization.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, tensor in self._average.items():
                    tensor.lerp_(self.parameters[name], 1 - decay)
        self._optimizer.zero_grad()
        self.step += 1
        self.settled = True
        return status

    def _gradient_norms(self) -> dict[str, float]:
        """Norm of the gradient of each part of what is trained, such as the codec and the velocity field."""
        return {
            part: float(
                torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            )
            for part, parameters in self._modules.items()
        }

    def save(self) -> None:
        """Write a checkpoint and remove old ones, in the process that leads."""
        if not self._processes.leads:
            return
        folder = self._config.run.output / "checkpoints"
        checkpoint = Checkpoint(
            step=self.step,
            constants=self._stage.constants,
            fingerprints=self._fingerprints,
            weights={n: p.detach().cpu() for n, p in self.parameters.items()},
            average={n: t.cpu() for n, t in self._average.items()},
            optimizer=optimizer_tensors(self._optimizer, self.parameters),
        )
        save_checkpoint(folder, checkpoint, self._config)
        prune(folder, self._config.run.keep_checkpoints)

    def rescue(self) -> None:
        """Save, if everything belongs to one step; what keeps it from being saved is only logged."""
        if self.settled:
            try:
                self.save()
            except (AlloSR2Error, RuntimeError) as error:  # the latter from a device that is lost
                logger.warning("step %d is not saved: %s", self.step, one_line(error))

    @contextmanager
    def averaged_weights(self) -> Generator[None]:
        """Put the average in the place of the parameters for a while, in which there is nothing to save."""
        self.settled = False
        held = {n: self.parameters[n].detach().clone() for n in self._average}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(held)
            self.settled = True

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.parameters[name].copy_(tensor)
