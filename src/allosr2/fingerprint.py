"""What tells one set of weights from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fingerprint(tensors: Mapping[str, Tensor], constants: tuple[object, ...] = ()) -> str:
    """A hash, 16 digits, of constants and, of each tensor, its name, shape, a sample of 64 values and the sum.

    The sum, of its bytes as whole numbers of 64 bits, takes in every value, at the speed of memory.
    """
    digest = hashlib.sha256(repr(constants).encode())
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(flat.numel() // 64, 1)].float().cpu()
        digest.update(
            f"{name} {tuple(tensor.shape)} {_sum(flat)}".encode() + sample.numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def tensors_of(**modules: nn.Module | None) -> dict[str, Tensor]:
    """Parameters and buffers of modules by name, each behind its module's."""
    return {
        f"{part}.{name}": tensor
        for part, module in modules.items()
        if module is not None
        for name, tensor in module.state_dict().items()
    }


def _sum(flat: Tensor) -> int:
    if flat.storage_offset():
        flat = flat.clone()  # or it may not begin at a multiple of 8 bytes
    octets = flat.view(torch.uint8)
    whole = octets.numel() // 8 * 8
    return int(octets[:whole].view(torch.int64).sum()) + int(octets[whole:].sum())
