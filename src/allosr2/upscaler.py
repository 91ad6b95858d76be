"""An image becomes a larger image: read, pad, tile, one step, blend, color, write."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from einops import repeat
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from allosr2.backends import Backend
from allosr2.batch import PLAIN, FileOptions, upscale_files
from allosr2.devices import free_memory, resolve_device
from allosr2.errors import ConfigError, ImageError
from allosr2.imaging.alpha import fill_transparent, opacity_bounds
from allosr2.imaging.color import ColorFix, check_color_fix, match_color
from allosr2.imaging.io import image_from_any
from allosr2.imaging.kinds import like, picture_of
from allosr2.imaging.picture import Picture, to_levels, to_tensor
from allosr2.imaging.resize import resize, resize_rows, support
from allosr2.imaging.size import NATIVE_SIZE, OutputSize
from allosr2.imaging.tiling import Axis, Rows, RowsOf, blend_rows, lay_tiles, reflected
from allosr2.model import AlloSR2
from allosr2.pipeline import Job, Lane, Outcome, Progress
from allosr2.runner import Precision, Runner, precision_on

logger = logging.getLogger(__name__)

TRAINED = 512
"""Side in pixels of the crops that models are trained on: with less around, a patch is restored differently."""

TILES = (576, 512, 384, 256, 128)
"""Sides in pixels that "auto" chooses the largest tile's from.

Results of 1024, 2048 or 4096 px come out of tiles of 560 to 576 px, one less along a side than with 512.
"""

BORDER = 8
"""Pixels that are added to a picture on every side, by reflection, and cut off again.

