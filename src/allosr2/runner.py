"""A model on a device: tiles in, tiles out, whatever precision and memory make of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from allosr2.backends import Backend, OpenVINO
from allosr2.devices import (
    computes_bfloat16,
    free_memory,
    is_out_of_memory,
    resolve_device,
)
from allosr2.errors import ConfigError, ImageError
from allosr2.fingerprint import fingerprint
from allosr2.imaging.tiling import blend_rows, lay_tiles
from allosr2.meter import CudaRules, Meter
from allosr2.model import AlloSR2

Precision = Literal["auto", "float32", "bfloat16"]
"""What a model computes in."""

logger = logging.getLogger(__name__)

LARGEST_BATCH = 8
"""Most tiles in one call on a GPU; more of them are no faster."""

_LEAST_SIDE = 4
"""Side in tokens of the smallest tile that is tried when memory runs out."""

_SAFETY = 0.6
"""Share of the free memory that tiles are planned for: kernels have workspaces that are not counted."""

_OPENVINO_SHARE = 1.5
"""Memory of a tile by OpenVINO, which keeps it for the next, over what is planned for PyTorch: 1,024 px took
326 MB more than 512 with a flow of 4.2 M parameters, where 221 were planned."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a model, and how many elements a token has along a side before and after it."""

    function: Callable[[Tensor], Tensor]
    units: tuple[int, int]


