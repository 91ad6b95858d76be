"""An image becomes a larger image: read, pad, tile, one step, blend, color, write."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from numbers import Integral
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from allosr2.devices import resolve_device
from allosr2.errors import ConfigError, ImageError
from allosr2.imaging.color import match_color
from allosr2.imaging.io import check_target, image_from_any, read_image, to_array, write_image
from allosr2.imaging.resize import enlarge
from allosr2.imaging.tiling import crop, map_tiles, pad_to_multiple, tile_starts
from allosr2.model import AlloSR2

logger = logging.getLogger(__name__)

LARGEST_SCALE = 8
"""Largest enlargement factor; no published model goes further."""

Picture = TypeVar("Picture", Image.Image, np.ndarray, Tensor)
Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all) after each tile."""


class Upscaler:
    """Enlarges images and files with one model on one device.

    Pictures larger than a tile are restored tile by tile and blended, so that memory on the device
    does not grow with them. The same input gives the same output on the same machine.
    """

    def __init__(
        self, model: AlloSR2, *, device: str = "auto", tile: int = 512, overlap: int | None = None
    ) -> None:
        """Move `model` to a device: bfloat16 on CUDA, float32 on the CPU.

        Args:
            model: its adapters merged, or they are computed anew for each tile.
            device: "auto", "cpu", "cuda" or "cuda:1"; "auto" is CUDA where there is a GPU.
            tile: side of a tile in pixels of the result; a multiple of the model's.
            overlap: least number of pixels that neighboring tiles share; None is an eighth of a tile.

        Raises:
            ConfigError: for a device that is absent, and a tile or an overlap that does not fit.
        """
        if tile < model.multiple or tile % model.multiple:
            raise ConfigError(f"tile is {tile}: use a multiple of {model.multiple}, such as 512")
        overlap = tile // 8 if overlap is None else overlap
        tile_starts(tile, tile, overlap)  # raises for an overlap that does not fit
        self.model = model
        self.device = resolve_device(device)
        self.tile = tile
        self.overlap = overlap
        self._use(getattr(torch, _precision_on(self.device)))
        self.model.codec.to(memory_format=torch.channels_last)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "mini",
        *,
        device: str = "auto",
        tile: int = 512,
        overlap: int | None = None,
    ) -> Upscaler:
        """Load a model folder, the embedded "mini" or a hub id such as "user/model", with its adapters merged.

        Raises ModelError for what is missing or broken in it, and ConfigError as the constructor.
        """
        precision = _precision_on(resolve_device(device))
        model = AlloSR2.from_pretrained(source, precision).merge()
        return cls(model, device=device, tile=tile, overlap=overlap)

    def __call__(
        self, image: Picture, scale: int | None = None, *, progress: Progress | None = None
    ) -> Picture:
        """Enlarge a picture; the result is of the same kind.

        Args:
            image: a PIL image (the result is RGB), an array `h w` or `h w 3` of uint8, uint16 or
                float in [0, 1] (the result is `h w 3` of the same dtype), or a float tensor
                `3 h w` or `b 3 h w` in [0, 1] (the result is on its device, of its dtype and rank).
            scale: enlargement factor from 1 to 8; None is the factor that the model was trained for.
            progress: called after each tile.

        Raises:
            ConfigError: for a scale out of range.
            ImageError: for an image of another kind or range, and if the result is not finite.
        """
        lr = image_from_any(image).cpu()
        sr = self._enlarge(lr, self.resolve_scale(scale), "the given image", progress)
        if isinstance(image, Image.Image):
            return Image.fromarray(to_array(sr))
        if isinstance(image, np.ndarray):
            return _array_like(image, sr)
        return sr.to(image).reshape(*image.shape[:-2], *sr.shape[-2:])

    def upscale_file(
        self,
        path: Path,
        output: Path,
        scale: int | None = None,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Enlarge an image file into another, in the format of its suffix, whole or not at all.

        Transparency is enlarged bicubically; ICC profile and EXIF are carried over. Arguments and
        errors as in a call; moreover ImageError for a file that cannot be read or written.
        """
        scale = self.resolve_scale(scale)
        image, metadata = read_image(path)
        check_target(output, metadata)
        sr = to_array(self._enlarge(image_from_any(image), scale, str(path), progress))
        if metadata.alpha is not None:
            metadata = dataclasses.replace(metadata, alpha=_enlarge_alpha(metadata.alpha, scale))
        write_image(output, sr, metadata)

    def resolve_scale(self, scale: int | None) -> int:
        """The factor to enlarge by: `scale`, or the model's own. Raises ConfigError out of 1 to 8."""
        if scale is None:
            return self.model.config.scale
        if not isinstance(scale, Integral) or not 1 <= scale <= LARGEST_SCALE:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"scale is {scale}: use a whole number from 1 to {LARGEST_SCALE}")
        return int(scale)

    @torch.no_grad()
    def _enlarge(
        self, lr: Float[Tensor, "b 3 h w"], scale: int, where: str, progress: Progress | None
    ) -> Float[Tensor, "b 3 h*scale w*scale"]:
        """The whole path between two pictures in [0, 1], both float32 on the CPU."""
        height, width = lr.shape[-2] * scale, lr.shape[-1] * scale
        enlarged = pad_to_multiple(enlarge(lr, scale), self.model.multiple)
        sr = map_tiles(
            lambda tile: self._restore(tile, where),
            enlarged,
            tile=self.tile,
            overlap=self.overlap,
            progress=progress,
        )
        return match_color(crop(sr, height, width), crop(enlarged, height, width))

    def _restore(self, tile: Float[Tensor, "b 3 h w"], where: str) -> Float[Tensor, "b 3 h w"]:
        """One step for one tile, in float32 if lower precision overflows."""
        sr = self._forward(tile, where)
        if self._precision != torch.float32 and not bool(sr.isfinite().all()):
            logger.warning("%s: not finite in %s; going on in float32", where, self._precision)
            self._use(torch.float32)
            sr = self._forward(tile, where)
        if not bool(sr.isfinite().all()):
            raise ImageError(
                f"{where}: the model's result is not finite, in float32 too; try another model"
            )
        return sr

    @torch.inference_mode()
    def _forward(self, tile: Float[Tensor, "b 3 h w"], where: str) -> Float[Tensor, "b 3 h w"]:
        enabled = self._precision == torch.bfloat16
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
                return self.model(tile.to(self.device)).float()
        except torch.OutOfMemoryError as error:
            raise ImageError(
                f"{where}: {self.device} is out of memory with tiles of {self.tile} px; use smaller "
                "ones (--tile 256)"
            ) from error

    def _use(self, precision: torch.dtype) -> None:
        self._precision = precision
        self.model.to(self.device, precision)


def _precision_on(device: torch.device) -> Literal["float32", "bfloat16"]:
    return "bfloat16" if device.type == "cuda" else "float32"


def _array_like(image: np.ndarray, sr: Float[Tensor, "1 3 h w"]) -> np.ndarray:
    if image.dtype == np.uint8:
        return to_array(sr)
    levels = rearrange(sr, "1 c h w -> h w c").numpy()
    if image.dtype == np.uint16:
        return np.rint(levels * 65535).astype(np.uint16)
    return levels.astype(image.dtype)


def _enlarge_alpha(alpha: UInt8[np.ndarray, "h w"], scale: int) -> UInt8[np.ndarray, "sh sw"]:
    opacity = rearrange(torch.from_numpy(alpha), "h w -> 1 1 h w") / 255
    levels = enlarge(opacity, scale).mul_(255).round_().to(torch.uint8)
    return rearrange(levels, "1 1 h w -> h w").numpy()
