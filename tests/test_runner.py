"""Tiles through a model: what does not fit is halved, what is not finite runs again, and what a tile takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

from allosr2 import runner as runner_module
from allosr2.errors import ImageError
from allosr2.model import AlloSR2
from allosr2.runner import LARGEST_BATCH, Runner, Stage, _activation_bytes, precision_on

TOKEN = 16
"""Pixels along a side of a token of the tiny model."""

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)"
    ),
)


@pytest.fixture
def runner(tiny_model: Path) -> Runner:
    return Runner(AlloSR2.from_pretrained(tiny_model).merge(), "cpu")


def pictures(count: int, rows: int, columns: int) -> torch.Tensor:
    """Random pictures of so many tokens."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.rand(count, 3, rows * TOKEN, columns * TOKEN, generator=generator)


def picked(tiles: torch.Tensor) -> torch.Tensor:
    """Two elements of each token along a side, as an encoder gives: the same in tiles of any layout."""
    return tiles[..., ::8, ::8] * 2 - 1


class Small:
    """A stage that runs out of memory with more tiles, or more tokens along a side, than it has room for."""

    def __init__(
        self, tiles: int = 1000, tokens: int = 1000, error: BaseException = OUT_OF_MEMORY[0]
    ) -> None:
        self.tiles, self.tokens, self.error = tiles, tokens, error
        self.shapes: list[tuple[int, int, int]] = []
        self.stage = Stage(self.run, (TOKEN, 2))

    def run(self, tiles: torch.Tensor) -> torch.Tensor:
        count, _, height, width = tiles.shape
        self.shapes.append((count, height // TOKEN, width // TOKEN))
        if count > self.tiles or max(height, width) > self.tokens * TOKEN:
            raise self.error
        return picked(tiles)


# --------------------------------------------------------------------------------- without trouble


def test_the_two_stages_are_the_model(runner: Runner) -> None:
    image = pictures(2, 3, 2)
    runner.batch = 2
    latents = runner.apply(runner.encode, image, "a.png")
    result = runner.apply(runner.decode, latents, "a.png")
    with torch.no_grad():
        expected = runner.model(image)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    for stage, before, after in ((runner.encode, image, latents), (runner.decode, latents, result)):
        assert before.shape[-2] * stage.units[1] == after.shape[-2] * stage.units[0]
    assert (result.dtype, result.device.type) == (torch.float32, "cpu")
    assert not result.requires_grad


def test_no_more_tiles_run_at_a_time_than_are_allowed(runner: Runner) -> None:
    stage = Small()
    runner.batch = 3
    image = pictures(8, 2, 2)
    assert torch.equal(runner.apply(stage.stage, image, "a.png"), picked(image))
    assert [count for count, _, _ in stage.shapes] == [3, 3, 2]


def test_the_cpu_runs_in_float32_and_a_gpu_in_bfloat16(runner: Runner) -> None:
    assert runner.precision == precision_on(torch.device("cpu")) == "float32"
    assert precision_on(torch.device("cuda:0")) == "bfloat16"
    assert {tensor.dtype for tensor in runner.model.parameters()} == {torch.float32}


# ----------------------------------------------------------------------------------- out of memory


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "python", "cpu"])
def test_the_batch_is_halved_first_and_stays_so(runner: Runner, error: BaseException) -> None:
    stage = Small(tiles=2, error=error)
    runner.batch = 8
    image = pictures(8, 5, 5)
    assert torch.equal(runner.apply(stage.stage, image, "a.png"), picked(image))
    assert [count for count, _, _ in stage.shapes] == [8, 4, 2, 2, 2, 2]
    assert {shape[1:] for shape in stage.shapes} == {(5, 5)}
    assert runner.batch == 2
    stage.shapes.clear()
    runner.apply(stage.stage, image, "b.png")
    assert [count for count, _, _ in stage.shapes] == [2, 2, 2, 2]


