"""Batches against the samples that they are made of, whoever loads them and however they are cut."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.data.degradation import degrade, preset, sample_degradation
from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages, PhotoFolder, Sample
from allosr2.errors import DataError

SEED = 2
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images() -> HRImages:
    return HRImages(
        photos=(), procedural=1.0, crop=32, minimum_scale=1.0, cache_gigabytes=0.0, seed=SEED
    )


def load(
    images: HRImages, parts: Iterable[Sequence[int]], *, lr: bool = True, workers: int = 0
) -> list[Batch]:
    degradation = preset("mild") if lr else None
    return list(batches(images, degradation, parts, scale=4, workers=workers, device=CPU))


@pytest.mark.parametrize("name", ["mild", "real-esrgan", "stablesr"])
def test_a_batch_is_its_samples_one_by_one(images: HRImages, name: str) -> None:
    (batch,) = batches(images, preset(name), [range(2, 10)], scale=4, workers=0, device=CPU)
    assert batch.lr is not None
    assert list(batch.samples) == list(range(2, 10))
    for row, index in enumerate(batch.samples):
        hr = torch.tensor(images.sample(index).image).permute(2, 0, 1)[None] / 255
        lr = degrade(hr, [sample_degradation(preset(name), SEED, index)], 4)
        assert torch.equal(batch.hr[row], hr[0])
        assert torch.equal(batch.lr[row], (255 * lr[0]).round().to(torch.uint8) / 255)


def test_lr_lies_on_the_8_bit_grid(images: HRImages) -> None:
    (batch,) = load(images, [range(4)])
    assert batch.lr is not None
    assert batch.lr.shape == (4, 3, 8, 8)
    levels = 255 * batch.lr
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert batch.lr.min() >= 0
    assert batch.lr.max() <= 1
    assert batch.lr.std() > 0.01


def test_any_cut_of_a_sequence(images: HRImages) -> None:
    whole = torch.cat([batch.hr for batch in load(images, [[i] for i in range(7)], lr=False)])
    cut = load(images, [[5, 2], range(3, 5), (6,)], lr=False)
    assert [list(batch.samples) for batch in cut] == [[5, 2], [3, 4], [6]]
    assert torch.equal(torch.cat([b.hr for b in cut]), whole[[5, 2, 3, 4, 6]])
    assert load(images, []) == []


def test_without_a_degradation_there_is_no_lr(images: HRImages) -> None:
    (batch,) = load(images, [range(2)], lr=False)
    assert batch.lr is None


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photographs; number 3 is cut off, 13 is empty, 23 is a text, 33 has a header and noise."""
    folder = tmp_path_factory.mktemp("damaged")
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.jpg", quality=90)
    whole = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    (folder / "13.jpg").write_bytes(b"")
    (folder / "23.jpg").write_text("a text\n" * 100)
    header = whole[: whole.index(b"\xff\xda") + 14]  # to the end of the scan's own header
    (folder / "33.jpg").write_bytes(header + b"\xff\xd9")
    return folder


def open_damaged(folder: Path) -> HRImages:
    return HRImages(
        photos=[str(folder)],
        procedural=0.1,
        crop=32,
        minimum_scale=0.7,
        cache_gigabytes=1e-4,
        seed=SEED,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_photographs_are_named_and_replaced(damaged: Path, workers: int) -> None:
    images = open_damaged(damaged)
    loaded = load(images, [range(i, i + 8) for i in range(0, 160, 8)], workers=workers)
    assert [i for batch in loaded for i in batch.samples] == list(range(160))
    assert all(bool(b.hr.isfinite().all() and b.lr.isfinite().all()) for b in loaded)
    assert images.folder is not None
    met = {bad.photo for batch in loaded for bad in batch.bad}
    met |= {bad.photo for bad in images.folder.unreadable}
    assert met == {str(damaged / f"{number}.jpg") for number in ("03", "13", "23", "33")}
    for batch in loaded:
        assert {bad.photo for bad in batch.bad} <= set(batch.photos)
    # one by one, in another order, in this process
    alone = {i: images.sample(i) for i in reversed(range(160))}
    hr = torch.cat([batch.hr for batch in loaded])
    for index, sample in alone.items():
        assert torch.equal(hr[index], torch.tensor(sample.image).permute(2, 0, 1) / 255)
    good = {s.photo for s in alone.values() if s.photo}
    assert set().union(*(batch.photos for batch in loaded)) - met == good
    assert len(good) > 30


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_is_one_line_wherever_it_comes_from(tmp_path: Path, workers: int) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "cut.jpg")
    images = HRImages(
        photos=[str(tmp_path)], procedural=0, crop=32, minimum_scale=1, cache_gigabytes=0, seed=0
    )
    (tmp_path / "cut.jpg").unlink()
    with pytest.raises(DataError, match=r"100 photographs in a row .*cut\.jpg") as caught:
        load(images, [[0, 1]], workers=workers)
    assert "\n" not in str(caught.value)


def test_closing_ends_the_loading_processes(images: HRImages) -> None:
    loading = batches(images, None, [[i] for i in range(100)], scale=4, workers=2, device=CPU)
    next(loading)
    assert len(multiprocessing.active_children()) == 2
    loading.close()
    assert multiprocessing.active_children() == []


class Stuck(HRImages):
    """Sample 1 is waited for in vain."""

    def sample(self, index: int) -> Sample:
        if index == 1:
            time.sleep(600)
        return super().sample(index)


def test_one_that_hangs_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data import _utils

    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    stuck = Stuck(
        photos=(), procedural=1.0, crop=32, minimum_scale=1.0, cache_gigabytes=0.0, seed=SEED
    )
    loading = batches(stuck, None, [[i] for i in range(100)], scale=4, workers=1, device=CPU)
    next(loading)
    (worker,) = multiprocessing.active_children()
    loading.close()
    worker.join(timeout=5)
    assert worker.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_do_not_reach_the_loading_processes(
    images: HRImages, name: signal.Signals
) -> None:
    loading = batches(images, None, [[i] for i in range(60)], scale=4, workers=1, device=CPU)
    next(loading)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, name)
    assert [batch.samples for batch in loading] == [[i] for i in range(1, 60)]
    # nor are they kept from this one
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []).isdisjoint([signal.SIGINT, signal.SIGTERM])
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_loading_process_that_is_killed(images: HRImages) -> None:
    loading = batches(images, None, [[i] for i in range(10_000)], scale=4, workers=1, device=CPU)
    next(loading)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"^a loading process stopped .*lower --workers"):
        list(loading)


def test_loading_processes_share_the_cache_out(tmp_path: Path) -> None:
    """Two of them with room for two photographs keep one each, and the photographs' own cache none."""
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    images = HRImages(
        photos=[str(tmp_path)],
        procedural=0,
        crop=32,
        minimum_scale=1,
        cache_gigabytes=2 * 64 * 64 * 3 / 2**30,
        seed=0,
    )
    shares: list[int] = []
    share = PhotoFolder.with_part_of_cache

    def noted(self: PhotoFolder, parts: int) -> PhotoFolder:
        folder = share(self, parts)
        shares.append(folder._cache_bytes)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PhotoFolder, "with_part_of_cache", noted)
        for workers in (0, 1, 2):
            load(images, [[0], [1]], workers=workers)
    assert shares == [2 * 64 * 64 * 3] * 2 + [64 * 64 * 3]
    assert images.folder is not None
    assert not images.folder._cache
