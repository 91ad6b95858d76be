"""TIFF in all its variants, against the arrays that other programs were given to write."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import ExifTags, Image

from allosr2.errors import ImageError
from allosr2.imaging.decoding import decode
from allosr2.imaging.io import read_image, read_size
from allosr2.imaging.limits import Limits

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (40, 50, 6), dtype=np.uint16)
UNKNOWN = 65_000
"""A tag that nobody reads."""
NOT_READ = r"which is not read; save it as an 8- or 16-bit TIFF or PNG$"


def levels_of(dtype: type, channels: int) -> np.ndarray:
    """Noise `40 50 c`."""
    return (DEEP[..., :channels] >> (0 if dtype == np.uint16 else 8)).astype(dtype)


def apart(levels: np.ndarray) -> np.ndarray:
    """`h w c` as `c h w`, which tifffile writes as separate planes."""
    return np.ascontiguousarray(np.moveaxis(levels, -1, 0))


def overwrite(path: Path, **tags: int | tuple[int, ...]) -> None:
    """Change tags of a file that has them."""
    with tifffile.TiffFile(path, mode="r+") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value)


def renamed(content: bytes, tag: int, other: int) -> bytes:
    """A little-endian file with a tag of its first directory made another one."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    (line,) = (
        start + 2 + 12 * number
        for number in range(count)
        if struct.unpack_from("<H", content, start + 2 + 12 * number) == (tag,)
    )
    return content[:line] + struct.pack("<H", other) + content[line + 2 :]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("planar", [False, True])
def test_tiff(tmp_path, dtype, byteorder, compression, tile, channels, planar):
    levels = (DEEP[..., :channels] >> (0 if dtype == np.uint16 else 8)).astype(dtype)
    stored = np.moveaxis(levels, -1, 0) if planar and channels > 1 else levels.squeeze()
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig=None if channels == 1 else "separate" if planar else "contig",
        extrasamples=None if channels % 2 else ["unassalpha"],
        byteorder=byteorder,
        compression=compression,
        predictor=True if compression else None,
        tile=tile,
    )
    picture = read_image(tmp_path / "a.tif")
    colors = 1 if channels <= 2 else 3
    assert picture.color.dtype == dtype
    np.testing.assert_array_equal(picture.color, levels[..., :colors])
    if channels % 2:
        assert picture.alpha is None
    else:
        np.testing.assert_array_equal(picture.alpha, levels[..., -1])
    assert picture.notes == ()


@pytest.mark.parametrize("compression", ["lzw", "deflate", "none"])
def test_tiff_of_libvips(tmp_path, compression):
    levels = levels_of(np.uint16, 4)
    image = pyvips.Image.new_from_array(levels).copy(interpretation="rgb16")
    image.tiffsave(str(tmp_path / "a.tif"), compression=compression, predictor="horizontal")
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.dstack([picture.color, picture.alpha]), levels)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_associated_alpha_is_divided_out(tmp_path, tile, dtype, channels):
    full = np.iinfo(dtype).max
    alpha = np.linspace(0.3, 1, 40 * 50).reshape(40, 50)
    straight = RNG.random((40, 50, channels - 1))
    stored = np.rint(np.dstack([straight * alpha[..., None], alpha]) * full).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.moveaxis(stored, -1, 0) if tile else stored,
        photometric="rgb" if channels == 4 else "minisblack",
        planarconfig="separate" if tile else "contig",
        extrasamples=["assocalpha"],
        tile=tile,
    )
    picture = read_image(tmp_path / "a.tif")
    assert np.abs(picture.color / full - straight).max() < 4 / full
    np.testing.assert_array_equal(picture.alpha, stored[..., -1])


def test_bits_of_tiff_that_are_no_whole_bytes(tmp_path):
    image = pyvips.Image.new_from_array((DEEP[..., 0] >> 12).astype(np.uint8) * 17)
    for bits in (1, 2, 4):
        image.tiffsave(str(tmp_path / "a.tif"), bitdepth=bits)
        with Image.open(tmp_path / "a.tif") as opened:
            expected = np.asarray(opened.convert("L"))
        picture = read_image(tmp_path / "a.tif")
        assert picture.color.dtype == np.uint8
        np.testing.assert_array_equal(picture.color[..., 0], expected)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.int32, np.float16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_of_unknown_range(tmp_path, dtype, channels):
    levels = np.ones((8, 8, channels), dtype).squeeze()
    tifffile.imwrite(
        tmp_path / "a.tif", levels, photometric="rgb" if channels == 3 else "minisblack"
    )
    with pytest.raises(ImageError, match="32-bit or signed samples"):
        read_image(tmp_path / "a.tif")


