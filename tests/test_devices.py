"""Names of devices, good and bad."""

from __future__ import annotations

import pytest
import torch

from allosr2.devices import resolve_device
from allosr2.errors import ConfigError


def test_names_that_every_machine_has() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:99"])
def test_absent_device_is_one_line(name: str) -> None:
    message = f"^device is {name}: this machine has no such device; use auto, cpu, cuda or cuda:N$"
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_cuda_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="device is cuda: "):
        resolve_device("cuda")


@pytest.mark.gpu
def test_first_gpu() -> None:
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