Convolutions see zeros beyond a border. With 8 px the outermost 2 px of `mini`'s results are as good as the rest
(0.45 dB below bicubic's, inside 0.83; without, 0.95); more change nothing.
"""

MOST_JITTER = 4
"""Most evaluations of a picture."""

JITTER = 5
"""Pixels by which each further evaluation of `jitter` moves the picture against the patches, down and right.

Two evaluations a step of 5 px apart leave 31 % of the power of a grid of 16 px, 15 % of one of 8 px and none of
one of 2 px; four leave 5 %, 7 % and none.
"""

Kind = TypeVar("Kind", Image.Image, np.ndarray, Tensor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a picture will be worked on."""

    size: tuple[int, int]
    """Height and width of the result in pixels."""
    tiles: int
    """Evaluations of the model."""
    tile: tuple[int, int]
    """Height and width of each in pixels."""
    bytes: int
    """Most memory on the device, model included, as far as it can be told beforehand."""
    result_bytes: int
    """Of the result in RGB of 8 bits, which the machine's memory holds beside that."""


class Upscaler:
    """Enlarges pictures and files with one model on one device.

    Pictures larger than a tile are restored tile by tile, blended in latent space and again in pixels, and pass
    through in bands: neither the device's memory nor, but for the result, the machine's grows with them. The
    same input gives the same output on the same machine with the same tile.
    """

    def __init__(
        self,
        model: AlloSR2,
        *,
        device: str = "auto",
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
        color_fix: ColorFix = "wavelet",
        color_strength: float = 1.0,
        jitter: int = 1,
        precision: Precision = "auto",
        backend: Backend = "torch",
    ) -> None:
        """Move `model` to a device.

        Args:
            model: its adapters merged, or they are computed anew for each tile.
            device: "auto", "cpu", "cuda" or "cuda:1"; "auto" is CUDA where there is a GPU.
            tile: largest side of a tile in pixels, a multiple of the model's, to which the border is added.
                "auto" is 576, or less where memory is short. What does not fit after all is halved.
            overlap: least number of pixels that neighboring tiles share; None is a ninth of a tile.
            color_fix: how colors are held to the input's (`allosr2.imaging.color.match_color`).
            color_strength: how much of that, from 0 to 1.
            jitter: evaluations, moved against each other, whose mean is the result: 2 to 4 wear down what is
                left of the patches' grid, and take as many times longer.
            precision: "float32", "bfloat16", or "auto": bfloat16 on CUDA and on CPUs that compute in it
                (AVX512-BF16, AMX).
            backend: "torch", or "openvino": faster on CPUs, for flows of convolutions.

        Raises:
            ConfigError: for a device or backend that is absent, a backend that cannot compute the model or the
                precision (bfloat16 by OpenVINO on a CPU without it), and a setting that is out of range.
        """
        check_color_fix(color_fix, color_strength)
        if not 1 <= jitter <= MOST_JITTER:
            raise ConfigError(f"jitter is {jitter}: use 1 (one evaluation) to {MOST_JITTER}")
        self.model = model
        self.color_fix: ColorFix = color_fix
        self.color_strength = color_strength
        self.jitter = jitter
        self._runner = Runner(model, device, precision=precision, backend=backend)
        fitting = [side for side in TILES if side % model.multiple == 0]
        self.tile = self._runner.largest_that_fits(fitting) if tile == "auto" else tile
        if self.tile < model.multiple or self.tile % model.multiple:
            raise ConfigError(
                f"tile is {tile}: use auto, or a multiple of {model.multiple} such as 512"
            )
        self.overlap = self.tile // 9 if overlap is None else overlap
        if not 0 <= self.overlap < self.tile:
            raise ConfigError(f"overlap is {overlap}: use 0 or more, and less than a tile's side")
        self._runner.batch = self._runner.batch_that_fits(self.tile)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini",
        *,
        device: str = "auto",
        tile: int | Literal["auto"] = "auto",
        overlap: int | None = None,
        color_fix: ColorFix = "wavelet",
        color_strength: float = 1.0,
        fidelity: float = 0.0,
        jitter: int = 1,
        precision: Precision = "auto",
        backend: Backend = "torch",
    ) -> Upscaler:
        """Load a model folder, the embedded "mini" or a hub id such as "user/model", with its adapters merged.

        `fidelity` from 0 (as trained) to 1 keeps the result closer to the input, see `AlloSR2.merge`.
        Raises ModelError for what is missing or broken in it, and ConfigError as the constructor.
        """
        held = (
            "float32" if backend == "openvino" else precision_on(resolve_device(device), precision)
        )
        model = AlloSR2.from_pretrained(source, held).merge(fidelity)
        return cls(
            model,
            device=device,
            tile=tile,
            overlap=overlap,
            color_fix=color_fix,
            color_strength=color_strength,
            jitter=jitter,
            precision=precision,
            backend=backend,
        )

    def __call__(
        self,
        image: Kind,
        scale: float | None = None,
        *,
        size: OutputSize | None = None,
        progress: Progress | None = None,
    ) -> Kind:
        """Enlarge a picture; the result is of the same kind.

        Args:
            image: a PIL image; an array `h w` (gray), `h w 3` (RGB), `h w 2` or `h w 4` (with opacity) of
                uint8, uint16 or float in [0, 1]; or a float tensor `3 h w` or `b 3 h w` in [0, 1]. The result
                has the same channels and dtype, and lies on the same device. PIL images of other modes than
                L, LA, RGB, RGBA and I;16 become the nearest of these.
            scale: enlargement factor, such as 2.5; None is the factor that the model was trained for.
            size: the result's size said otherwise; instead of a scale.
            progress: called after each part of the work.

        Raises:
            ConfigError: for a scale out of range.
            ImageError: for an image of another kind or range, and if the result is not finite.
        """
        if scale is not None and size is not None:
            raise ConfigError("scale and size are given: give one of them")
        size = size or OutputSize(scale=scale)
        if isinstance(image, Tensor):
            return self._enlarge_tensor(image, size, progress)
        picture = self.upscale_picture(picture_of(image), size, progress=progress)
        return like(image, picture)

    def upscale_picture(
        self,
        picture: Picture,
        size: OutputSize = NATIVE_SIZE,
        *,
        where: str = "the given image",
        progress: Progress | None = None,
    ) -> Picture:
        """Enlarge a picture with its opacity, which the model restores as it does gray; metadata stay.

        `where` names it in errors. Raises ImageError as a call, and for a result that memory cannot hold.
        """
        color, alpha = to_tensor(picture.color), picture.alpha
        target = size.of(picture.height, picture.width, self.model.config.scale)
        channels = picture.color.shape[2] + (alpha is not None)
        _check_memory(target, channels * picture.color.itemsize, where)
        opacity = None if alpha is None else to_tensor(alpha)
        restores_opacity = opacity is not None and bool((opacity != opacity[0, 0, 0, 0]).any())
        count = _Count(progress, self._parts(color, target) * (1 + restores_opacity))
        if opacity is not None:
            color = fill_transparent(color, opacity)
        dtype = picture.color.dtype
        if opacity is not None and alpha is not None:
            if restores_opacity:
                rows = _bounded(
                    self._rows(opacity, target, where, count), opacity, target[0], target[1]
                )
                alpha = _canvas(rows, target, 1, dtype)[..., 0]
            else:
                alpha = np.full(target, alpha[0, 0], dtype)
        rows = self._rows(color, target, where, count)
        return replace(picture, color=_canvas(rows, target, color.shape[1], dtype), alpha=alpha)

    def upscale_file(
        self,
        path: Path,
        output: Path,
        size: OutputSize = NATIVE_SIZE,
        *,
        options: FileOptions = PLAIN,
        progress: Progress | None = None,
    ) -> None:
        """Enlarge an image file into another, whole or not at all.

        Its format is what its suffix or `options` say. Colors stay at their depth where the format holds it;
        ICC profile, EXIF and XMP are carried over. Arguments and errors as in a call; moreover ImageError for
        a file that cannot be read or written.
        """
        for outcome in self.upscale_many(
            [(path, output)], size, options=options, progress=progress
        ):
            if outcome.error is not None:
                raise outcome.error
            for note in outcome.notes:
                logger.info("%s: %s", output, note)

    def upscale_many(
        self,
        pairs: Iterable[tuple[Path, Path]],
        size: OutputSize = NATIVE_SIZE,
        *,
        options: FileOptions = PLAIN,
        beside: Sequence[Upscaler] = (),
        progress: Progress | None = None,
    ) -> Iterator[Outcome]:
        """Enlarge image files into others; yields what became of each as it is done.

        The next file is read and the last one written while the model works. A file that fails is an outcome
        with an error and stops no other. Nothing begins before the first outcome is asked for.

        Args:
            pairs: a file and what to write it to, each; taken as they are needed.
            size: of the results.
            options: how files are read and written.
            beside: upscalers on other devices that share the work.
            progress: called from other threads after each part of a picture.
        """
        jobs = (Job(source=Path(path), target=Path(output)) for path, output in pairs)
        yield from upscale_files(
            jobs,
            [upscaler.lane(size) for upscaler in (self, *beside)],
            options,
            size_of=lambda h, w: size.of(h, w, self.model.config.scale),
            progress=None if progress is None else lambda _, done, total: progress(done, total),
        )

    def lane(self, size: OutputSize = NATIVE_SIZE) -> Lane:
        """`upscale_picture` at one size, as `allosr2.batch.upscale_files` takes it."""
        return lambda picture, where, progress: self.upscale_picture(
            picture, size, where=where, progress=progress
        )

    def plan(self, height: int, width: int, size: OutputSize = NATIVE_SIZE) -> Plan:
        """What a picture of that many pixels will take. Raises ImageError as `OutputSize.of`."""
        target = size.of(height, width, self.model.config.scale)
        rows, columns = self._tiles(self._working_size((height, width), target))
        tile = (rows.extent * self.model.multiple, columns.extent * self.model.multiple)
        held = sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))
        return Plan(
            size=target,
            tiles=len(rows) * len(columns) * self.jitter,
            tile=tile,
            bytes=held + self._runner.bytes_of(tile[0] * tile[1]) * self._runner.batch,
            result_bytes=3 * target[0] * target[1],
        )

    @property
    def settings(self) -> dict[str, Any]:
        """All that a result depends on beside the picture: equal settings give equal results on a machine."""
        return {
            "model": self._runner.fingerprint(),
            "precision": self._runner.precision,
            "backend": self._runner.backend,
            "device": self._runner.device.type,
            "tile": self.tile,
            "overlap": self.overlap,
            "batch": self._runner.batch,
            "color_fix": self.color_fix,
            "color_strength": self.color_strength,
            "step": self.model.step,
            "jitter": self.jitter,
        }

    # ------------------------------------------------------------------------- the path of a picture

    def _rows(
        self, lr: Float[Tensor, "1 c h w"], target: tuple[int, int], where: str, count: _Count
    ) -> Iterator[Float[Tensor, "1 c n w2"]]:
        """The whole path from a gray or RGB picture to the rows of its enlargement, in [0, 1], on the CPU."""
        channels = lr.shape[1]
        lr = repeat(lr, "1 1 h w -> 1 3 h w") if channels == 1 else lr
        if target[0] < lr.shape[-2] or target[1] < lr.shape[-1]:
            lr = resize(lr, target).clamp_(0, 1)
        working = self._working_size(lr.shape[-2:], target)
        moved = [
            self._restored(lr, working, JITTER * index, where, count)
            for index in range(self.jitter)
        ]

        def restored(first: int, last: int) -> Tensor:
            lowest, highest = support((first, last), working[0], target[0])
            rows = torch.stack([take(lowest, highest) for take in moved]).mean(0)
            return resize_rows(rows, lowest, working[0], target, torch.arange(first, last))

        def reference(first: int, last: int) -> Tensor:
            return _enlarged(lr, target, torch.arange(first, last))

        for rows in match_color(
            restored, reference, target[0], self.color_fix, self.color_strength
        ):
            yield rows.mean(dim=1, keepdim=True) if channels == 1 else rows

    def _restored(
        self,
        lr: Float[Tensor, "1 3 h w"],
        working: tuple[int, int],
        shift: int,
        where: str,
        count: _Count,
    ) -> RowsOf:
        """Rows of the model's result at the size it works at; `shift` moves the grid of patches, in pixels."""
        vertical, horizontal = self._tiles(working)
        runner, multiple, before = self._runner, self.model.multiple, BORDER + shift
        rows_at, columns_at = (
            reflected(torch.arange(axis.length * multiple) - before, side)
            for axis, side in zip((vertical, horizontal), working, strict=True)
        )

        def padded(first: int, last: int) -> Tensor:
            return _enlarged(lr, working, rows_at[first:last])[..., columns_at]

        def restore(tiles: Tensor) -> Tensor:
            return count.up(runner.apply(runner.encode, tiles, where), len(tiles))

        def decode(tiles: Tensor) -> Tensor:
            return count.up(runner.apply(runner.decode, tiles, where), len(tiles))

        at = (vertical, horizontal)
        latents = Rows(blend_rows(restore, padded, *at, runner.encode.units, runner.batch))
        pixels = Rows(blend_rows(decode, latents.take, *at, runner.decode.units, runner.batch))

        def inner(first: int, last: int) -> Tensor:
            return pixels.take(before + first, before + last)[..., before : before + working[1]]

        return inner

    def _working_size(
        self, lr: tuple[int, int] | torch.Size, target: tuple[int, int]
    ) -> tuple[int, int]:
        """Where the model works: never at less than the factor that it was trained for.

        At less it would sharpen what is sharp. On RealSR (every fourth pair, LPIPS), x2: 0.1943 by x4 and
        shrinking, 0.2586 at x2 itself; x1: 0.1074 and 0.2559. On the other side, x8 of halved inputs: 0.2952 at
        x8 itself, 0.3440 by x4 and bicubic, 0.3468 by x4 twice.
        """
        native = self.model.config.scale
        side = [min(have, want) for have, want in zip(lr, target, strict=True)]
        return max(side[0] * native, target[0]), max(side[1] * native, target[1])

    def _tiles(self, working: tuple[int, int]) -> tuple[Axis, Axis]:
        """Where tiles lie on the padded picture, in tokens."""
        padding = 2 * BORDER + JITTER * (self.jitter - 1)
        tile, overlap = self._tokens(self.tile + padding), self._tokens(self.overlap)
        least = self._tokens(TRAINED + padding)
        vertical, horizontal = (
            lay_tiles(self._tokens(side + padding), tile, min(overlap, tile - 1), least)
            for side in working
        )
        return vertical, horizontal

    def _tokens(self, pixels: int) -> int:
        return math.ceil(pixels / self.model.multiple)

    def _parts(self, lr: Tensor, target: tuple[int, int]) -> int:
        """Calls of `_Count.up` for one picture, counting tiles."""
        rows, columns = self._tiles(self._working_size(lr.shape[-2:], target))
        return 2 * self.jitter * len(rows) * len(columns)

    def _enlarge_tensor(
        self, image: Float[Tensor, "..."], size: OutputSize, progress: Progress | None
    ) -> Float[Tensor, "..."]:
        lr = image_from_any(image.detach()).cpu()
        target = size.of(lr.shape[-2], lr.shape[-1], self.model.config.scale)
        count = _Count(progress, len(lr) * self._parts(lr, target))
        pictures = [
            torch.cat(list(self._rows(one[None], target, "the given image", count)), dim=-2)
            for one in lr
        ]
        return torch.cat(pictures).to(image).reshape(*image.shape[:-2], *target)