def test_exif_of_a_big_tiff(tmp_path):
    image = pyvips.Image.new_from_array(DEEP[..., :3]).copy(interpretation="rgb16")
    image.tiffsave(str(tmp_path / "a.tif"), bigtiff=True)
    tags = [(315, "s", 0, "Someone", True)]
    tifffile.imwrite(
        tmp_path / "a.tif", DEEP[..., :3], bigtiff=True, photometric="rgb", extratags=tags
    )
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.color, DEEP[..., :3])
    exif = Image.Exif()
    exif.load(picture.metadata.exif)
    assert exif[ExifTags.Base.Artist] == "Someone"


# ------------------------------------------------------------------------------- compressions


@pytest.mark.parametrize(
    "compression",
    ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "lzma", "zstd"],
)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "I;16"])
def test_lossless_compressions(tmp_path, compression, mode):
    levels = levels_of(np.uint8, 4)
    if mode == "I;16":
        image = Image.fromarray(DEEP[..., 0])
    elif mode in ("LA", "CMYK"):
        image = Image.fromarray(levels[..., : len(mode)], mode)
    else:
        image = Image.fromarray(levels).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    picture = read_image(tmp_path / "a.tif")
    if mode == "CMYK":  # (1 - c)(1 - k)
        ink = levels / 255
        np.testing.assert_allclose(
            picture.color / 255, (1 - ink[..., :3]) * (1 - ink[..., 3:]), atol=0.501 / 255
        )
        return
    if mode == "I;16":
        np.testing.assert_array_equal(picture.color[..., 0], DEEP[..., 0])
        return
    gray = mode in ("1", "L", "LA")
    expected = np.asarray(image.convert("LA" if gray else "RGBA"))
    np.testing.assert_array_equal(picture.color, expected[..., :-1])
    if mode in ("LA", "RGBA"):
        np.testing.assert_array_equal(picture.alpha, expected[..., -1])
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_fax_compressions(tmp_path, compression):
    bits = DEEP[..., 0] > 30_000
    Image.fromarray(bits).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.tif").color[..., 0], bits * np.uint8(255)
    )


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize(("compression", "most"), [("jpeg", 3), ("webp", 0)])
def test_jpeg_and_webp_in_tiff(tmp_path, compression, most, tile):
    y, x = np.indices((48, 64), np.uint8) * 4
    levels = np.dstack([x, y, x // 2 + y // 2])
    image = pyvips.Image.new_from_array(levels).copy(interpretation="srgb")
    options = {"tile": tile, "tile_width": 16, "tile_height": 16, "Q": 100, "lossless": True}
    image.tiffsave(str(tmp_path / "a.tif"), compression=compression, **options)
    picture = read_image(tmp_path / "a.tif")
    assert np.abs(picture.color.astype(int) - levels).max() <= most


def test_planes_of_jpeg(tmp_path):
    """Each plane is a gray JPEG, and all share their tables."""
    y, x = np.indices((48, 64), np.uint8) * 4
    planes = [x, y, x // 2 + y // 2]
    strips, tables = [], b""
    for plane in planes:
        Image.fromarray(plane).save(tmp_path / "plane.tif", compression="jpeg", quality=100)
        with tifffile.TiffFile(tmp_path / "plane.tif") as file:
            (offset,), (length,) = file.pages[0].dataoffsets, file.pages[0].databytecounts
            tables = file.pages[0].tags["JPEGTables"].value
        strips.append((tmp_path / "plane.tif").read_bytes()[offset : offset + length])
    tags = {256: 64, 257: 48, 259: 7, 262: 2, 277: 3, 278: 48, 284: 2}
    layout = {tag: (3, [value]) for tag, value in tags.items()}
    content = tiff(layout | {258: (3, [8, 8, 8]), 347: (7, list(tables))}, strips)
    color = decode(content, Limits(), "a.tif").color
    assert np.abs(color.astype(int) - np.dstack(planes)).max() <= 2


def tiff(tags: dict[int, tuple[int, list[int]]], strips: list[bytes]) -> bytes:
    """A little-endian file: values by tag, each with its type, and strips."""
    codes = {1: "B", 3: "H", 4: "I", 7: "B"}
    content, offsets = bytearray(b"II*\0\0\0\0\0"), []
    for strip in strips:
        offsets.append(len(content))
        content += strip + b"\0" * (len(strip) % 2)
    lines = []
    places = {273: (4, offsets), 279: (4, [len(strip) for strip in strips])}
    for tag, (kind, values) in sorted((tags | places).items()):
        packed = struct.pack(f"<{len(values)}{codes[kind]}", *values)
        if len(packed) > 4:
            place = struct.pack("<I", len(content))
            content += packed + b"\0" * (len(packed) % 2)
            packed = place
        lines.append(struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0"))
    content[4:8] = struct.pack("<I", len(content))
    return bytes(content + struct.pack("<H", len(lines)) + b"".join(lines) + bytes(4))


def test_lzma_and_zstandard_that_only_pillow_decodes(tmp_path):
    """It would reduce colors of 16 bits to 8, and invert nothing of 16."""
    path = tmp_path / "a.tif"
    for photometric, channels in (("rgb", 3), ("rgb", 4), ("separated", 4), ("miniswhite", 1)):
        tifffile.imwrite(
            path,
            DEEP[..., :channels].squeeze(),
            photometric=photometric,
            extrasamples=["unassalpha"] if (photometric, channels) == ("rgb", 4) else None,
            compression="lzma",
        )
        with pytest.raises(ImageError, match=f"uses LZMA or Zstandard .*{NOT_READ}"):
            read_image(path)
    tifffile.imwrite(
        path,
        levels_of(np.uint8, 2),
        extrasamples=["assocalpha"],
        compression="lzma",
        photometric="minisblack",
        planarconfig="contig",
    )
    with pytest.raises(ImageError, match=f"uses LZMA or Zstandard .*{NOT_READ}"):
        read_image(path)


# ---------------------------------------------------------------------------- colors and channels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_zero_is_white(tmp_path, dtype, tile, planar, channels):
    levels = levels_of(dtype, channels)
    one = channels == 1
    tifffile.imwrite(
        tmp_path / "a.tif",
        levels.squeeze() if one else apart(levels) if planar else levels,
        photometric="miniswhite",
        planarconfig=None if one else "separate" if planar else "contig",
        extrasamples=None if one else ["unassalpha"],
        tile=tile,
        extratags=[(UNKNOWN, 3, 1, 2, True)],
    )
    if one and planar:
        content = (tmp_path / "a.tif").read_bytes()
        (tmp_path / "a.tif").write_bytes(renamed(content, UNKNOWN, 284))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].planarconfig == 1 + planar
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.color[..., 0], np.iinfo(dtype).max - levels[..., 0])
    if channels == 2:
        np.testing.assert_array_equal(picture.alpha, levels[..., 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb", "separated"])
@pytest.mark.parametrize(
    "others", [["unspecified"], ["unspecified"] * 2, ["unspecified", "unassalpha"]]
)
def test_channels_that_are_no_opacity_are_left_out(
    tmp_path, dtype, tile, planar, photometric, others
):
    colors = {"minisblack": 1, "rgb": 3, "separated": 4}[photometric]
    levels = levels_of(dtype, colors + len(others))
    tifffile.imwrite(
        tmp_path / "a.tif",
        apart(levels) if planar else levels,
        photometric=photometric,
        planarconfig="separate" if planar else "contig",
        extrasamples=others,
        tile=tile,
    )
    picture = read_image(tmp_path / "a.tif")
    if photometric == "separated":
        full = np.iinfo(dtype).max
        ink = levels / full
        expected = (1 - ink[..., :3]) * (1 - ink[..., 3:4])
        np.testing.assert_allclose(picture.color / full, expected, atol=0.501 / full)
    else:
        np.testing.assert_array_equal(picture.color, levels[..., :colors])
    if "unassalpha" in others:
        np.testing.assert_array_equal(picture.alpha, levels[..., -1])
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("others", [[], ["unassalpha"], ["unspecified"]])
def test_palettes(tmp_path, tile, dtype, others):
    levels = levels_of(dtype, 1 + len(others))
    palette = RNG.integers(0, 65536, (3, 2 ** (8 * levels.itemsize)), dtype=np.uint16)
    tifffile.imwrite(  # which takes palettes without other channels alone
        tmp_path / "a.tif",
        levels if others else levels[..., 0],
        photometric="minisblack",
        planarconfig="contig" if others else None,
        extrasamples=others or None,
        tile=tile,
        extratags=[(UNKNOWN, 3, palette.size, palette.ravel(), True)],
    )
    overwrite(tmp_path / "a.tif", PhotometricInterpretation=3)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(renamed(content, UNKNOWN, 320))
    picture = read_image(tmp_path / "a.tif")
    expected = palette.T[levels[..., 0]]
    np.testing.assert_array_equal(picture.color, expected >> (0 if dtype == np.uint16 else 8))
    if others == ["unassalpha"]:
        np.testing.assert_array_equal(picture.alpha, levels[..., 1])
    else:
        assert picture.alpha is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("opaque", [False, True])
def test_lab_becomes_srgb(tmp_path, dtype, tile, planar, opaque):
    y, x = np.indices((32, 48)) / 48
    lab = np.dstack([30 + 70 * y, 40 * x - 20, 50 * y - 20])
    unit = 1 if dtype == np.uint8 else 256
    full = np.iinfo(dtype).max
    stored = np.rint(lab * [full / 100, unit, unit]).astype(int) % (full + 1)
    alpha = levels_of(dtype, 1)[:32, :48, 0]
    levels = (stored if opaque else np.dstack([stored, alpha])).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif",
        apart(levels) if planar else levels,
        photometric="cielab",
        planarconfig="separate" if planar else "contig",
        extrasamples=None if opaque else ["unassalpha"],
        tile=tile,
    )
    picture = read_image(tmp_path / "a.tif")
    exact = np.rint(lab * [full / 100, unit, unit]) / [full / 100, unit, unit]
    assert picture.color.dtype == dtype
    np.testing.assert_allclose(picture.color / full, srgb_of_lab(exact), atol=0.002)
    if opaque:
        assert picture.alpha is None
    else:
        np.testing.assert_array_equal(picture.alpha, alpha)


def srgb_of_lab(lab: np.ndarray) -> np.ndarray:
    """In [0, 1], of CIE L*a*b* with white D50 (CIE 15, 8.2.1; IEC 61966-2-1 with Bradford's adaptation)."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    y = (lightness + 16) / 116
    root = np.stack([y + a / 500, y, y - b / 200], axis=-1)
    cubic = np.where(root > 6 / 29, root**3, 3 * (6 / 29) ** 2 * (root - 4 / 29))
    to_linear = np.array(
        [
            [3.1338561, -1.6168667, -0.4906146],
            [-0.9787684, 1.9161415, 0.0334540],
            [0.0719453, -0.2289914, 1.4052427],
        ]
    )
    linear = (cubic * [0.96422, 1, 0.82521] @ to_linear.T).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


@pytest.mark.parametrize(("across", "down"), [(2, 2), (2, 1), (4, 1)])
def test_ycbcr_with_fewer_samples_of_chroma(tmp_path, across, down):
    luma = np.tile(np.arange(32, dtype=np.uint8) * 4 + 40, (16, 1))
    blocks = bytearray()
    for top in range(0, 16, down):
        for left in range(0, 32, across):
            blocks += luma[top : top + down, left : left + across].tobytes() + bytes([90, 170])
    tags = {256: 32, 257: 16, 259: 1, 262: 6, 277: 3, 278: 16}
    layout = {tag: (3, [value]) for tag, value in tags.items()}
    layout |= {258: (3, [8, 8, 8]), 530: (3, [across, down])}
    (tmp_path / "a.tif").write_bytes(tiff(layout, [bytes(blocks)]))
    chroma = [np.full_like(luma, value) for value in (90, 170)]
    expected = np.asarray(Image.fromarray(np.dstack([luma, *chroma]), "YCbCr").convert("RGB"))
    picture = read_image(tmp_path / "a.tif")
    assert picture.alpha is None
    assert np.abs(picture.color.astype(int) - expected).max() <= 1


def test_12_bits(tmp_path):
    levels = DEEP[..., 0] >> 4
    pairs = levels.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    tags = {256: 50, 257: 40, 258: 12, 259: 1, 262: 1, 277: 1, 278: 40}
    content = tiff({tag: (3, [value]) for tag, value in tags.items()}, [packed.tobytes()])
    color = decode(content, Limits(), "a.tif").color[..., 0]
    np.testing.assert_allclose(color, levels / 4095 * 65535, atol=1)


# ------------------------------------------------------------------------------ what is not read


@pytest.mark.parametrize(
    ("what", "photometric", "options", "tags"),
    [
        ("10-bit samples", "minisblack", {}, {"BitsPerSample": 10}),
        ("14-bit samples", "minisblack", {}, {"BitsPerSample": 14}),
        ("12-bit samples", "miniswhite", {}, {"BitsPerSample": 12}),
        ("12-bit samples", "minisblack", {"compression": "zlib"}, {"BitsPerSample": 12}),
        ("4-bit samples", "rgb", {}, {"BitsPerSample": (4, 4, 4)}),
        ("samples of different bits", "rgb", {}, {"BitsPerSample": (8, 8, 16)}),
        ("compression 6", "minisblack", {}, {"Compression": 6}),
        ("compression 34712", "minisblack", {}, {"Compression": 34712}),
        ("colors of kind 32803", "minisblack", {}, {"PhotometricInterpretation": 32803}),
        ("colors of kind 32845", "rgb", {}, {"PhotometricInterpretation": 32845}),
        ("YCbCr colors without JPEG", "ycbcr", {"subsampling": (1, 1)}, {}),
        (
            "a palette or YCbCr colors in separate planes",
            "rgb",
            {"planarconfig": "separate"},
            {"PhotometricInterpretation": 6},
        ),
        ("inks that are not CMYK", "separated", {"extratags": [(332, 3, 1, 2, True)]}, {}),
        ("such colors multiplied", "cielab", {"extrasamples": ["assocalpha"]}, {}),
        ("such colors multiplied", "miniswhite", {"extrasamples": ["assocalpha"]}, {}),
    ],
)
def test_variants_that_are_not_read(tmp_path, what, photometric, options, tags):
    path = tmp_path / "a.tif"
    colors = {"rgb": 3, "ycbcr": 3, "cielab": 3, "separated": 4}.get(photometric, 1)
    levels = levels_of(np.uint8, colors + len(options.get("extrasamples", ())))
    separate = "planarconfig" in options
    stored = apart(levels) if separate else levels.squeeze()
    config = {} if levels.shape[2] == 1 else {"planarconfig": "contig"}
    tifffile.imwrite(path, stored, photometric=photometric, **(config | options))
    overwrite(path, **tags)
    for read in (read_image, read_size):
        with pytest.raises(ImageError, match=f"a.tif uses {what}.*{NOT_READ}"):
            read(path)


def test_raw_photographs_are_no_previews(tmp_path):
    path = tmp_path / "a.dng"
    preview = levels_of(np.uint8, 3)
    for beside in ({"subifds": 1}, {}):
        with tifffile.TiffWriter(path) as file:
            file.write(preview, photometric="rgb", subfiletype=1, **beside)
            file.write(DEEP[..., 0], photometric="minisblack")
        with pytest.raises(ImageError, match=f"uses a preview .*{NOT_READ}"):
            read_image(path)
    with tifffile.TiffWriter(path) as file:
        file.write(preview, photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(path).color, preview)


@pytest.mark.parametrize("planar", [False, True])
def test_smaller_copies_behind_a_picture_are_pages(tmp_path, planar):
    levels = levels_of(np.uint8, 3)
    config = "separate" if planar else "contig"
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        stored = apart(levels) if planar else levels
        file.write(stored, photometric="rgb", planarconfig=config, subifds=1)
        file.write(levels[::2, ::2], photometric="rgb", subfiletype=1)
        file.write(levels[::4, ::4], photometric="rgb", subfiletype=1)
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.color, levels)
    assert picture.notes == ("the first of 2 frames",)


# ------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        (256, "no ImageWidth"),
        (257, "no ImageLength"),
        (262, "no PhotometricInterpretation"),
        (273, "no StripOffsets"),
        (277, "1 samples a pixel, fewer than it has colors"),
    ],
)
def test_tags_that_are_missing(tag, message):
    stream = io.BytesIO()
    Image.fromarray(levels_of(np.uint8, 3)).save(stream, "TIFF")
    with pytest.raises(ImageError, match=rf"cannot be decoded \({message}\)"):
        decode(renamed(stream.getvalue(), tag, UNKNOWN), Limits(), "a.tif")


def test_a_palette_without_its_colors():
    stream = io.BytesIO()
    Image.fromarray(levels_of(np.uint8, 3)).quantize(30).save(stream, "TIFF")
    assert decode(stream.getvalue(), Limits(), "a.tif").color.shape == (40, 50, 3)
    with pytest.raises(ImageError, match="no ColorMap"):
        decode(renamed(stream.getvalue(), 320, UNKNOWN), Limits(), "a.tif")


@pytest.mark.parametrize("second", [False, True])
def test_many_tags_on_the_same_bytes(second):
    """A file of 1 MB, or its second page, would be read as one of 200."""
    tags = {256: 1000, 257: 1000, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1000}
    layout = {tag: (3, [value]) for tag, value in tags.items()}
    content = bytearray(tiff(layout, [bytes(1_000_000)]))
    page = [struct.pack("<HHII", tag, 7, 1_000_000, 8) for tag in range(40_000, 40_200)]
    pointer = len(content) - 4 if second else 4
    struct.pack_into("<I", content, pointer, len(content))
    content = bytes(content) + struct.pack("<H", len(page)) + b"".join(page) + bytes(4)
    with pytest.raises(ImageError, match="its tags share their values"):
        decode(content, Limits(), "a.tif")


@pytest.mark.parametrize("kind", [1, 7])
def test_xmp_and_profile_of_either_type(tmp_path, kind):
    xmp, profile = b"<x:xmpmeta/>", b"profile"
    tags = [(700, kind, len(xmp), xmp, True), (34675, kind, len(profile), profile, True)]
    tifffile.imwrite(tmp_path / "a.tif", levels_of(np.uint8, 3), photometric="rgb", extratags=tags)
    picture = read_image(tmp_path / "a.tif")
    assert picture.metadata.xmp == xmp
    assert picture.notes == ("ICC profile left out: it is none of RGB",)


@pytest.mark.parametrize("compression", ["zstd", "lzma", "tiff_lzw", "raw"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_is_applied_once_whoever_decodes(tmp_path, compression, orientation):
    stored = levels_of(np.uint8, 3)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / "a.tif"
    Image.fromarray(stored).save(path, compression=compression, exif=exif)
    expected = np.rot90(stored, 2 if orientation == 3 else -1)
    np.testing.assert_array_equal(read_image(path).color, expected)
    assert read_size(path) == expected.shape[:2]


def test_12_bits_are_turned_once():
    packed = bytes([0x12, 0x3A, 0xBC, 0x45, 0x67, 0x89])  # 0x123 0xabc, 0x456 0x789
    tags = {256: 2, 257: 2, 258: 12, 259: 1, 262: 1, 274: 3, 277: 1, 278: 2}
    content = tiff({tag: (3, [value]) for tag, value in tags.items()}, [packed])
    found = decode(content, Limits(), "a.tif").color[..., 0] >> 4
    assert found.tolist() == [[0x789, 0x456], [0xABC, 0x123]]


def test_directories_that_overlap():
    """Of which a small file can have any number: here each begins 4 bytes behind the one before."""
    page = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    content = tiff({tag: (3, [value]) for tag, value in page.items()}, [b"\x80"])
    first, length = len(content), 2 + 65_535 * 12
    content = content[:-4] + struct.pack("<I", first) + b"\xff" * length
    following = (first + 4 * number for number in range(1, 40))
    content += b"".join(struct.pack("<I", offset) for offset in following) + bytes(8)
    with pytest.raises(ImageError, match="its directories overlap"):
        decode(content, Limits(), "a.tif")


def test_many_channels_are_not_decoded(tmp_path):
    levels = np.zeros((8, 8, 60), np.uint8)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, levels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageError, match=f"59 channels beside its colors, {NOT_READ}"):
        read_image(path)


def test_a_damaged_tag_beside_the_picture_is_left_out(tmp_path):
    levels = levels_of(np.uint8, 3)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        levels,
        photometric="rgb",
        software="a long name",
        extratags=[(315, 2, 0, "somebody", True)],
    )
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 305, 2))
    damaged = bytearray(content)
    struct.pack_into("<I", damaged, at + 8, len(content) + 100)
    picture = decode(bytes(damaged), Limits(), "a.tif")
    np.testing.assert_array_equal(picture.color, levels)
    assert b"somebody" in (picture.metadata.exif or b"")
    assert b"a long name" not in (picture.metadata.exif or b"")
