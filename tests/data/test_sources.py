"""Photographs of folders and of tar files that Python's tarfile and the shell's tar write."""

from __future__ import annotations

import errno
import gzip
import io
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allosr2.data.photo import Photo
from allosr2.data.sources import Source
from allosr2.errors import DataError, ImageError
from allosr2.imaging.io import read_rgb
from allosr2.imaging.limits import unreadable


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
    path.write_bytes(whole[: offsets[1] + 5].ljust(3 * 2**20, b"\0"))  # the disk kept room for more
    refuse(path, "cut off or damaged")
    path.write_bytes(whole + whole)  # as `cat` joins two, of which tar sees one
    refuse(path, "cut off or damaged")
    path.write_bytes(whole.ljust(2**20, b"\0"))  # tar's longest records
    assert len(Source.parse(str(path)).photos()) == 3


def test_what_is_hidden_is_left_out(shards: Path) -> None:
    expected = Source.parse(str(shards)).photos()
    (shards / ".trash").mkdir()
    for name in (".trash/old.tar", "._a.tar", ".trash/a.png", ".b.png", ".c.tar.gz"):
        (shards / name).write_bytes(b"\x1f\x8b no archive")
    assert Source.parse(str(shards)).photos() == expected


def test_suffixes_of_any_case(shards: Path) -> None:
    (shards / "b.tar").rename(shards / "b.TAR")
    keys = [photo.key for photo in Source.parse(str(shards)).photos()]
    assert keys[-2:] == ["1.png", "0.png"]
    source = Source.parse(str(shards / "b.TAR"))
    assert [photo.key for photo in source.photos()] == keys[-2:]
    assert source.name == "b"


def test_links(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "photos"
    elsewhere.mkdir()
    folder.mkdir()
    (elsewhere / "a.png").write_bytes(png(0)[0])
    (folder / "lsdir").symlink_to(elsewhere)
    (folder / "gone.png").symlink_to(tmp_path / "absent.png")
    refuse(
        folder, r"holds a link to a folder \(lsdir\) and no photograph; .*: name .*/lsdir itself$"
    )
    assert [photo.key for photo in Source.parse(str(folder / "lsdir")).photos()] == ["a.png"]
    assert caplog.records == []
    (folder / "b.png").symlink_to(elsewhere / "a.png")
    assert [photo.key for photo in Source.parse(str(folder)).photos()] == ["b.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: linked folders in it, such as lsdir, are not searched; name them beside it"
    ]


def test_a_folder_is_walked_through_once_and_its_errors_are_typed(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[str] = []
    scandir = os.scandir

    def counted(path: str | Path) -> Iterator[os.DirEntry[str]]:
        scanned.append(str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    Source.parse(str(shards)).photos()
    assert scanned == [str(shards)]

    def refused(path: str | Path) -> Iterator[os.DirEntry[str]]:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ImageError, match="shards cannot be read: Input/output error") as caught:
        Source.parse(str(shards)).photos()
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------- trouble that is no damage


class Flaky(io.BytesIO):
    """Bytes of a disk that fails."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(b"pixels")
        self.name = name
        self.error = error

    def read(self, *_: object) -> bytes:
        raise self.error

    readinto = read


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Photo]:
    """`failing(error, times=2)`: a photograph whose first reads fail."""
    monkeypatch.setattr("allosr2.data.photo._PAUSE", 0.0)
    (tmp_path / "a.png").write_bytes(png(0)[0])

    def build(error: BaseException, times: int = 2) -> Photo:
        (photo,) = Source.parse(str(tmp_path)).photos()
        errors = [error] * times
        opened = Photo.open
        monkeypatch.setattr(
            Photo,
            "open",
            lambda self: Flaky(self.name, errors.pop()) if errors else opened(self),
        )
        return photo

    return build


TROUBLE = [
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    (OSError(errno.ESTALE, "Stale file handle"), "Stale file handle"),
    (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    (MemoryError(), "there is not enough memory"),
    (OSError("out of memory when reading image file"), "there is not enough memory"),
    (unreadable("a", PermissionError(errno.EACCES, "Permission denied")), "Permission denied"),
]


@pytest.mark.parametrize("what", [Photo.pixels, Photo.size])
@pytest.mark.parametrize(("error", "words"), TROUBLE)
def test_trouble_of_the_moment_is_no_damage(
    failing: Callable[..., Photo],
    error: BaseException,
    words: str,
    what: Callable[[Photo], object],
) -> None:
    if isinstance(error, ImageError):
        error.__cause__ = PermissionError(errno.EACCES, "Permission denied")
    photo = failing(error)
    with pytest.raises(DataError) as caught:
        what(photo)
    assert str(caught.value) == (
        f"{photo.name} cannot be read, twice in a row: {words}; see to that, and run the same command again"
    )
    assert photo.size() == (40, 50)


def test_what_works_at_the_second_try_is_no_trouble(failing: Callable[..., Photo]) -> None:
    photo = failing(OSError(errno.EIO, "Input/output error"), times=1)
    np.testing.assert_array_equal(photo.pixels(), png(0)[1])
    photo = failing(OSError(errno.EIO, "Input/output error"), times=1)
    assert photo.size() == (40, 50)


def test_a_decoder_that_takes_too_long_is_no_damage(
    failing: Callable[..., Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = failing(OSError(), times=0)

    def late(*_: object) -> object:
        raise TimeoutError

    monkeypatch.setattr("allosr2.imaging.limits.Future.result", late)
    with pytest.raises(
        DataError, match=r"a\.png cannot be read, .*: decoding it took more than 60 s;"
    ):
        photo.pixels()


NOWHERE = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 2**63 - 1)
"""A TIFF of more than 4 GB whose first directory lies where no file reaches."""


@pytest.mark.parametrize("content", [None, b"", b"a text", png(0)[0][:1000], NOWHERE])
def test_what_is_damaged_is_damaged_at_once(
    failing: Callable[..., Photo], monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    def asleep(_: float) -> None:
        raise AssertionError

    monkeypatch.setattr("allosr2.data.photo.time.sleep", asleep)
    photo = failing(OSError(), times=0)
    if content is None:
        photo.path.unlink()
    else:
        photo.path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png"):
        photo.pixels()
    if content != png(0)[0][:1000]:  # whose header is whole
        with pytest.raises(ImageError, match=r"a\.png"):
            photo.size()


def test_a_photograph_that_is_too_large_is_no_matter_of_options(tmp_path: Path) -> None:
    content = bytearray(png(0)[0])
    content[16:24] = struct.pack(">II", 12_000, 13_000)  # in the header, and its checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (tmp_path / "a.png").write_bytes(content)
    (photo,) = Source.parse(str(tmp_path)).photos()
    for read in (photo.size, photo.pixels):
        with pytest.raises(ImageError) as caught:
            read()
        assert str(caught.value) == (
            f"{photo.name} has 156 megapixels, the limit is 150 megapixels; make it smaller, or take it out"
        )
