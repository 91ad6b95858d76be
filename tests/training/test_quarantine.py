"""What is listed of damaged photographs, and how many are too many."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allosr2.data.pairs import Batch
from allosr2.data.photos import BadPhoto, HRImages
from allosr2.errors import DataError
from allosr2.training.quarantine import Quarantine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty photographs, of which the last two are none."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for number in range(18):
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    for number in (18, 19):
        (folder / f"{number:02d}.png").write_bytes(b"no picture")
    return folder


def images(*sources: Path | str) -> HRImages:
    return HRImages(
        photos=[str(source) for source in sources],
        procedural=0.0,
        crop=32,
        minimum_scale=1.0,
        cache_gigabytes=1,
        seed=0,
    )


def batch(opened: list[str], bad: list[str]) -> Batch:
    return Batch(
        hr=torch.zeros(1, 3, 8, 8),
        lr=None,
        photos=(*bad, *opened),
        bad=tuple(
            BadPhoto(photo=name, reason=f"{name} is cut off; fetch it again") for name in bad
        ),
    )


def listed(path: Path) -> list[str]:
    return [json.loads(line)["photograph"] for line in path.read_text().splitlines()]


def test_each_is_said_and_listed_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "quarantine.jsonl"
    unreadable = [str(folder / "18.png"), str(folder / "19.png")]
    quarantine = Quarantine(path, images(folder), 0.5)
    assert listed(path) == unreadable
    quarantine.note(batch(["a", "b"], ["c"]))
    quarantine.note(batch(["a"], ["d", "c"]))
    quarantine.note(batch(["e"], []))
    assert listed(path) == [*unreadable, "c", "d"]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(said) == 4
    assert said[2] == "c is cut off; fetch it again; others take its place"
    entry = json.loads(path.read_text().splitlines()[2])
    assert entry == {"photograph": "c", "reason": "c is cut off; fetch it again"}


def test_a_resumed_run_goes_on_with_the_list(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, images(folder), 0.5).note(batch([], ["c"]))
    with path.open("a") as file:  # a kill in the middle of a line
        file.write('{"photograph": "d", "rea')
    caplog.clear()
    quarantine = Quarantine(path, images(folder), 0.5)
    quarantine.note(batch([], ["c"]))
    assert caplog.records == []
    quarantine.note(batch([], ["d", "e"]))
    assert len(caplog.records) == 2
    *former, torn, d, e = path.read_text().splitlines()
    assert len(former) == 3
    assert torn == '{"photograph": "d", "rea'
    assert [json.loads(line)["photograph"] for line in (d, e)] == ["d", "e"]
    caplog.clear()
    Quarantine(path, images(folder), 0.5).note(batch([], ["c", "d", "e"]))
    assert caplog.records == []


def test_processes_share_a_list(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first, second = (Quarantine(path, images(f"{folder}:18"), 0.9) for _ in range(2))
    first.note(batch([], ["c"]))
    second.note(batch([], ["c", "d"]))
    first.note(batch([], ["d", "e"]))
    assert listed(path) == ["c", "d", "e"]


def test_of_processes_the_leader_alone_lists_what_all_find(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "quarantine.jsonl"
    other = Quarantine(path, images(folder), 0.2, leads=False)
    assert not path.exists()
    assert caplog.records == []
    Quarantine(path, images(folder), 0.2, leads=True)
    other.note(batch([], ["c", "d"]))
    assert len(listed(path)) == len(caplog.records) == 4
    with pytest.raises(DataError, match="2 of 20 have unreadable headers and 3 of 3 opened"):
        other.note(batch([], ["e"]))  # they count all the same


def test_unreadable_headers_alone_can_be_too_many(folder: Path, tmp_path: Path) -> None:
    Quarantine(tmp_path / "enough.jsonl", images(folder), 0.1)  # two of twenty
    path = tmp_path / "quarantine.jsonl"
    with pytest.raises(DataError) as caught:
        Quarantine(path, images(folder), 0.09)
    assert str(caught.value) == (
        f"too many damaged photographs: 2 of 20 have unreadable headers ({folder / '18.png'}, "
        f"{folder / '19.png'}), more than 9%; {path} lists them: put whole ones in their places, or raise "
        "--bad-fraction"
    )
    assert len(listed(path)) == 2


def test_of_few_photographs_as_many_must_be_damaged(folder: Path, tmp_path: Path) -> None:
    """Four of twenty are 20%, whatever part of those opened so far they are."""
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", images(folder), 0.2)
    quarantine.note(batch([], ["c", "d"]))
    with pytest.raises(DataError, match=r"and 3 of 4 opened so far are damaged .*, \.\.\.\)"):
        quarantine.note(batch(["a"], ["e"]))


def test_of_many_photographs_a_sample_tells(tmp_path: Path) -> None:
    photos = HRImages(photos=(), procedural=1, crop=32, minimum_scale=1, cache_gigabytes=0, seed=0)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", photos, 0.2)
    quarantine._readable = 85_000
    good = [f"good-{i}" for i in range(1000)]
    bad = [f"bad-{i}" for i in range(1000)]
    quarantine.note(batch([], bad[:30]))  # all that were opened, and yet few
    quarantine.note(batch(good[:150], bad[30:40]))
    quarantine.note(batch(good[150:160], []))
    quarantine.note(batch(good[160:170], bad[:42]))  # 42 of 212
    with pytest.raises(DataError, match="43 of 213 opened so far are damaged") as caught:
        quarantine.note(batch([], bad[:43]))
    assert "\n" not in str(caught.value)


def test_a_run_that_draws_everything_needs_no_list(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, images(), 0.0).note(batch([], []))
    assert not path.exists()
