"""How a run is watched: its log, a tracker's curves, looks at validation images, a profiler's trace."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile, schedule

from allosr2.data.photos import HRImages
from allosr2.errors import one_line
from allosr2.training.config import TrainingConfig
from allosr2.training.inspection import inspect, validation_batches
from allosr2.training.log import Status, append, rewind
from allosr2.training.stage import Stage
from allosr2.training.tracking import no_tracker, open_tracker

logger = logging.getLogger(__name__)

_PROFILED = schedule(wait=2, warmup=1, active=3, repeat=1)
"""Steps that `--profile` traces: the fourth to the sixth, when what is compiled is compiled."""
_TOLD = (
    ("PSNR-Y", "validation/psnr_y"),
    ("SSIM-Y", "validation/ssim_y"),
    ("LPIPS", "validation/lpips"),
)
"""Numbers of a look that are said aloud; all are in the log."""


class Watch:
    """Takes note of steps and looks at validation images.

    One process writes. All look: a transformer whose weights are shared out computes in all of them at once,
    and where it is not, the others have nothing better to do.
    """

    def __init__(
        self,
        config: TrainingConfig,
        stage: Stage,
        validation: HRImages,
        device: torch.device,
        *,
        step: int,
        writes: bool,
    ) -> None:
        """Go on from `step`: what a killed run logged past it is taken back.

        Raises ConfigError for a tracker that cannot start, DataError for validation photographs that cannot be
        read.
        """
        self._config = config
        self._stage = stage
        self._writes = writes
        self._log = config.run.output / "log.jsonl"
        self._trace = config.run.output / "trace.json.gz"
        self._validation_log = config.run.output / "validation.jsonl"
        self._batches = validation_batches(config, stage, validation, device) if self._looks else []
        self._tracker = open_tracker(config, step=step) if writes else no_tracker()
        if writes:
            rewind(self._log, step)
            rewind(self._validation_log, step)
        self._profile = self._start_profile(device) if config.run.profile and writes else None

    @property
    def _looks(self) -> bool:
        return self._config.watch.validate_every > 0

    def note(self, status: Status) -> None:
        """Write down a step."""
        if self._profile is not None:
            self._profile.step()
        due = status.step % self._config.run.log_every == 0 or status.step == status.steps
        if self._writes and due:
            append(self._log, status.line())
            self._tracker.numbers(_curves(status), status.step)

    def is_due(self, step: int) -> bool:
        """Whether the validation images are to be looked at after a step."""
        last = self._config.run.steps
        return self._looks and (step % self._config.watch.validate_every == 0 or step == last)

    def is_missing(self, step: int) -> bool:
        """Whether the run was stopped when it was to look after this step; the process that writes knows."""
        return step > 0 and self.is_due(step) and not self._sheet(step).exists()

    def inspect(self, step: int) -> None:
        """Look at the validation images with the weights as they are."""
        seen = inspect(self._config, self._stage, self._batches)
        if not self._writes:
            return
        append(self._validation_log, {"step": step, **seen.numbers})
        self._tracker.numbers(seen.numbers, step)
        self._tracker.picture("sheet", seen.sheet, step)
        path = self._sheet(step)
        try:
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(seen.sheet).save(path)
        except OSError as error:
            logger.warning("%s cannot be written (%s)", path, one_line(error))
        quality = [f"{name} {seen.numbers[key]:.4g}" for name, key in _TOLD if key in seen.numbers]
        logger.info(
            "step %d of %d: %s", step, self._config.run.steps, ", ".join([*quality, str(path)])
        )

    def _sheet(self, step: int) -> Path:
        return self._config.run.output / "sheets" / f"step_{step:08d}.png"

    def close(self) -> None:
        """Write what is still to be written."""
        if self._profile is not None:
            self._profile.stop()
            if not self._trace.exists():
                logger.warning("profile is set: no trace, as the run ended before its fourth step")
        self._tracker.close()

    def _start_profile(self, device: torch.device) -> profile:
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)

        def write(finished: profile) -> None:
            finished.export_chrome_trace(str(self._trace))
            logger.info("trace: %s", self._trace)

        profiler = profile(activities=activities, schedule=_PROFILED, on_trace_ready=write)
        profiler.start()
        return profiler


def _curves(status: Status) -> dict[str, float]:
    """What a step did, grouped as a tracker shows it."""
    return {
        **{f"loss/{name}": value for name, value in status.terms.items()},
        "gradient_norm/all": status.gradient_norm,
        **{f"gradient_norm/{part}": norm for part, norm in status.gradient_norms.items()},
        "run/learning_rate": status.learning_rate,
        "run/seconds_a_step": status.seconds,
        "run/memory_gigabytes": status.memory / 10**9,
    }
