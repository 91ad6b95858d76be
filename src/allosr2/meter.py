"""Bytes and FLOPs of what runs on the meta device: nothing is computed, nothing is held."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One stretch of what a meter was put to."""

    name: str
    """What ran."""
    flops: int
    """Floating-point operations, a multiplication and an addition being two."""
    peak: int
    """Most bytes held at a time."""


@dataclass(frozen=True, slots=True)
class _Operation:
    """What is known of an operation that ran once, so that its like need not run again."""

    outputs: list[tuple[torch.Size, tuple[int, ...], torch.dtype] | None]
    is_tuple: bool
    flops: int


class Meter(TorchDispatchMode):
    """Follows every tensor from the operation that makes it to its end, in autograd's hands too.

    Counted are matrix products, convolutions and attention (as by `torch.utils.flop_counter`), and whole
    tensors, in which a kernel's own workspace and an allocator's rounding are not. An operation that gives new
    tensors is worked out once and then repeated by its shapes: the meta device takes long over each.
    """

    _known: dict[tuple[object, ...], _Operation] = {}  # noqa: RUF012 - shared: shapes are facts

    def __init__(self, resident: Iterable[Tensor]) -> None:
        """Start at zero; storages of `resident` tensors are not counted."""
        super().__init__()
        self.phases: list[Phase] = []
        self.held = 0
        """Bytes held now."""
        self._peak = 0
        self._flops = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in resident:
            self._hold(tensor)
        self.held = self._peak = 0

    def mark(self, name: str, flops: int = 0) -> None:
        """End a phase; `flops` are added to it for what was not run."""
        self.phases.append(Phase(name=name, flops=self._flops + flops, peak=self._peak))
        self._peak, self._flops = self.held, 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator, of no public type
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the operator gives
        kwargs = kwargs or {}
        is_functional = _is_functional(func)
        key = (func, _shapes(args), _shapes(kwargs)) if is_functional else ()
        operation = self._known.get(key)
        if operation is None:
            result = func(*args, **kwargs)
            outputs = result if isinstance(result, list | tuple) else (result,)
            formula = flop_registry.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=result) if formula else 0
            if is_functional and all(t is None or t.is_meta for t in outputs):
                shapes = [None if t is None else (t.shape, t.stride(), t.dtype) for t in outputs]
                self._known[key] = _Operation(shapes, isinstance(result, tuple), flops)
        else:
            outputs = tuple(
                None if shape is None else _empty(*shape) for shape in operation.outputs
            )
            result = outputs if operation.is_tuple else outputs[0]
            flops = operation.flops
        self._flops += flops
        for tensor in outputs:
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._hold(tensor)
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._storages:
            return

        def drop(_: object) -> None:
            self.held -= size
            self._storages.pop(key, None)

        self._storages[key] = weakref.ref(storage, drop)
        self.held += size
        self._peak = max(self._peak, self.held)


class CudaRules(TorchFunctionMode):
    """What CUDA does and the meta device does not: fused attention and, while the CPU's is on, autocast.

    It casts to bfloat16. Its two lists are cut to what these networks call. As there, a trainable weight is
    cast once.
    """

    _bfloat16: frozenset[Callable[..., Any]] = frozenset(
        {
            functional.linear,
            functional.conv2d,
            torch.matmul,
            torch.bmm,
            Tensor.matmul,
            Tensor.__matmul__,
        }
    )
    _float32: frozenset[Callable[..., Any]] = frozenset(
        {
            functional.layer_norm,
            functional.group_norm,
            functional.rms_norm,
            functional.interpolate,
            functional.softmax,
            functional.mse_loss,
            torch.exp,
            torch.pow,
            torch.rsqrt,
            torch.sum,
            Tensor.pow,
            Tensor.__pow__,
            Tensor.rsqrt,
            Tensor.softmax,
            Tensor.sum,
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[int, Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function gives
        kwargs = kwargs or {}
        is_attention = func is functional.scaled_dot_product_attention
        autocast = torch.is_autocast_enabled("cpu")
        if autocast and (is_attention or func in self._bfloat16):
            args, kwargs = self._cast(args, kwargs, torch.bfloat16)
        elif autocast and func in self._float32:
            args, kwargs = self._cast(args, kwargs, torch.float32)
        return (_attention if is_attention else func)(*args, **kwargs)

    def _cast(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (
            tuple(self._cast_one(x, dtype) for x in args),
            {name: self._cast_one(x, dtype) for name, x in kwargs.items()},
        )

    def _cast_one(self, x: object, dtype: torch.dtype) -> object:
        if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.bfloat16):
            return x
        if dtype is torch.bfloat16 and x.is_leaf and x.requires_grad:
            if id(x) not in self._weights:
                self._weights[id(x)] = x.to(dtype)
            return self._weights[id(x)]
        return x.to(dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: ARG001 - no base here has fewer keys than queries
) -> Tensor:
    """One of the kernels that never hold all scores: for the backward pass they keep a number a query."""
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]


def _empty(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _shapes(x: object) -> object:
    """Arguments as a key: tensors by shape and kind, numbers by type too (1 and 1.0 promote differently)."""
    match x:
        case Tensor():
            return x.shape, x.stride(), x.dtype, x.device
        case list() | tuple():
            return tuple(map(_shapes, x))
        case dict():
            return tuple((name, _shapes(value)) for name, value in x.items())
        case _:
            return type(x), x


@cache
def _is_functional(func: Any) -> bool:  # noqa: ANN401
    """Whether an operator gives new tensors and changes none."""
    schema = func._schema
    ends = (*schema.arguments, *schema.returns)
    return all(end.alias_info is None for end in ends) and all(
        str(result.type) == "Tensor" for result in schema.returns
    )
