"""libvips, which keeps 16 bits: PNG, TIFF and deep AVIF decoded and written, and colors by their profile.

Nothing else imports pyvips.
"""

# pyvips's stubs know no bytes among metadata, and no options that are handed on.
# pyright: reportArgumentType=false

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyvips

from allosr2.imaging import jpeg

Error = pyvips.Error
"""What libvips raises; its `detail` says why."""

_DTYPES = {"uchar": np.uint8, "ushort": np.uint16}
_CMYK = "cmyk"
_LOADERS = {"PNG": "pngload_buffer", "TIFF": "tiffload_buffer", "AVIF": "heifload_buffer"}
_NAMES = {"icc_profile": "icc-profile-data", "exif": "exif-data", "xmp": "xmp-data"}
_KEEP = {"exif": 1, "xmp": 2, "icc_profile": 8}
_STRIP = 256
_PHYS_BYTES = 21
_ALL_FILTERS = 0xF8
_NOTHING = 0
_JUNK = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_TO_SRGB = {"intent": "relative", "black_point_compensation": True}


class Opened:
    """An image whose header is read and whose pixels are not."""

    def __init__(self, content: bytes, file_format: str) -> None:
        """Read the header of a PNG, TIFF or AVIF file in memory; its first page or frame."""
        # Mere warnings speak of what lies beside the pixels.
        self._image: pyvips.Image = getattr(pyvips.Image, _LOADERS[file_format])(
            content, fail_on="error", access="sequential"
        )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._image.height, self._image.width

    @property
    def depth(self) -> int:
        """Bits of a sample as stored."""
        fields: list[str] = self._image.get_fields()
        return int(str(self._image.get("bits-per-sample"))) if "bits-per-sample" in fields else 8

    def levels(self) -> np.ndarray:
        """Pixels `h w n` of uint8 or uint16: gray, RGB or CMYK, and whatever channels follow.

        Raises ValueError for samples of another kind.
        """
        if self._image.format not in _DTYPES:
            raise ValueError(f"its samples are {self._image.format}")
        return _array(self._image)


def to_srgb(levels: np.ndarray, icc_profile: bytes) -> np.ndarray:
    """RGB or CMYK (0 is no ink) `h w n` of uint8 or uint16 by its profile as sRGB `h w 3` of the same dtype.

    Relative colorimetric with black point compensation. Raises Error for some damaged profiles.
    """
    image = _image(levels)
    if levels.shape[2] == 4:
        image = image.copy(interpretation=_CMYK)
    _describe(image, icc_profile=icc_profile)
    depth = 8 * levels.dtype.itemsize
    return _array(image.icc_transform("srgb", embedded=True, depth=depth, **_TO_SRGB))


def lab_to_srgb(levels: np.ndarray) -> np.ndarray:
    """CIE L*a*b* `h w 3` as TIFF has it as sRGB of the same dtype: relative colorimetric, as `to_srgb`.

    L* is 0 to 100 in all of the range; a* and b* are signed, -128 to 127, with 8 more bits behind the
    point in uint16 (TIFF 6.0, section 23). Its white is D50, as that of ICC profiles.
    """
    bits = 8 * levels.dtype.itemsize
    zero = 1 << (bits - 1)
    shifted = levels ^ np.array([0, zero, zero], levels.dtype)  # a* and b* from 0, without a sign
    step = 128 / zero
    scaled = _image(shifted).linear([100 / (2 * zero - 1), step, step], [0, -128, -128])
    lab = scaled.copy(interpretation="lab")
    return _array(lab.icc_export(output_profile="srgb", depth=bits, **_TO_SRGB))


def decode_jpeg(content: bytes) -> np.ndarray | None:
    """Pixels `h w n` of a JPEG file: gray, RGB or CMYK; None where libjpeg warns of what does no harm.

    Raises ValueError where it warns of anything that it makes pixels up for. Of a scan that ends in
    the last row of blocks, before a proper end marker, the warning comes too late.
    """
    try:
        return _array(pyvips.Image.jpegload_buffer(content, fail_on="warning", access="sequential"))
    except Error as error:
        warning = str(error).lower()
    if junk := _JUNK.search(warning):
        # Harmless by itself, and the first warning, behind which others may be: once more without.
        length, marker = int(junk[1]), int(junk[2], 16)
        at_end = marker == jpeg.EOI
        clean = jpeg.without_tail(content, length) if at_end else jpeg.without_junk(content)
        if len(clean) >= len(content):
            raise ValueError("bytes between its scans")
        return decode_jpeg(clean)
    if "premature end" in warning:
        raise ValueError("its scan ends early")
    if "corrupt" in warning:
        raise ValueError("its scan is damaged")
    return None


