"""Photographs of folders and of tar files that Python's tarfile and the shell's tar write."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.data.sources import Source
from allosr2.errors import DataError, ImageError
from allosr2.imaging.io import read_rgb


def png(seed: int, height: int = 40, width: int = 50) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue(), pixels


def write_tar(path: Path, members: dict[str, bytes], **settings: int) -> None:
    with tarfile.open(path, "w", **settings) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    long = "deep/" * 40 + "e.png"
    write_tar(folder / "b.tar", {"1.png": png(3)[0], "0.json": b"{}", "0.png": png(4)[0]})
    write_tar(
        folder / "a.tar",
        {
            "./z.PNG": png(0)[0],
            "z.txt": b"a caption",
            "._z.png": b"not a picture",
            ".hidden/y.png": png(0)[0],
            "y.jpg": png(1)[0],
            long: png(2)[0],
        },
    )
    return folder


def test_members_of_shards(shards: Path) -> None:
    photos = Source.parse(str(shards)).photos()
    assert [(photo.path.name, photo.key[-6:]) for photo in photos] == [
        ("a.tar", "z.PNG"),
        ("a.tar", "y.jpg"),
        ("a.tar", "/e.png"),
        ("b.tar", "1.png"),
        ("b.tar", "0.png"),
    ]
    for seed, photo in reversed(list(enumerate(photos))):
        content, pixels = png(seed)
        with photo.open() as stream:
            assert stream.read() == content
        with photo.open() as stream:
            np.testing.assert_array_equal(read_rgb(stream), pixels)
        assert photo.size() == (40, 50)
    assert photos[0].name == f"{shards / 'a.tar'}/z.PNG"


def test_a_member_is_read_as_a_file_is(shards: Path) -> None:
    (photo, *_) = Source.parse(str(shards)).photos()
    reference = io.BytesIO(png(0)[0])
    with photo.open() as stream:
        for whence, offset in ((0, 100), (1, 50), (2, -30), (1, -200), (2, 40), (0, 3)):
            assert stream.seek(offset, whence) == reference.seek(offset, whence)
            assert stream.read(64) == reference.read(64)
            assert stream.tell() == reference.tell()
        assert stream.name == photo.name


def test_damage_names_the_member(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"bad.jpg": b"no picture", "good.png": png(0)[0]})
    bad, good = Source.parse(str(tmp_path / "a.tar")).photos()
    with pytest.raises(ImageError, match=r"a\.tar/bad\.jpg is no readable image"):
        bad.size()
    assert good.size() == (40, 50)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ImageError, match=r"a\.tar/good\.png cannot be read: No such file"):
        good.open()


def test_the_first_ones(shards: Path, tmp_path: Path) -> None:
    assert [p.key for p in Source.parse(f"{shards}:4").photos()][3:] == ["1.png"]
    (shards / "b.tar").write_bytes(b"damaged")  # not read for what comes before it
    assert len(Source.parse(f"{shards}:3").photos()) == 3
    folder = tmp_path / "odd:2"
    folder.mkdir()
    for name in ("c", "a", "b"):
        (folder / f"{name}.png").write_bytes(png(0)[0])
    assert len(Source.parse(str(folder)).photos()) == 3  # the name as it is
    assert [p.key for p in Source.parse(f"{folder}:2").photos()] == ["a.png", "b.png"]
    assert len(Source.parse(f"{folder}:9").photos()) == 3
    with pytest.raises(DataError, match=r"odd:2:0 takes no photograph; use .*odd:2:1 or more"):
        Source.parse(f"{folder}:0")


def refuse(source: Path | str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Source.parse(str(source)).photos()
    assert "\n" not in str(caught.value)


def test_sources_that_are_none(tmp_path: Path, shards: Path) -> None:
    refuse(tmp_path / "absent", "absent: no such folder of photographs or shards; check its path")
    refuse(f"{tmp_path / 'absent'}:10", "absent: no such folder")
    (tmp_path / "a.png").write_bytes(png(0)[0])
    refuse(tmp_path / "a.png", r"a\.png is no folder and no \.tar shard; name a folder")
    refuse(tmp_path, r"holds photographs \(a\.png\) and tar shards \(a\.tar\); give each")
    assert Source.parse(str(shards.parent / "shards")).photos()


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_compressed_shards(shards: Path, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "compressed"
    folder.mkdir()
    (folder / f"a{suffix}").write_bytes(gzip.compress((shards / "a.tar").read_bytes()))
    refuse(folder, r"compressed/a\.tar.* is compressed, .*; decompress it to a \.tar$")


def test_shards_that_are_cut_off_anywhere_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"{number}.png": png(number, 8, 8)[0] for number in range(3)})
    whole = path.read_bytes()
    offsets = [photo.offset for photo in Source.parse(str(path)).photos()]
    end = offsets[2] + 512 * 2  # of the last one's bytes, which take one block or two
    assert not any(whole[end:])
    for length in (
        0,
        100,
        512,
        offsets[1] - 512,
        offsets[1] - 100,
        offsets[1] + 5,
        offsets[2] + 60,
    ):
        path.write_bytes(whole[:length])
        refuse(path, r"a\.tar: the tar shard is cut off or damaged .*; copy or write it again")
    damaged = bytearray(whole)
    damaged[offsets[1] - 400] ^= 0xFF  # in the second header
    path.write_bytes(damaged)
    refuse(path, "cut off or damaged")
