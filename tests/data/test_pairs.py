"""Batches against the samples that they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from allosr2.data.degradation import degrade, preset, sample_degradation
from allosr2.data.pairs import Batch, batches
from allosr2.data.photos import HRImages

SEED = 2


@pytest.fixture(scope="module")
def images() -> HRImages:
    return HRImages(
        photos=Path("absent"),
        procedural=1.0,
        crop=32,
        minimum_scale=1.0,
        cache_gigabytes=0.0,
        seed=SEED,
    )


def load(images: HRImages, first: int, last: int, size: int, *, lr: bool = True) -> list[Batch]:
    degradation = preset("mild") if lr else None
    loaded = batches(
        images, degradation, scale=4, batch_size=size, first=first, last=last, workers=0
    )
    return list(loaded)


def test_a_batch_is_its_samples_one_by_one(images: HRImages) -> None:
    (batch,) = load(images, 2, 6, 4)
    assert batch.lr is not None
    for row, index in enumerate(range(2, 6)):
        hr = torch.tensor(images[index]).permute(2, 0, 1)[None] / 255
        lr = degrade(hr, [sample_degradation(preset("mild"), SEED, index)], 4)
        torch.testing.assert_close(batch.hr[row], hr[0], rtol=0, atol=0)
        torch.testing.assert_close(batch.lr[row], lr[0], rtol=0, atol=1e-7)


def test_lr_lies_on_the_8_bit_grid(images: HRImages) -> None:
    (batch,) = load(images, 0, 4, 4)
    assert batch.lr is not None
    assert batch.lr.shape == (4, 3, 8, 8)
    levels = 255 * batch.lr
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert batch.lr.min() >= 0
    assert batch.lr.max() <= 1
    assert batch.lr.std() > 0.01


def test_windows_of_a_sequence(images: HRImages) -> None:
    whole = torch.cat([batch.hr for batch in load(images, 0, 7, 1, lr=False)])
    later = load(images, 2, 7, 2, lr=False)
    assert [len(batch.hr) for batch in later] == [2, 2, 1]
    torch.testing.assert_close(torch.cat([b.hr for b in later]), whole[2:], rtol=0, atol=0)
    assert load(images, 3, 3, 2) == []


def test_without_a_degradation_there_is_no_lr(images: HRImages) -> None:
    (batch,) = load(images, 0, 2, 2, lr=False)
    assert batch.lr is None
    assert batch.to(torch.device("cpu")).lr is None


def test_a_batch_moves_as_a_whole() -> None:
    batch = Batch(hr=torch.zeros(1, 3, 8, 8), lr=torch.zeros(1, 3, 2, 2)).to(torch.device("meta"))
    assert batch.lr is not None
    assert (batch.hr.device.type, batch.lr.device.type) == ("meta", "meta")
