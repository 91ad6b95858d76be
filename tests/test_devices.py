"""Names of devices, good and bad; how much memory they have, and when it ran out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from allosr2 import devices
from allosr2.devices import free_memory, is_out_of_memory, resolve_device
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


def test_a_processor_is_named_with_its_threads(monkeypatch, tmp_path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text(
        "processor\t: 0\nmodel name\t: Fast One 3000\n\nmodel name\t: Fast One 3000\n"
    )
    monkeypatch.setattr(devices, "_CPU", listing)
    threads = torch.get_num_threads()
    assert devices.describe_device(torch.device("cpu")) == f"Fast One 3000, {threads} threads"
    monkeypatch.setattr(devices, "_CPU", tmp_path / "absent")
    monkeypatch.setattr(devices.platform, "processor", lambda: "")
    assert devices.describe_device(torch.device("cpu")) == f"CPU, {threads} threads"


# ------------------------------------------------------------------------------------------ memory

GIB = 2**30
CPU = torch.device("cpu")


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB free, and a folder for the files of a container on it."""
    machine = SimpleNamespace(available=8 * GIB)
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: machine)
    groups = tuple((tmp_path / str(i), *names) for i, (_, *names) in enumerate(devices._GROUPS))
    monkeypatch.setattr(devices, "_GROUPS", groups)
    for folder, *_ in groups:
        folder.mkdir()
    return tmp_path


def write_group(folder: Path, version: int, limit: str, used: int, cached: int) -> None:
    """A container's files as Linux writes them (its documentation: cgroup-v1/memory.rst, cgroup-v2.rst)."""
    names = {
        2: ("memory.max", "memory.current", "inactive_file {}\n"),
        1: (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "inactive_file 1\ntotal_inactive_file {}\n",
        ),
    }[version]
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2].format(cached)}slab 3\n")


def test_without_a_container_all_of_the_machine_is_free(group: Path) -> None:
    assert free_memory(CPU) == 8 * GIB


@pytest.mark.parametrize(("version", "folder"), [(2, "0"), (1, "1")])
def test_a_container_s_limit_counts_and_its_file_cache_does_not(
    group: Path, version: int, folder: str
) -> None:
    """A long run reads files until they fill the container: that memory is still to be had."""
    write_group(group / folder, version, str(4 * GIB), GIB, 0)
    assert free_memory(CPU) == 3 * GIB
    write_group(group / folder, version, str(4 * GIB), 4 * GIB, 2 * GIB)
    assert free_memory(CPU) == 2 * GIB
    write_group(group / folder, version, str(4 * GIB), 5 * GIB, 0)
    assert free_memory(CPU) == 0
    write_group(group / folder, version, str(100 * GIB), GIB, 0)
    assert free_memory(CPU) == 8 * GIB
    write_group(group / folder, version, "max" if version == 2 else str(2**63 - 4096), GIB, 0)
    assert free_memory(CPU) == 8 * GIB


def test_files_of_a_container_may_be_missing(group: Path) -> None:
    for name in ("memory.max", "memory.current"):
        write_group(group / "0", 2, str(4 * GIB), GIB, 0)
        (group / "0" / name).unlink()
        assert free_memory(CPU) == 8 * GIB


def test_free_memory_here_is_some_and_no_more_than_there_is() -> None:
    total = devices.psutil.virtual_memory().total
    assert 0 < free_memory(CPU) < total


def test_torch_s_own_cache_is_free_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    assert free_memory(torch.device("cuda", 0)) == 140


@pytest.mark.gpu
def test_what_is_let_go_on_a_gpu_is_free_again() -> None:
    device = torch.device("cuda", 0)
    before = free_memory(device)
    held = torch.empty(GIB, dtype=torch.uint8, device=device)
    assert before - free_memory(device) == pytest.approx(GIB, rel=0.1)
    del held
    assert free_memory(device) == pytest.approx(before, abs=0.1 * GIB)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device=device)
    assert is_out_of_memory(caught.value)


def test_torch_s_own_error_on_the_cpu_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        # as torch says it on Windows
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            True,
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("DefaultCPUAllocator: can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_other_errors_are_told_apart(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