def test_a_batch_never_grows_again(runner: Runner) -> None:
    runner.batch = 8
    runner.apply(Small(tiles=1).stage, pictures(8, 4, 4), "a.png")
    assert runner.batch == 1
    roomy = Small()
    runner.apply(roomy.stage, pictures(8, 4, 4), "a.png")
    assert [count for count, _, _ in roomy.shapes] == [1] * 8


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "python", "cpu"])
def test_then_the_tile_is_halved_and_stays_so(
    runner: Runner, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Small(tokens=8, error=error)
    runner.batch = 2
    image = pictures(2, 20, 32)
    with caplog.at_level(logging.WARNING):
        result = runner.apply(stage.stage, image, "a.png")
    torch.testing.assert_close(result, picked(image), rtol=0, atol=1e-6)
    failed = [shape for shape in stage.shapes if max(shape[1:]) > 8]
    assert failed[:3] == [(2, 20, 32), (1, 20, 32), (1, 12, 14)]
    assert [record.getMessage() for record in caplog.records] == [
        "a.png: out of memory; going on with tiles of 256 px",
        "a.png: out of memory; going on with tiles of 112 px",
    ]
    stage.shapes.clear()
    runner.apply(stage.stage, image, "b.png")
    assert max(max(shape[1:]) for shape in stage.shapes) <= 7
    assert len(caplog.records) == 2


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(8, 30),
    st.integers(0, 2**32 - 1),
)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_result_is_the_same_wherever_memory_ends(
    runner: Runner, count: int, rows: int, columns: int, tiles: int, tokens: int, seed: int
) -> None:
    """Also when it ends at random, once in a while, as it does where other programs run."""
    runner.batch, runner._side = 4, 1000
    stage = Small(tiles, tokens)
    generator = torch.Generator().manual_seed(seed)

    def moody(batch: torch.Tensor) -> torch.Tensor:
        is_bad_day = float(torch.rand(1, generator=generator)) < 0.1
        if is_bad_day and (len(batch) > 1 or min(batch.shape[-2:]) >= 8 * TOKEN):
            raise stage.error
        return stage.run(batch)

    image = pictures(count, rows, columns)
    result = runner.apply(Stage(moody, (TOKEN, 2)), image, "a.png")
    torch.testing.assert_close(result, picked(image), rtol=0, atol=1e-6)


def test_the_decoder_s_tiles_are_halved_as_well(runner: Runner) -> None:
    latents = torch.rand(1, 4, 2 * 9, 2 * 17, generator=torch.Generator().manual_seed(0))
    sides: list[int] = []

    def repeated(z: torch.Tensor) -> torch.Tensor:
        if max(z.shape[-2:]) > 2 * 8:
            raise OUT_OF_MEMORY[0]
        sides.append(max(z.shape[-2:]))
        return z.repeat_interleave(8, -2).repeat_interleave(8, -1)

    result = runner.apply(Stage(repeated, (2, TOKEN)), latents, "a.png")
    expected = latents.repeat_interleave(8, -2).repeat_interleave(8, -1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)
    assert all(side % 2 == 0 for side in sides)


def test_too_little_for_any_tile_is_one_line_and_leaves_the_runner_as_good_as_before(
    runner: Runner,
) -> None:
    none = Small(tokens=0)
    message = (
        r"^a\.png: cpu is out of memory even with tiles of (64|80|96|112) px; "
        "close other programs or use another device$"
    )
    for _ in range(5):
        with pytest.raises(ImageError, match=message):
            runner.apply(none.stage, pictures(1, 30, 20), "a.png")
    assert min(max(shape[1:]) for shape in none.shapes) >= 4
    image = pictures(1, 30, 20)
    roomy = Small()
    result = runner.apply(roomy.stage, image, "a.png")
    torch.testing.assert_close(result, picked(image), rtol=0, atol=1e-6)
    assert max(max(shape[1:]) for shape in roomy.shapes) >= 4


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("x"), ValueError("y")],
)
def test_other_errors_pass_through(runner: Runner, error: Exception) -> None:
    stage = Small(tiles=0, error=error)
    runner.batch = 4
    with pytest.raises(type(error)) as caught:
        runner.apply(stage.stage, pictures(4, 4, 4), "a.png")
    assert caught.value is error
    assert len(stage.shapes) == 1
    assert runner.batch == 4


# -------------------------------------------------------------------------------------- not finite


