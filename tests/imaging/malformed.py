"""Damaged image files, and a process that reads them: a crash or a hang ends it and is counted.

    python tests/imaging/malformed.py --pillow DIR [--mutations 10000]

DIR is Pillow's own folder of test images (`Tests/images` of its source distribution), broken ones among
them. Every file is read whole and, where it can be read, cut at several places; small files of our own
are mutated. A picture out of a file that was cut has to be the picture of the whole file.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import select
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyvips
import tifffile
from PIL import ExifTags, Image, ImageCms, features

if TYPE_CHECKING:
    from allosr2.imaging.picture import Picture

SLOWEST = 10.0
"""Seconds after which a file counts as a hang."""
CUTS = (0.2, 0.5, 0.8, 0.95, 0.999)
"""Where files are cut, in parts of their length."""


class Case(NamedTuple):
    """Bytes to read, and the file that they were before their end was cut off."""

    name: str
    content: bytes
    whole: bytes | None = None


def png_chunk(name: bytes, content: bytes, check_sum: int | None = None) -> bytes:
    """A chunk of a PNG file, with its own check sum or a given one."""
    found = zlib.crc32(name + content) if check_sum is None else check_sum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", found)


def small_files() -> dict[str, bytes]:
    """Files of every format, depth and color, with metadata."""
    rng = np.random.default_rng(0)
    color = rng.integers(0, 256, (24, 37, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(color).resize((64, 48), Image.Resampling.BICUBIC))
    deep = rng.integers(0, 65536, (24, 37, 4), dtype=np.uint16)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ISOSpeedRatings] = 400
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    beside = {
        "exif": exif.tobytes(),
        "xmp": b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>',
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }

    def pillow(levels: np.ndarray, file_format: str, mode: str = "RGB", **options: object) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(levels).convert(mode).save(stream, file_format, **options)
        return stream.getvalue()

    def vips(levels: np.ndarray, interpretation: str) -> pyvips.Image:
        return pyvips.Image.new_from_array(levels).copy(interpretation=interpretation)

    inks = pyvips.Image.profile_load("cmyk")
    planes = io.BytesIO()
    tifffile.imwrite(
        planes,
        np.moveaxis(deep, -1, 0),
        photometric="rgb",
        planarconfig="separate",
        extrasamples=["unassalpha"],
        tile=(16, 16),
        compression="zlib",
    )
    return {
        "rgb8.png": pillow(color, "PNG", **beside),
        "palette.png": pillow(color, "PNG", "P", transparency=bytes(range(200))),
        "rgba16.png": vips(deep, "rgb16").pngsave_buffer(interlace=True),
        "rgb.jpg": pillow(smooth, "JPEG", **beside),
        "cmyk.jpg": pillow(smooth, "JPEG", "CMYK", progressive=True),
        "rgba.webp": pillow(deep.astype(np.uint8), "WEBP", "RGBA", quality=80, **beside),
        "rgb16.tif": vips(deep[..., :3], "rgb16").tiffsave_buffer(
            compression="lzw", predictor="horizontal", tile=True, tile_width=16, tile_height=16
        ),
        "gray8.tif": pillow(color, "TIFF", "L", tiffinfo={ExifTags.Base.Artist: "x" * 20}),
        # Pillow puts what belongs to a directory behind the pixels.
        "palette.tif": pillow(color, "TIFF", "P", compression="packbits"),
        "profile.tif": pillow(
            color, "TIFF", compression="tiff_lzw", icc_profile=beside["icc_profile"]
        ),
        "cmyk.tif": pillow(color, "TIFF", "CMYK", compression="tiff_lzw", icc_profile=inks),
        "planes16.tif": planes.getvalue(),
        "rgb.bmp": pillow(color, "BMP"),
        "rgb12.avif": vips(deep[..., :3], "rgb16").heifsave_buffer(compression="av1", bitdepth=12),
    }


def mutations(count: int, seed: int = 0) -> Iterator[Case]:
    """Files with bytes changed, left out, doubled or cut off; number i depends on (seed, i) alone."""
    files = list(small_files().items())
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        name, whole = files[index % len(files)]
        kind = ("change", "change head", "leave out", "double", "cut")[index // len(files) % 5]
        content = bytearray(whole)
        if kind == "cut":
            content = content[: int(rng.integers(len(whole)))]
        elif kind in ("leave out", "double"):
            start, stop = sorted(int(place) for place in rng.integers(0, len(whole), 2))
            stop = min(stop, start + 64)
            part = b"" if kind == "leave out" else content[start:stop] * 2
            content[start:stop] = part
        else:
            end = min(len(whole), 200) if kind == "change head" else len(whole)
            for _ in range(int(rng.integers(1, 9))):
                value = rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))])
                content[int(rng.integers(end))] = int(value)
        yield Case(f"{kind} {name} {index}", bytes(content), whole if kind == "cut" else None)


def folder(root: Path) -> Iterator[Case]:
    """Every file below a folder, whole and cut."""
    for path in sorted(root.rglob("*")):
        if path.is_file():
            whole = path.read_bytes()
            yield Case(str(path.relative_to(root)), whole)
            for cut in CUTS:
                part = whole[: int(len(whole) * cut)]
                yield Case(f"{cut} of {path.relative_to(root)}", part, whole)


def survey(cases: Iterable[Case], scratch: Path) -> tuple[Counter[str], list[str]]:
    """Read every case in another process.

    Returns how often each outcome was found, and what is wrong, a line each: crashes, hangs, untyped
    errors, pictures of files that were cut which differ from the whole ones, and whatever was printed.
    """
    found: Counter[str] = Counter()
    wrong: list[str] = []
    reader: subprocess.Popen[str] | None = None
    errors = scratch / "stderr"
    errors.write_text("")
    for case in cases:
        (scratch / "case").write_bytes(case.content)
        (scratch / "whole").write_bytes(case.whole or b"")
        if reader is None:
            with errors.open("a") as stream:
                reader = _start(scratch, stream)
        assert reader.stdin is not None
        assert reader.stdout is not None
        began = time.monotonic()
        reader.stdin.write("read\n")
        reader.stdin.flush()
        ready, _, _ = select.select([reader.stdout], [], [], SLOWEST + 1)
        answer = reader.stdout.readline().strip() if ready else "hang"
        if answer and time.monotonic() - began > SLOWEST:
            answer = "hang"
        outcome, _, detail = (answer or "crash").partition(": ")
        if outcome in ("hang", "crash"):
            reader.kill()
            reader.wait()
            detail = f"exit code {reader.returncode}"
            reader = None
        printed = errors.read_text()
        if printed:
            wrong.append(f"{case.name}: printed {printed[-200:]!r}")
            os.truncate(errors, 0)
        found[outcome] += 1
        if outcome not in ("picture", "refused"):
            wrong.append(f"{case.name}: {answer or outcome} {detail}")
    if reader is not None:
        assert reader.stdin is not None
        reader.stdin.close()
        reader.wait()
    return found, wrong


def difference_of(picture: Picture, whole: Picture) -> str:
    """In what a picture differs from that of the whole file; empty where in nothing."""
    if not np.array_equal(picture.color, whole.color):
        return f"colors {picture.color.shape}"
    if not np.array_equal(picture.alpha, whole.alpha):
        return "opacity"
    profiles = picture.metadata.icc_profile, whole.metadata.icc_profile
    return "profile" if profiles.count(None) == 1 else ""


def _start(scratch: Path, stderr: io.TextIOBase) -> subprocess.Popen[str]:
    reader = subprocess.Popen(
        [sys.executable, __file__, "--read", str(scratch)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    assert reader.stdout is not None
    reader.stdout.readline()  # its imports take longer than a file may
    return reader


def read_cases(scratch: Path) -> None:
    """Answer each line of standard input with what reading `scratch/case` comes to."""
    from allosr2.errors import ImageError
    from allosr2.imaging.io import read_image

    def outcome() -> str:
        try:
            picture = read_image(scratch / "case")
        except ImageError as error:
            return "refused" if "\n" not in str(error) else f"several lines: {error!r}"
        except Exception as error:
            return f"untyped: {error!r}"
        whole = scratch / "whole"
        difference = difference_of(picture, read_image(whole)) if whole.stat().st_size else ""
        return f"silent truncation: {difference}" if difference else "picture"

    print("ready", flush=True)
    for _ in sys.stdin:
        print(outcome().replace("\n", " "), flush=True)


def main() -> int:
    """Survey a folder and mutations and print a table; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pillow", type=Path, required=True)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--scratch", type=Path, default=Path("build/malformed"))
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    everything: list[str] = []
    outcomes = ("picture", "refused", "crash", "hang", "untyped", "silent truncation")
    print(f"| files | {' | '.join(outcomes)} | seconds |\n|---{'|---' * len(outcomes)}|---|")
    for name, cases in (
        (f"Pillow's, whole and cut at {len(CUTS)} places", folder(options.pillow)),
        (
            f"{options.mutations} mutations of {len(small_files())} small files",
            mutations(options.mutations),
        ),
    ):
        began = time.monotonic()
        found, wrong = survey(cases, options.scratch)
        counts = " | ".join(str(found[outcome]) for outcome in outcomes)
        print(f"| {name}: {found.total()} | {counts} | {time.monotonic() - began:.0f} |")
        everything += wrong
    print(f"\nPillow {features.version('pil')}, libvips {pyvips.version(0)}.{pyvips.version(1)}; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores")
    print("\n".join(everything))
    return int(bool(everything))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_cases(Path(sys.argv[2]))
    else:
        sys.exit(main())
