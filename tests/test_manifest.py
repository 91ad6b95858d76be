"""The record of a folder's results: what counts as done, what does not, and what a kill leaves."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path

import pytest

from allosr2.errors import ConfigError
from allosr2.manifest import MANIFEST, Manifest, key_of, locked

KEY = key_of({"scale": 4, "weights": "w"})


@pytest.fixture
def source(tmp_path) -> Path:
    (tmp_path / "lr.png").write_bytes(b"source")
    return tmp_path / "lr.png"


@pytest.fixture
def target(tmp_path) -> Path:
    (tmp_path / "sr" / "deep").mkdir(parents=True)
    return tmp_path / "sr" / "deep" / "lr.png"


def write(manifest: Manifest, source: Path, target: Path, content: bytes = b"result") -> None:
    """What a run does for one file."""
    manifest.see(source, target)
    partial = target.with_name(".allosr2-0.part")
    partial.write_bytes(content)
    manifest.record(source, target, partial, KEY)
    partial.replace(target)


def is_done(folder: Path, source: Path, target: Path, key: str | None = KEY) -> bool:
    return Manifest(folder).is_done(source, target, key)


def test_a_recorded_result_is_done(source, target, tmp_path):
    folder = tmp_path / "sr"
    assert not is_done(folder, source, target)
    write(Manifest(folder), source, target)
    assert is_done(folder, source, target)
    assert is_done(folder, source, target, key=None)
    assert Manifest(folder).source_of(target) == source
    (line,) = (folder / MANIFEST).read_text().splitlines()
    entry = json.loads(line)
    assert (entry["target"], entry["source"]) == ("deep/lr.png", "../lr.png")


def test_a_kill_between_record_and_rename(source, target, tmp_path):
    manifest = Manifest(tmp_path / "sr")
    manifest.see(source, target)
    partial = target.with_name(".allosr2-0.part")
    partial.write_bytes(b"result")
    manifest.record(source, target, partial, KEY)
    assert not is_done(tmp_path / "sr", source, target)
    target.write_bytes(b"an older file")
    assert not is_done(tmp_path / "sr", source, target)


def test_what_undoes_a_result(source, target, tmp_path):
    folder = tmp_path / "sr"
    write(Manifest(folder), source, target)
    assert not is_done(folder, source, target, key_of({"scale": 2, "weights": "w"}))

    other = source.with_name("other.png")
    os.link(source, other)  # the same size and time under another name
    assert not is_done(folder, other, target)

    was = target.stat().st_mtime_ns
    os.utime(target, ns=(was, was + 1))
    assert not is_done(folder, source, target)
    assert Manifest(folder).source_of(target) is None
    os.utime(target, ns=(was, was))
    assert is_done(folder, source, target)

    was = source.stat().st_mtime_ns
    os.utime(source, ns=(was, was + 1))
    assert not is_done(folder, source, target)
    os.utime(source, ns=(was, was))
    source.write_bytes(b"longer source")
    os.utime(source, ns=(was, was))
    assert not is_done(folder, source, target)
    source.unlink()
    assert not is_done(folder, source, target)


def test_a_source_that_changes_while_it_is_read(source, target, tmp_path):
    manifest = Manifest(tmp_path / "sr")
    manifest.see(source, target)
    source.write_bytes(b"changed meanwhile")
    partial = target.with_name(".allosr2-0.part")
    partial.write_bytes(b"result of the old source")
    manifest.record(source, target, partial, KEY)
    partial.replace(target)
    assert not is_done(tmp_path / "sr", source, target)


def test_the_newest_entry_counts(source, target, tmp_path):
    folder = tmp_path / "sr"
    write(Manifest(folder), source, target, b"first")
    write(Manifest(folder), source, target, b"second result")
    assert is_done(folder, source, target)
    assert len((folder / MANIFEST).read_text().splitlines()) == 2


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line(source, target, tmp_path, kept):
    folder = tmp_path / "sr"
    write(Manifest(folder), source, target)
    path = folder / MANIFEST
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    assert is_done(folder, source, target)
    target.unlink()
    write(Manifest(folder), source, target, b"again")  # does not grow together with the torn line
    assert is_done(folder, source, target)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[1, 2]\n",
        b'{"target": 3}\n',
        b"null\n",
        b"\n",
        b'"x"\n',
        b'"begun"\n',
        b"7\n",
        b'{"begun": "x"}\n',
        b'{"begun": {"asked": 1}}\n',
    ],
)
def test_lines_that_are_no_entries(source, target, tmp_path, line):
    folder = tmp_path / "sr"
    (folder / MANIFEST).write_bytes(line)
    write(Manifest(folder), source, target)
    assert is_done(folder, source, target)


def test_names_that_are_no_utf_8(source, tmp_path):
    folder = tmp_path / "sr"
    folder.mkdir()
    target = folder / os.fsdecode(b"\xe4.png")
    write(Manifest(folder), source, target)
    assert is_done(folder, source, target)


def test_inputs_and_results_are_moved_together(source, target, tmp_path):
    write(Manifest(tmp_path / "sr"), source, target)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("lr.png", "sr"):
        (tmp_path / name).rename(moved / name)
    assert is_done(moved / "sr", moved / "lr.png", moved / "sr" / "deep" / "lr.png")
    assert Manifest(moved / "sr").source_of(moved / "sr/deep/lr.png") == moved / "lr.png"


def test_a_source_that_no_path_leads_to(source, target, tmp_path, monkeypatch):
    def another_drive(*_):
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    with monkeypatch.context() as patched:
        patched.setattr(os.path, "relpath", another_drive)
        write(Manifest(tmp_path / "sr"), source, target)
        assert is_done(tmp_path / "sr", source, target)
    (line,) = (tmp_path / "sr" / MANIFEST).read_text().splitlines()
    assert json.loads(line)["source"] == source.as_posix()


@pytest.mark.parametrize("spelled", ["linked", "real", "around"])
def test_names_are_the_same_through_links(source, target, tmp_path, monkeypatch, spelled):
    (tmp_path / "link").symlink_to(tmp_path / "sr")
    (tmp_path / "link_to_lr.png").symlink_to(source)
    write(Manifest(tmp_path / "link"), source, tmp_path / "link" / "deep" / "lr.png")
    monkeypatch.chdir(tmp_path)
    folder = {"linked": Path("link"), "real": Path("sr"), "around": Path("sr/deep/..")}[spelled]
    found = folder / "deep" / "lr.png"
    assert is_done(folder, Path("lr.png"), found)
    assert is_done(folder, Path("sr/../lr.png"), found)
    assert not is_done(
        folder, Path("link_to_lr.png"), found
    )  # another input, which has its own result
    assert Manifest(folder).source_of(found) == source
    assert Manifest(folder).source_of(folder / "none.png") is None


def test_one_source_of_two_targets(source, target, tmp_path):
    folder, other = tmp_path / "sr", tmp_path / "sr" / "other.png"
    manifest = Manifest(folder)
    manifest.see(source, target)
    before = source.stat().st_mtime_ns
    os.utime(source, ns=(before, before + 1))
    manifest.see(source, other)
    for path in (target, other):
        partial = path.with_name(".allosr2-0.part")
        partial.write_bytes(b"result")
        manifest.record(source, path, partial, KEY)
        partial.replace(path)
    assert not is_done(folder, source, target)  # it was made from what the file was before
    assert is_done(folder, source, other)


def test_a_line_that_a_full_disk_tears(source, target, tmp_path):
    folder, other = tmp_path / "sr", tmp_path / "sr" / "other.png"
    manifest = Manifest(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(manifest, source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder / MANIFEST).stat().st_size == 40
    write(manifest, source, other)
    assert is_done(folder, source, other)
    assert len((folder / MANIFEST).read_bytes().splitlines()) == 2


def test_a_run_that_cannot_be_recorded(tmp_path):
    manifest = Manifest(tmp_path)
    (tmp_path / MANIFEST).symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"jsonl cannot be written \(No space left on device\); "):
        manifest.begin({"tile": "auto"}, 512)


def test_the_tile_of_the_newest_run(tmp_path):
    asked = {"model": "mini", "tile": "auto"}
    assert Manifest(tmp_path).tile_of(asked) is None
    for tile in (512, 512, 768):
        Manifest(tmp_path).begin(asked, tile)
    assert len((tmp_path / MANIFEST).read_text().splitlines()) == 2
    assert Manifest(tmp_path).tile_of(asked) == 768
    other = asked | {"model": "other"}
    assert Manifest(tmp_path).tile_of(other) is None
    Manifest(tmp_path).begin(other, 128)
    assert Manifest(tmp_path).tile_of(other) == 128
    assert Manifest(tmp_path).tile_of(dict(reversed(asked.items()))) == 768


def test_keys():
    assert key_of({"a": 1, "b": None}) == key_of({"b": None, "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_one_run_a_folder(tmp_path):
    with (
        locked(tmp_path),
        pytest.raises(ConfigError, match=r"another run is writing into .*; wait for it"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_partial_files_are_cleared_away(tmp_path):
    deep = tmp_path / "deep"
    deep.mkdir()
    with subprocess.Popen(["true"]) as gone:
        pass
    left = f".allosr2-{gone.pid}-0.part"
    for folder in (tmp_path, deep):
        (folder / left).touch()
        (folder / "photo.part").touch()
    with locked(tmp_path, [deep, tmp_path / "not made yet"]):
        found = sorted(path.name for path in tmp_path.rglob("*.part"))
    assert found == ["photo.part", "photo.part"]


def test_a_kill_before_a_result_is_replaced_leaves_the_former_one_known(source, target, tmp_path):
    manifest = Manifest(tmp_path / "sr")
    write(manifest, source, target)
    manifest.see(source, target)
    partial = target.with_name(".allosr2-1.part")
    partial.write_bytes(b"another result")
    manifest.record(source, target, partial, key_of({"scale": 2}))
    # killed here, before the rename
    again = Manifest(tmp_path / "sr")
    assert again.source_of(target) == source
    assert again.is_done(source, target, KEY)
    assert not again.is_done(source, target, key_of({"scale": 2}))