def save_png(stream: BinaryIO, levels: np.ndarray, chunks: bytes, header_bytes: int) -> None:
    """Write `h w n` of uint8 or uint16 as PNG, with chunks put between its header and its pixels.

    Raises whatever writing to `stream` raises, and Error.
    """
    image = _image(levels)
    head = bytearray()
    failed: list[BaseException] = []

    def write(part: memoryview) -> int:
        if failed:
            return -1
        # An exception that left this function would be printed by the library's binding and lost.
        try:
            rest = bytes(part)
            if len(head) < header_bytes + _PHYS_BYTES:
                head.extend(rest)
                if len(head) < header_bytes + _PHYS_BYTES:
                    return len(part)
                rest = bytes(head[header_bytes:])
                if rest[4:8] == b"pHYs":  # a resolution that libvips makes up
                    rest = rest[_PHYS_BYTES:]
                stream.write(bytes(head[:header_bytes]) + chunks)
            stream.write(rest)
        except BaseException as error:
            failed.append(error)
            return -1
        return len(part)

    target = pyvips.TargetCustom()
    target.on_write(write)
    # In a thread of its own, as Python raises KeyboardInterrupt in the main one only: there it would
    # be in the binding, and lost. Leaving the block waits for the thread.
    with ThreadPoolExecutor(1) as pool:
        # Level 3 of zlib-ng with every filter: less time than Pillow's level 1 at a smaller
        # size; its level 6 takes eleven times as long for 3 % fewer bytes.
        saved = pool.submit(
            image.pngsave_target, target, compression=3, filter=_ALL_FILTERS, keep=_NOTHING
        )
        try:
            saved.result()
        except Error:
            if not failed:
                raise
        except BaseException as error:
            failed.append(error)  # stops the thread
    if failed:
        raise failed[0]


def save_tiff(
    path: Path, levels: np.ndarray, *, icc_profile: bytes | None, xmp: bytes | None
) -> None:
    """Write `h w n` of uint8 or uint16 as TIFF: LZW, in strips. Raises Error."""
    image = _image(levels)
    _describe(image, icc_profile=icc_profile, xmp=xmp)
    # Classic offsets end at 4 GiB, and LZW makes noise 1.4 times longer.
    big = levels.nbytes > 2.5 * 2**30
    image.tiffsave(str(path), compression="lzw", predictor="horizontal", bigtiff=big)


def save_avif(path: Path, levels: np.ndarray, quality: int, **metadata: bytes | None) -> None:
    """Write `h w n` of uint16 as AVIF of 12 bits with full chroma. Raises Error."""
    image = _image(levels)
    _describe(image, **metadata)
    # Effort 1 takes a quarter of the time of 3, for a fifth more bytes.
    image.heifsave(
        str(path),
        compression="av1",
        bitdepth=12,
        Q=quality,
        effort=1,
        subsample_mode="off",
        # libvips would make up EXIF where there is none.
        keep=sum(_KEEP[name] for name, block in metadata.items() if block),
    )


def _describe(image: pyvips.Image, **metadata: bytes | None) -> None:
    for name, block in metadata.items():
        if block:
            image.set_type(pyvips.GValue.blob_type, _NAMES[name], block)


def _image(levels: np.ndarray) -> pyvips.Image:
    """An image on the memory of `h w n` levels."""
    height, width, channels = levels.shape
    contiguous = np.ascontiguousarray(levels)
    deep = levels.dtype == np.uint16
    image = pyvips.Image.new_from_memory(
        contiguous.data, width, height, channels, "ushort" if deep else "uchar"
    )
    gray, color = ("grey16", "rgb16") if deep else ("b-w", "srgb")
    return image.copy(interpretation=gray if channels <= 2 else color)


def _array(image: pyvips.Image) -> np.ndarray:
    """The pixels `h w n` of an image; none of them is computed before."""
    dtype = _DTYPES[str(image.format)]
    levels = np.empty((image.height, image.width, image.bands), dtype)
    # Strip by strip in this thread: libvips's own way starts its threads once a process, and hangs
    # in a process that was forked from one where they had been started (a data loader's worker).
    region = pyvips.Region.new(image)
    for top in range(0, image.height, _STRIP):
        strip = levels[top : top + _STRIP]
        fetched = region.fetch(0, top, image.width, len(strip))
        strip[...] = np.frombuffer(fetched, dtype).reshape(strip.shape)
    return levels
