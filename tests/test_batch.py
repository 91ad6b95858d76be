"""Files through lanes of work: formats, refusals before work, metadata, and what the manifest gets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from allosr2.batch import FileOptions, upscale_files
from allosr2.errors import ConfigError
from allosr2.imaging.io import Limits
from allosr2.imaging.picture import Picture
from allosr2.manifest import MANIFEST, Manifest
from allosr2.pipeline import Job, Outcome

LEVELS = np.arange(54, dtype=np.uint8).reshape(3, 6, 3)


def double(picture: Picture, where: str, progress) -> Picture:
    progress(1, 1)
    return replace(picture, color=picture.color.repeat(2, 0).repeat(2, 1))


def size_of(height: int, width: int) -> tuple[int, int]:
    return 2 * height, 2 * width


def save(path: Path, **options: object) -> Path:
    Image.fromarray(LEVELS).save(path, **options)
    return path


def enlarge(source: Path, target: Path, lane=double, **options: object) -> Outcome:
    job = Job(source=source, target=target)
    (outcome,) = upscale_files([job], [lane], FileOptions(**options), size_of=size_of)
    return outcome


def test_a_file(tmp_path):
    target = tmp_path / "new" / "folder" / "sr.png"
    outcome = enlarge(save(tmp_path / "lr.png"), target)
    assert outcome.status == "done"
    assert (outcome.input_size, outcome.output_size) == ((3, 6), (6, 12))
    assert outcome.bytes == target.stat().st_size
    np.testing.assert_array_equal(np.asarray(Image.open(target)), LEVELS.repeat(2, 0).repeat(2, 1))
    assert [path.name for path in target.parent.iterdir()] == ["sr.png"]


@pytest.mark.parametrize(
    ("file_format", "target", "read_as", "expected"),
    [
        (None, "a.webp", "PNG", "WEBP"),
        (None, None, "JPEG", "PNG"),
        (None, "a.xyz", "PNG", None),
        ("same", "a.webp", "PNG", "WEBP"),
        ("same", None, "JPEG", "JPEG"),
        ("TIFF", "a.xyz", "PNG", "TIFF"),
        ("TIFF", None, "PNG", "TIFF"),
    ],
)
def test_formats(file_format, target, read_as, expected):
    options = FileOptions(file_format=file_format)
    job = Job(source=None, target=None if target is None else Path(target))
    assert options.format_of(job, Picture(color=LEVELS, format=read_as)) == expected


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_out_of_range(quality):
    with pytest.raises(
        ConfigError, match=f"quality is {quality}: use a whole number from 1 to 100"
    ):
        FileOptions(quality=quality)


def test_quality(tmp_path):
    source = save(tmp_path / "lr.png")
    sizes = [enlarge(source, tmp_path / f"{q}.jpg", quality=q).bytes for q in (20, 95)]
    assert sizes[0] < sizes[1]


def never(picture: Picture, where: str, progress) -> Picture:
    raise AssertionError("work was done")


def test_what_cannot_be_written_is_refused_before_any_work(tmp_path):
    source = save(tmp_path / "lr.png")
    for target in (tmp_path / "sr.xyz", tmp_path, source / "sr.png"):
        assert "cannot write" in str(enlarge(source, target, never).error)
    wide = tmp_path / "wide.png"
    Image.fromarray(np.zeros((1, 9000, 3), np.uint8)).save(wide)
    assert "WEBP" in str(enlarge(wide, tmp_path / "sr.webp", never).error)  # 16,383 at most
    assert enlarge(source, tmp_path / "sr.png", never, limits=Limits(pixels=17)).status == "failed"


def test_metadata_is_stripped(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    source = save(tmp_path / "lr.png", exif=exif, icc_profile=profile)
    for strip, camera, kept in ((False, "a camera", profile), (True, None, None)):
        target = tmp_path / f"{strip}.png"
        assert enlarge(source, target, strip_metadata=strip).status == "done"
        written = Image.open(target)
        assert written.getexif().get(0x010F) == camera
        assert written.info.get("icc_profile") == kept
        difference = np.asarray(written).astype(int) - LEVELS.repeat(2, 0).repeat(2, 1)
        assert np.abs(difference).max() <= 1  # sRGB to sRGB


def test_notes_of_reading_and_writing(tmp_path):
    source = tmp_path / "lr.png"
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000).save(source)
    outcome = enlarge(source, tmp_path / "sr.jpg")
    assert outcome.notes == ("16 bits rounded to 8: JPEG holds no more",)


def test_the_manifest_knows_each_result(tmp_path):
    sources = [save(tmp_path / name) for name in ("a.png", "b.png")]
    (tmp_path / "broken.png").write_bytes(b"broken")
    folder = tmp_path / "sr"
    folder.mkdir()
    jobs = [
        Job(source=source, target=folder / source.name)
        for source in [*sources, tmp_path / "broken.png"]
    ]
    outcomes = list(
        upscale_files(
            jobs, [double], FileOptions(), size_of=size_of, manifest=Manifest(folder), key="key"
        )
    )
    assert sorted(outcome.status for outcome in outcomes) == ["done", "done", "failed"]
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    assert [line["target"] for line in lines] == ["a.png", "b.png"]
    manifest = Manifest(folder)
    assert [manifest.is_done(job.source, job.target, "key") for job in jobs] == [True, True, False]
    assert not manifest.is_done(jobs[0].source, jobs[0].target, "another key")


def test_one_source_of_two_results(tmp_path):
    source = save(tmp_path / "lr.png")
    jobs = [Job(source=source, target=tmp_path / name) for name in ("a.png", "b.png")]
    arguments = {"size_of": size_of, "manifest": Manifest(tmp_path), "key": "key"}
    outcomes = list(upscale_files(jobs, [double], FileOptions(), **arguments))
    assert [outcome.status for outcome in outcomes] == ["done", "done"]
    manifest = Manifest(tmp_path)
    assert [manifest.is_done(source, job.target, "key") for job in jobs] == [True, True]


@pytest.mark.parametrize("replaces", [True, False])
def test_a_file_that_appears_during_the_work(tmp_path, replaces):
    target = tmp_path / "sr.png"

    def slow(picture: Picture, where: str, progress) -> Picture:
        target.write_bytes(b"theirs")
        return double(picture, where, progress)

    outcome = enlarge(save(tmp_path / "lr.png"), target, slow, replace=replaces)
    if replaces:
        assert outcome.status == "done"
        assert Image.open(target).size == (12, 6)
    else:
        assert str(outcome.error).startswith(f"cannot write {target}: it exists by now; ")
        assert target.read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lr.png", "sr.png"]


def test_what_fails_leaves_no_folder(tmp_path):
    def fail(picture: Picture, where: str, progress) -> Picture:
        raise ValueError("the work failed")

    target = tmp_path / "new" / "folder" / "sr.png"
    source = save(tmp_path / "lr.png")
    assert "does not exist" in str(enlarge(tmp_path / "missing.png", target).error)
    assert str(enlarge(source, target, fail).error) == "the work failed"
    assert "unknown suffix" in str(enlarge(source, target.with_suffix(".xyz")).error)
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]

    (tmp_path / "new").touch()
    refused = enlarge(source, target, never).error
    assert str(refused).startswith(f"cannot write {target}: Not a directory; ")
