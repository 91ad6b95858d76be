"""Enlarge five small photographs x4 with the model inside the package, and show them side by side.

    python examples/demo.py [FOLDER]        FOLDER is `demo` unless given

The photographs are those that scikit-image's wheel carries; nothing is downloaded. There are two
kinds of sample, and the sheet says which is which:

- shrunk: a piece of the photograph is shrunk x4 (each pixel the mean of 4 x 4) and saved as JPEG of
  quality 75. The piece itself is the original that a result can be held against. This is a simpler
  degradation than those the model was trained for.
- as it is: a piece of 160 x 120 pixels is enlarged as it stands. Nobody knows the right answer.

FOLDER receives, for each sample, the input, the bicubic enlargement, the result and (if there is
one) the original, and `sheet.png` with all of them.
"""

import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

from allosr2 import Upscaler
from allosr2.imaging.sheet import Panel, sheet

SCALE = 4
JPEG_QUALITY = 75
PANEL = 320  # side of a zoomed panel on the sheet, in pixels
ZOOM = 2  # pixels on the sheet for each pixel of a result, per axis
NO_ORIGINAL = (228, 228, 224)

Box = tuple[int, int, int, int]
"""Left, upper, right, lower, in pixels, as Pillow has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A piece of a photograph, and where to look closely."""

    name: str
    """Names the files that are written."""

    file_name: str
    """The photograph, in scikit-image's folder of sample images."""

    box: Box
    """The piece to take from the photograph."""

    shrink: bool
    """Shrink the piece x4 before it is enlarged, so that it serves as the original."""

    detail: tuple[int, int]
    """Left and upper edge of the zoomed part, in pixels of the enlarged image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The images of one sample; all but `lr` have the same size."""

    sample: Sample
    """What was enlarged."""

    lr: Image.Image
    """The input."""

    bicubic: Image.Image
    """`lr` enlarged by bicubic interpolation."""

    sr: Image.Image
    """`lr` enlarged by the model."""

    original: Image.Image | None
    """What `lr` was made from; None where `lr` is a photograph as it is."""


SAMPLES = (
    Sample(
        name="astronaut",
        file_name="astronaut.png",
        box=(0, 0, 512, 512),
        shrink=True,
        detail=(150, 40),
    ),
    Sample(
        name="coffee",
        file_name="coffee.png",
        box=(60, 8, 572, 392),
        shrink=True,
        detail=(240, 130),
    ),
    Sample(
        name="motorcycle",
        file_name="motorcycle_left.png",
        box=(170, 60, 682, 444),
        shrink=True,
        detail=(160, 190),
    ),
    Sample(
        name="cat",
        file_name="chelsea.png",
        box=(90, 60, 250, 180),
        shrink=False,
        detail=(150, 60),
    ),
    Sample(
        name="rocket",
        file_name="rocket.jpg",
        box=(230, 300, 390, 420),
        shrink=False,
        detail=(300, 130),
    ),
)


def shrunk(original: Image.Image) -> Image.Image:
    """Mean of each 4 x 4 block, then a round trip through JPEG."""
    buffer = io.BytesIO()
    original.reduce(SCALE).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return Image.open(buffer).convert("RGB")


def compare(sample: Sample, upscaler: Upscaler) -> Comparison:
    """Take the sample's piece, enlarge it by bicubic interpolation and by the model."""
    photograph = Path(skimage.data.__file__).with_name(sample.file_name)
    piece = Image.open(photograph).convert("RGB").crop(sample.box)
    lr = shrunk(piece) if sample.shrink else piece
    size = (lr.width * SCALE, lr.height * SCALE)
    return Comparison(
        sample=sample,
        lr=lr,
        bicubic=lr.resize(size, Image.Resampling.BICUBIC),
        sr=upscaler(lr),
        original=piece if sample.shrink else None,
    )


def save(comparison: Comparison, folder: Path) -> None:
    """Write every image of a comparison as PNG."""
    name = comparison.sample.name
    comparison.lr.save(folder / f"{name}-input.png")
    comparison.bicubic.save(folder / f"{name}-bicubic.png")
    comparison.sr.save(folder / f"{name}-allosr2.png")
    if comparison.original is not None:
        comparison.original.save(folder / f"{name}-original.png")


def zoomed(image: Image.Image, detail: tuple[int, int]) -> Image.Image:
    """The part at `detail`, each pixel shown as a square."""
    left, upper = detail
    side = PANEL // ZOOM
    part = image.crop((left, upper, left + side, upper + side))
    return part.resize((PANEL, PANEL), Image.Resampling.NEAREST)


def whole(image: Image.Image, detail: tuple[int, int]) -> Image.Image:
    """The image at the height of a panel, the zoomed part outlined."""
    ratio = PANEL / image.height
    small = image.resize((round(image.width * ratio), PANEL), Image.Resampling.LANCZOS)
    left, upper = (round(edge * ratio) for edge in detail)
    side = round(PANEL // ZOOM * ratio)
    outline = (left, upper, left + side, upper + side)
    ImageDraw.Draw(small).rectangle(outline, outline="white", width=2)
    return small


def panels(comparison: Comparison) -> list[Panel]:
    """A row of the sheet: the whole result, then bicubic, allosr2 and the original, zoomed."""
    sample, lr = comparison.sample, comparison.lr
    origin = f"shrunk, JPEG {JPEG_QUALITY}" if sample.shrink else "as it is"
    detail = sample.detail
    row = [
        (f"{sample.name}: {lr.width} x {lr.height}, {origin}", whole(comparison.sr, detail)),
        ("bicubic", zoomed(comparison.bicubic, detail)),
        ("allosr2", zoomed(comparison.sr, detail)),
        ("original", zoomed(comparison.original, detail))
        if comparison.original
        else ("no original", Image.new("RGB", (PANEL, PANEL), NO_ORIGINAL)),
    ]
    return [(caption, np.asarray(picture)) for caption, picture in row]


def main() -> None:
    """Enlarge every sample and write the files."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    folder.mkdir(parents=True, exist_ok=True)
    upscaler = Upscaler.from_pretrained("mini")

    comparisons: list[Comparison] = []
    for sample in SAMPLES:
        start = time.perf_counter()
        comparison = compare(sample, upscaler)
        seconds = time.perf_counter() - start
        save(comparison, folder)
        comparisons.append(comparison)
        lr, sr = comparison.lr, comparison.sr
        print(
            f"{sample.name:>10}: {lr.width} x {lr.height} -> {sr.width} x {sr.height}"
            f" in {seconds:.1f} s"
        )

    rows = [panels(comparison) for comparison in comparisons]
    Image.fromarray(sheet(rows)).save(folder / "sheet.png")
    print(f"written to {folder.resolve()}; look at {folder / 'sheet.png'} first")


if __name__ == "__main__":
    main()
