"""A model's stages by OpenVINO instead of PyTorch: faster on CPUs, for flows of convolutions.

Nothing else imports openvino.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from allosr2.backbones.conv import ConvVelocity
from allosr2.errors import ConfigError
from allosr2.model import AlloSR2

Backend = Literal["torch", "openvino"]
"""What computes a model."""
Function = Callable[[Tensor], Tensor]

_KEPT = 8
"""Compiled stages that are kept: one for each stage and size of tiles, some 50 MB each."""


class OpenVINO:
    """Computes stages of a model; each is converted for the size of tiles that it first meets.

    That takes a second or two, and is done again for tiles of another size.
    """

    def __init__(self, model: AlloSR2, device: torch.device) -> None:
        """Keep a model, in float32 on the CPU, with its adapters merged.

        Raises ConfigError without the package, for another device, and for models that it does not know.
        """
        if find_spec("openvino") is None:
            raise ConfigError(
                "backend is openvino, which is not installed: pip install 'allosr2[openvino]', or use torch"
            )
        if device.type != "cpu":
            raise ConfigError(
                f"backend is openvino, which computes on the CPU: use device cpu, or torch on {device}"
            )
        if not isinstance(model.velocity, ConvVelocity):
            raise ConfigError(
                "backend is openvino: it knows flows of convolutions, as mini-flow's, and no "
                f"{type(model.velocity.transformer).__name__}; use torch"
            )
        self._model = model
        self._compiled = lru_cache(_KEPT)(self._compile)

    def __call__(self, function: Function, tiles: Tensor, precision: torch.dtype) -> Tensor:
        """`function`, a part of the model, of tiles `k c h w`; in float32, computed in `precision`.

        Keep `function` between calls: what was compiled is looked up by it.
        """
        # the step tells the weights as well: both are set by `merge`
        compiled = self._compiled(function, tiles.shape, precision, self._model.step)
        return torch.from_numpy(compiled(tiles.numpy())[0])

    def _compile(
        self,
        function: Function,
        shape: torch.Size,
        precision: torch.dtype,
        step: float,  # noqa: ARG002 - a part of the key
    ) -> Any:  # noqa: ANN401
        import_openvino()
        from openvino.frontend import FrontEndManager  # pyright: ignore[reportMissingTypeStubs]
        from openvino.frontend.pytorch.fx_decoder import (  # pyright: ignore[reportMissingTypeStubs]
            TorchFXPythonDecoder,
        )

        with torch.inference_mode(mode=False), torch.no_grad(), _quiet():
            exported = torch.export.export(_Part(function, self._model), (torch.zeros(shape),))
            # held by a name each: the front end does not keep them
            decoder: Any = cast(Any, TorchFXPythonDecoder).from_exported_program(exported)
            front_end: Any = FrontEndManager().load_by_framework("pytorch")
            loaded = front_end.load(decoder)
            converted = front_end.convert(loaded)
        converted.reshape(list(shape))
        return compile_on_cpu(converted, precision)


def import_openvino() -> Any:  # noqa: ANN401
    """The package, kept from telling its makers of conversions."""
    # it does where it finds this other package
    sys.modules.setdefault("openvino_telemetry", cast(Any, None))
    import openvino

    return openvino


def compile_on_cpu(converted: object, precision: torch.dtype) -> Any:  # noqa: ANN401
    """Compile what OpenVINO has converted, for float32 or bfloat16 and as many threads as PyTorch takes."""
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float32: "f32"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return import_openvino().Core().compile_model(converted, "CPU", settings)


class _Part(nn.Module):
    """A function of a model as a module, which has the model's weights."""

    def __init__(self, function: Function, model: AlloSR2) -> None:
        super().__init__()
        self.function = function
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """The function."""
        return self.function(x)


@contextmanager
def _quiet() -> Generator[None]:
    """Without what OpenVINO logs, with a traceback, of operators that it knows and PyTorch has no more."""

    def other(record: logging.LogRecord) -> bool:
        return "not found in decomp table" not in record.getMessage()

    logging.root.addFilter(other)
    try:
        yield
    finally:
        logging.root.removeFilter(other)