def broken_in(runner: Runner, *precisions: str, value: float = float("nan")) -> Callable:
    """A stage's function with one value that is none, in these precisions."""

    def run(tiles: torch.Tensor) -> torch.Tensor:
        result = picked(tiles)
        if runner.precision in precisions:
            result[0, 1, 2, 3] = value
        return result

    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_in_bfloat16_runs_once_more_in_float32(
    runner: Runner, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    runner._use(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    image = pictures(1, 4, 4)
    stage = Stage(broken_in(runner, "bfloat16", value=value), (TOKEN, 2))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(runner.apply(stage, image, "a.png"), picked(image))
    assert [record.getMessage() for record in caplog.records] == [
        "a.png: not finite in bfloat16; once more in float32"
    ]
    assert runner.precision == "bfloat16"
    after = runner.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}


def test_it_is_the_model_that_runs_in_float32(runner: Runner) -> None:
    """Weights, inputs and results are float32 during the second run, and no autocast is on."""
    runner._use(torch.bfloat16)
    seen: list[tuple[torch.dtype, bool]] = []

    def encode(image: torch.Tensor) -> torch.Tensor:
        result = runner.encode.function(image)
        weight = next(runner.model.codec.vae.parameters())
        seen.append((weight.dtype, torch.is_autocast_enabled("cpu")))
        return result * (torch.nan if runner.precision == "bfloat16" else 1)

    image = pictures(1, 2, 3)
    result = runner.apply(Stage(encode, runner.encode.units), image, "a.png")
    assert seen == [(torch.bfloat16, True), (torch.float32, False)]
    with torch.no_grad():
        expected = runner.model.float().one_step(runner.model.codec.encode(image))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_in_float32_either_is_one_line(
    runner: Runner, precision: torch.dtype
) -> None:
    runner._use(precision)
    stage = Stage(broken_in(runner, "float32", "bfloat16"), (TOKEN, 2))
    message = r"^b\.png: the model's result is not finite, in float32 too; try another model$"
    with pytest.raises(ImageError, match=message):
        runner.apply(stage, pictures(1, 4, 4), "b.png")
    assert runner.precision == str(precision).removeprefix("torch.")
    assert {tensor.dtype for tensor in runner.model.parameters()} == {precision}


def test_float32_may_need_smaller_batches_and_tiles(runner: Runner) -> None:
    """It takes twice the memory: what fitted in bfloat16 need not fit now."""
    runner._use(torch.bfloat16)
    runner.batch = 4
    in_float32 = Small(tiles=1, tokens=8)

    def run(tiles: torch.Tensor) -> torch.Tensor:
        return in_float32.run(tiles) if runner.precision == "float32" else tiles[:, :, ::8, ::8] / 0

    image = pictures(4, 10, 10)
    result = runner.apply(Stage(run, (TOKEN, 2)), image, "a.png")
    torch.testing.assert_close(result, picked(image), rtol=0, atol=1e-6)
    assert in_float32.shapes[:2] == [(4, 10, 10), (2, 10, 10)]
    assert runner.precision == "bfloat16"


def test_no_memory_for_float32_is_one_line(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    runner._use(torch.bfloat16)
    use = Runner._use

    def scarce(self: Runner, precision: torch.dtype) -> None:
        use(self, precision)
        if precision == torch.float32:
            raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(Runner, "_use", scarce)
    message = r"^a\.png: not finite in bfloat16, and cpu has no memory for float32; use another"
    with pytest.raises(ImageError, match=message) as caught:
        runner.apply(Stage(broken_in(runner, "bfloat16"), (TOKEN, 2)), pictures(1, 4, 4), "a.png")
    assert "\n" not in str(caught.value)
    assert runner.precision == "bfloat16"
    assert {tensor.dtype for tensor in runner.model.parameters()} == {torch.bfloat16}


# ------------------------------------------------------------------------------------------ memory


def test_bytes_of_one_convolution_by_hand() -> None:
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    assert _activation_bytes(convolution, 32, torch.float32) == 5 * 32**2 * 4
    # with autocast the picture and the weights are copied too
    cast = 3 * 32**2 + 5 * 3 * 3**2 + 5
    assert _activation_bytes(convolution, 32, torch.bfloat16) == (cast + 5 * 32**2) * 2
    # the input of the second lives until its output is there
    two = nn.Sequential(convolution, nn.Conv2d(5, 7, 3, padding=1))
    assert _activation_bytes(two, 32, torch.float32) == (5 + 7) * 32**2 * 4


def most_allocated(run: Callable[[], object]) -> int:
    """Most bytes that were really held at a time on the CPU, by torch's own allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        run()
    held = most = 0
    for event in measured.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize("rows", [16, 24])
def test_bytes_of_a_tile_are_what_it_takes(runner: Runner, rows: int) -> None:
    image = pictures(1, rows, 16)
    with torch.inference_mode():
        runner.model(image)  # what is set up once
        taken = most_allocated(lambda: runner.model(image))
    planned = runner.bytes_of(image.shape[-2] * image.shape[-1])
    assert 0.8 < taken / planned < 1.25


def test_bytes_grow_with_the_pixels_alone(runner: Runner) -> None:
    assert runner.bytes_of(512 * 512) == pytest.approx(4 * runner.bytes_of(256 * 256), rel=1e-6)
    assert next(runner.model.parameters()).device.type == "cpu"  # measuring moved nothing


def test_the_first_tile_that_fits_is_taken(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    sides = (576, 512, 384, 256, 128)
    for fits in sides:
        room = runner.bytes_of(fits**2) / 0.6 + 10  # 40 % are kept free
        monkeypatch.setattr(runner_module, "free_memory", lambda _, room=room: int(room))
        assert runner.largest_that_fits(sides) == fits
    monkeypatch.setattr(runner_module, "free_memory", lambda _: 0)
    assert runner.largest_that_fits(sides) == 128


def test_the_batch_that_fits(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runner.batch_that_fits(512) == 1  # on the CPU
    runner.device = torch.device("cuda")
    for free, expected in [(0, 1), (0.9, 1), (3.5, 3), (7.1, 7), (100, LARGEST_BATCH)]:
        room = free * runner.bytes_of(512**2) / 0.6
        monkeypatch.setattr(runner_module, "free_memory", lambda _, room=room: int(room))
        assert runner.batch_that_fits(512) == expected


# ------------------------------------------------------------------------------------- fingerprint


def loaded(folder: Path, fidelity: float = 0.0) -> Runner:
    return Runner(AlloSR2.from_pretrained(folder).merge(fidelity), "cpu")


def test_two_loads_have_one_fingerprint(runner: Runner, tiny_model: Path) -> None:
    fingerprint = runner.fingerprint()
    assert fingerprint == runner.fingerprint() == loaded(tiny_model).fingerprint()
    assert len(fingerprint) == 16


def test_every_tensor_counts(runner: Runner) -> None:
    fingerprints = {runner.fingerprint()}
    tensors = [*runner.model.state_dict().values(), *runner.model.velocity.buffers()]
    for tensor in tensors:
        before = tensor.clone()
        tensor += 0.01
        fingerprints.add(runner.fingerprint())
        tensor.copy_(before)
    assert len(fingerprints) == 1 + len(tensors)


def test_every_weight_counts(runner: Runner) -> None:
    weight = next(t for t in runner.model.state_dict().values() if t.numel() > 1000)
    before = runner.fingerprint()
    for place in np.ndindex(*(min(side, 3) for side in weight.shape)):
        weight[place] += 0.01
        after = runner.fingerprint()
        assert after != before
        before = after


def test_fidelity_counts(tiny_model: Path) -> None:
    runners = [loaded(tiny_model, fidelity) for fidelity in (0, 0.25, 0.5, 1)]
    runners.append(Runner(AlloSR2.from_pretrained(tiny_model), "cpu"))  # not merged
    assert len({runner.fingerprint() for runner in runners}) == len(runners)


@pytest.mark.parametrize(("name", "value"), [("t_star", 0.5), ("scale", 2)])
def test_constants_count(runner: Runner, name: str, value: float) -> None:
    before = runner.fingerprint()
    object.__setattr__(runner.model.config, name, value)
    assert runner.fingerprint() != before
