"""Shards against Python's tarfile, WebDataset's rule of keys, and the folders that they are made of."""

from __future__ import annotations

import errno
import io
import re
import tarfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from allosr2.data.photos import HRImages
from allosr2.data.shards import missing_shards, name_members, plan_shards, write_shard
from allosr2.errors import ConfigError, DataError

# webdataset's own expression for key and extension
KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Photographs of many names and sizes; one is damaged."""
    folder = tmp_path / "set.v1"
    rng = np.random.default_rng(0)
    names = ("b.png", "a.jpg", "a.png", "A.PNG", "a.1.jpg", "a_1.png", "c-d/x.jpg", "c/x.y.z.png")
    for number, name in enumerate((*names, "long/" * 30 + "n.png", "\u00e4 \u65e5.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + 8 * number, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    cut = folder / "cut.jpg"
    cut.write_bytes((folder / "a.jpg").read_bytes()[:1500])
    return folder


def write(sources: list[str], output: Path, limit: float = 40_000) -> list[str]:
    """Write what is missing; returns its names."""
    shards = missing_shards(plan_shards(name_members(sources), output, limit), output)
    for shard in shards:
        write_shard(shard)
    return [shard.path.name for shard in shards]


def images(*sources: Path | str) -> HRImages:
    return HRImages(
        photos=[str(source) for source in sources],
        procedural=0.2,
        crop=32,
        minimum_scale=0.5,
        cache_gigabytes=1,
        seed=3,
    )


def test_the_layout_is_webdatasets(folder: Path, tmp_path: Path) -> None:
    names = write([str(folder)], tmp_path / "shards")
    assert names == [f"shard-{number:06d}.tar" for number in range(len(names))]
    assert len(names) > 2
    keys: list[str] = []
    contents: list[bytes] = []
    for name in names:
        path = tmp_path / "shards" / name
        assert path.stat().st_size <= 40_000
        with tarfile.open(path) as tar:
            for info in tar:
                match = KEY.match(info.name)
                assert match is not None
                assert match[2].lower() in ("png", "jpg")
                assert (info.mtime, info.uid, info.gid, info.uname) == (0, 0, 0, "")
                assert info.name.startswith("set.v1/")
                keys.append(match[1].casefold())
                file = tar.extractfile(info)
                assert file is not None
                contents.append(file.read())
    assert len(set(keys)) == len(keys) == 11
    assert sorted(contents) == sorted(p.read_bytes() for p in folder.rglob("*.*") if p.is_file())


def test_shards_draw_what_their_folder_draws(folder: Path, tmp_path: Path) -> None:
    write([str(folder)], tmp_path / "shards")
    from_folder, from_shards = images(folder), images(tmp_path / "shards")
    met = 0
    for index in range(60):
        one, other = from_folder.sample(index), from_shards.sample(index)
        np.testing.assert_array_equal(one.image, other.image)
        assert (one.photo is None) == (other.photo is None)
        assert len(one.bad) == len(other.bad)
        met += len(one.bad)
    assert met


def test_several_sources_and_shards_of_shards(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "set.v1"  # of the same name, so that keys meet
    other.mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(other / "b.png")
    sources = [f"{folder}:6", str(other)]
    write(sources, tmp_path / "shards")
    write([str(tmp_path / "shards")], tmp_path / "again", 1e9)
    with tarfile.open(tmp_path / "again" / "shard-000000.tar") as tar:
        assert len(tar.getnames()) == 7
        assert tar.getnames()[-2:] == ["shards/set.v1/b.png", "shards/set.v1/b-2.png"]
    for index in range(20):
        expected = images(*sources).sample(index).image
        for shards in ("shards", "again"):
            np.testing.assert_array_equal(images(tmp_path / shards).sample(index).image, expected)


def test_the_same_bytes_whenever_they_are_written(folder: Path, tmp_path: Path) -> None:
    names = write([str(folder)], tmp_path / "a")
    (folder / "b.png").touch()
    write([str(folder)], tmp_path / "b")
    (tmp_path / "b" / names[1]).unlink()
    (tmp_path / "b" / ".allosr2-999999999-00.part").write_bytes(b"of a run that was killed")
    kept = (tmp_path / "b" / names[0]).stat().st_mtime_ns
    assert write([str(folder)], tmp_path / "b") == [names[1]]
    assert (tmp_path / "b" / names[0]).stat().st_mtime_ns == kept
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_content_is_not_touched(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    names = write([str(folder)], output)
    refusal = r"--output is .*: {} in it is no shard of these .*; name another folder, or empty it"
    with pytest.raises(ConfigError, match=refusal.format(names[2])):
        write([str(folder)], output, 80_000)  # two shards
    with pytest.raises(ConfigError, match=refusal.format(r"shard-00000\d\.tar")):
        write([f"{folder}:9"], output)
    (output / "notes.txt").touch()
    with pytest.raises(ConfigError, match=refusal.format(r"notes\.txt")):
        write([str(folder)], output)
    (output / "notes.txt").unlink()
    whole = (output / names[0]).read_bytes()
    (output / names[0]).write_bytes(whole[:-2000])
    with pytest.raises(ConfigError, match=refusal.format(names[0])):
        write([str(folder)], output)


def test_a_full_disk_leaves_no_half_shard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("allosr2.data.shards.os.fsync", full)
        with pytest.raises(ConfigError, match=r"No space left on device; choose a folder .* room"):
            write([str(folder)], tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_photograph_that_changes_meanwhile(folder: Path, tmp_path: Path) -> None:
    (shard,) = plan_shards(name_members([str(folder)]), tmp_path, 1e9)
    (folder / "b.png").write_bytes(b"shorter")
    with pytest.raises(DataError, match=r"b\.png changed since .*; run the same command again"):
        write_shard(shard)
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png cannot be read: No such file .*; then run the"):
        write_shard(shard)
    assert list(tmp_path.glob("*.tar")) == []


@pytest.mark.parametrize("step", ["open", "read"])
def test_why_a_photograph_cannot_be_read_is_said(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (shard,) = plan_shards(name_members([str(folder)]), tmp_path, 1e9)
    error = OSError(errno.EIO, "Input/output error")

    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise error

    opened = Path.open

    def failing(self: Path, mode: str = "r", **settings: int) -> IO[Any]:
        if self.suffix == ".part":
            return opened(self, mode, **settings)
        if step == "open":
            raise error
        return Failing()

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(DataError, match=r"\.\w+ cannot be read: Input/output error; .*") as caught:
        write_shard(shard)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("*.tar")) == []


def test_a_photograph_larger_than_a_shard_has_its_own(folder: Path, tmp_path: Path) -> None:
    shards = plan_shards(name_members([str(folder)]), tmp_path, 1.0)
    assert [len(shard.members) for shard in shards] == [1] * 11