class Runner:
    """Runs the two stages of a model on batches of tiles on one device.

    What does not fit into memory is halved, first the batch and then the tile, until it does. What is not
    finite in bfloat16 is computed once more in float32.
    """

    def __init__(
        self,
        model: AlloSR2,
        device: str,
        *,
        precision: Precision = "auto",
        backend: Backend = "torch",
    ) -> None:
        """Move a model to a device.

        `precision` as in `precision_on`. Raises ConfigError without the device, for other names of a
        precision or backend, for bfloat16 by OpenVINO on a processor without it, and as `OpenVINO`.
        """
        self.model = model
        self.device = resolve_device(device)
        if backend not in ("torch", "openvino"):
            raise ConfigError(f"backend is {backend}: use torch or openvino")
        self.backend: Backend = backend
        self._openvino = OpenVINO(model, self.device) if backend == "openvino" else None
        self.encode = Stage(
            lambda image: model.one_step(model.codec.encode(image)),
            (model.multiple, model.velocity.patch),
        )
        """From an enlarged image to the restored latents."""
        self.decode = Stage(model.codec.decode, (model.velocity.patch, model.multiple))
        """From latents to the image."""
        self.batch = 1
        """Most tiles in one call."""
        self._side = 1 << 30
        """Largest side of a tile, in tokens, that has not run out of memory."""
        self._bytes_a_pixel: float | None = None
        chosen = precision_on(self.device, precision)
        if backend == "openvino" and chosen == "bfloat16" and not computes_bfloat16(self.device):
            raise ConfigError(
                "precision is bfloat16, which this processor has no instructions for and OpenVINO would "
                "compute in float32: use float32, or backend torch"
            )
        self._use(getattr(torch, chosen))
        model.codec.to(memory_format=torch.channels_last)

    def apply(self, stage: Stage, tiles: Float[Tensor, "k c h w"], where: str) -> Tensor:
        """A stage on tiles of one size, in batches of `batch`: float32, on the CPU.

        Raises ImageError, naming `where`, if not even small tiles fit, and if the result is not finite.
        """
        if max(tiles.shape[-2:]) > self._side * stage.units[0]:
            return torch.cat([self._in_parts(stage, tile[None], where) for tile in tiles])
        if len(tiles) > self.batch:
            return torch.cat([self.apply(stage, part, where) for part in tiles.split(self.batch)])
        result = self._forward(stage, tiles)
        if result is None:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if len(tiles) > 1:
                self.batch = len(tiles) // 2
                return self.apply(stage, tiles, where)
            self._halve(max(tiles.shape[-2:]) // stage.units[0], where)
            return self._in_parts(stage, tiles, where)
        if bool(result.isfinite().all()):
            return result
        if self._precision != torch.float32:
            logger.warning("%s: not finite in %s; once more in float32", where, self.precision)
            with self._in_float32(where):
                return self.apply(stage, tiles, where)
        raise ImageError(
            f"{where}: the model's result is not finite, in float32 too; try another model"
        )

    @property
    def precision(self) -> str:
        """In which the model runs: "float32" or "bfloat16"."""
        return _name(self._precision)

    def bytes_of(self, pixels: int) -> int:
        """Memory of a tile beside the weights, measured on the meta device; by OpenVINO 1.5 times that."""
        if self._bytes_a_pixel is None:
            side = 16 * self.model.multiple
            share = 1.0 if self._openvino is None else _OPENVINO_SHARE
            bytes_of_side = _activation_bytes(self.model, side, self._precision)
            self._bytes_a_pixel = share * bytes_of_side / side**2
        return round(self._bytes_a_pixel * pixels)

    def largest_that_fits(self, sides: Sequence[int]) -> int:
        """The first of some tiles' sides, in pixels, that memory is free for; the last if there is none."""
        budget = _SAFETY * free_memory(self.device)
        fitting = (side for side in sides if self.bytes_of(side**2) < budget)
        return next(fitting, sides[-1])

    def batch_that_fits(self, side: int) -> int:
        """How many tiles at a time; on the CPU, where more are no faster, one."""
        if self.device.type == "cpu":
            return 1
        budget = _SAFETY * free_memory(self.device)
        return max(min(int(budget / self.bytes_of(side**2)), LARGEST_BATCH), 1)

    def fingerprint(self) -> str:
        """Tells one model from another."""
        config, conditioning = self.model.config, self.model.velocity.conditioning
        constants = (config.t_star, config.scale, config.guidance, self.model.step)
        return fingerprint(self.model.state_dict() | conditioning.tensors(), constants)

    def _halve(self, side: int, where: str) -> None:
        multiple = self.model.multiple
        if side // 2 < _LEAST_SIDE:
            raise ImageError(
                f"{where}: {self.device} is out of memory even with tiles of {side * multiple} px; "
                "close other programs or use another device"
            )
        self._side = side // 2
        logger.warning(
            "%s: out of memory; going on with tiles of %d px", where, self._side * multiple
        )

    def _in_parts(self, stage: Stage, tile: Float[Tensor, "1 c h w"], where: str) -> Tensor:
        """A tile that is too large, as smaller ones."""
        side = self._side
        vertical, horizontal = (
            lay_tiles(length // stage.units[0], side, side // 4) for length in tile.shape[-2:]
        )
        rows = blend_rows(
            lambda part: self.apply(stage, part, where),
            lambda first, last: tile[..., first:last, :],
            vertical,
            horizontal,
            stage.units,
        )
        return torch.cat(list(rows), dim=-2)

    @torch.inference_mode()
    def _forward(self, stage: Stage, tiles: Float[Tensor, "k c h w"]) -> Tensor | None:
        """None if memory ran out: the error, and all that it holds, is gone when this returns."""
        enabled = self._precision == torch.bfloat16
        try:
            if self._openvino is not None:
                return self._openvino(stage.function, tiles, self._precision)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
                return stage.function(tiles.to(self.device)).float().cpu()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                return None
            raise

    @contextmanager
    def _in_float32(self, where: str) -> Generator[None]:
        precision = self._precision
        try:
            self._use(torch.float32)
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ImageError(
                f"{where}: not finite in {_name(precision)}, and {self.device} has no memory for float32; "
                "use another device or another model"
            ) from error
        finally:
            self._use(precision)

    def _use(self, precision: torch.dtype) -> None:
        self._precision = precision
        # OpenVINO rounds the weights itself
        self.model.to(self.device, precision if self._openvino is None else torch.float32)


def precision_on(
    device: torch.device, precision: Precision = "auto"
) -> Literal["float32", "bfloat16"]:
    """What a model runs in on a device: "auto" is bfloat16 on CUDA and on CPUs that compute in it.

    Raises ConfigError for a precision of another name.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"precision is {precision}: use auto, float32 or bfloat16")
    if precision != "auto":
        return precision
    return "bfloat16" if computes_bfloat16(device) else "float32"


def _name(precision: torch.dtype) -> str:
    return str(precision).removeprefix("torch.")


def _activation_bytes(model: nn.Module, side: int, precision: torch.dtype) -> int:
    """Most bytes that a model holds beside its weights while it works on one square picture."""
    weights: dict[str, Any] = {
        name: tensor.to("meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    picture = torch.empty(1, 3, side, side, device="meta")
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16)
    with torch.no_grad(), Meter(weights.values()) as meter, autocast, CudaRules():
        functional_call(model, weights, (picture,))
        meter.mark("a tile")
    return meter.phases[0].peak