class _Count:
    """Parts done of all, told to a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def up(self, result: Tensor, parts: int) -> Tensor:
        self._done += parts
        if self._progress is not None:
            self._progress(self._done, self._total)
        return result


def _enlarged(
    lr: Float[Tensor, "1 c h w"], size: tuple[int, int], rows: Tensor
) -> Float[Tensor, "1 c n w2"]:
    """Rows of the bicubic enlargement, in [0, 1]: what the codec encodes of an LR image."""
    height = lr.shape[-2]
    first, last = support((int(rows.min()), int(rows.max()) + 1), height, size[0])
    return resize_rows(lr[..., first:last, :], first, height, size, rows).clamp_(0, 1)


def _bounded(
    rows: Iterator[Float[Tensor, "1 1 n w2"]],
    opacity: Float[Tensor, "1 1 h w"],
    height: int,
    width: int,
) -> Iterator[Float[Tensor, "1 1 n w2"]]:
    """Opacity held within what it is around each pixel of the input."""
    least, greatest = opacity_bounds(opacity)
    columns = torch.arange(width) * opacity.shape[-1] // width
    top = 0
    for band in rows:
        at = torch.arange(top, top + band.shape[-2]) * opacity.shape[-2] // height
        low, high = (bound[..., at, :][..., columns] for bound in (least, greatest))
        yield torch.minimum(torch.maximum(band, low), high)
        top += band.shape[-2]


def _check_memory(size: tuple[int, int], pixel_bytes: int, where: str) -> None:
    """Refuse a result that is larger than the memory that is free."""
    needed, free = size[0] * size[1] * pixel_bytes, free_memory(torch.device("cpu"))
    if needed > free:
        raise ImageError(
            f"{where}: the result, {size[1]} x {size[0]} px, takes {needed / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free; ask for a smaller size, or cut the picture into parts"
        )


def _canvas(
    rows: Iterator[Float[Tensor, "1 c n w"]], size: tuple[int, int], channels: int, dtype: np.dtype
) -> np.ndarray:
    """All rows at their final depth, the one thing that is as large as the result."""
    canvas = np.empty((*size, channels), dtype)
    top = 0
    for band in rows:
        canvas[top : top + band.shape[-2]] = to_levels(band, dtype)
        top += band.shape[-2]
    assert top == size[0]
    return canvas
