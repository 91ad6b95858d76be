"""HR training images: crops of photographs mixed with drawn images, each a function of (seed, index)."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from allosr2.data.procedural import procedural_image
from allosr2.errors import DataError, ImageError
from allosr2.imaging.io import find_images, read_rgb, read_size

logger = logging.getLogger(__name__)


class PhotoFolder:
    """The photographs of a folder, decoded when first asked for and kept in memory up to a limit."""

    def __init__(self, folder: Path, *, smallest_side: int, cache_gigabytes: float) -> None:
        """Read every header; photographs with a side below `smallest_side` pixels are left out.

        Raises DataError if the folder is missing, a header cannot be read, or no photograph is left.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of photographs; name one with --photos DIR")
        self.paths: list[Path] = []
        areas: list[int] = []
        for path in find_images(folder, recursive=True):
            try:
                height, width = read_size(path)
            except ImageError as error:
                raise DataError(f"{error}; remove it from the training folder") from error
            if min(height, width) < smallest_side:
                logger.warning("%s: %d x %d is smaller than a crop; left out", path, width, height)
                continue
            self.paths.append(path)
            areas.append(height * width)
        if not self.paths:
            raise DataError(
                f"{folder}: no photograph of at least {smallest_side} x {smallest_side} pixels in it; "
                "name another folder or lower --crop"
            )
        # Every pixel of the folder is equally likely to be seen, whatever photograph it is in.
        self.probabilities = np.asarray(areas, dtype=np.float64) / sum(areas)
        self._cache: OrderedDict[int, UInt8[np.ndarray, "h w 3"]] = OrderedDict()
        self._cache_bytes = int(cache_gigabytes * 2**30)

    def photo(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """Photograph `number`, decoded. Raises DataError, naming the file, if it is damaged."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        try:
            image = read_rgb(self.paths[number])
        except ImageError as error:
            raise DataError(f"{error}; remove it from the training folder") from error
        self._cache[number] = image
        while sum(kept.nbytes for kept in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)
        return image

    def crop(
        self, rng: np.random.Generator, size: int, minimum_scale: float
    ) -> UInt8[np.ndarray, "size size 3"]:
        """A random crop, randomly shrunk and mirrored.

        Half of the crops keep the photograph's own pixels; the others are shrunk by a factor drawn
        uniformly from [minimum_scale, 1] (less where the photograph is too small for it), which adds
        finer textures than the photograph has.
        """
        image = self.photo(int(rng.choice(len(self.paths), p=self.probabilities)))
        scale = rng.uniform(minimum_scale, 1.0) if rng.random() < 0.5 else 1.0
        height, width = image.shape[:2]
        window = min(round(size / scale), height, width)
        top = int(rng.integers(height - window + 1))
        left = int(rng.integers(width - window + 1))
        crop = image[top : top + window, left : left + window]
        if window != size:
            resized = Image.fromarray(crop).resize((size, size), Image.Resampling.LANCZOS)
            crop = np.asarray(resized)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        return np.ascontiguousarray(crop)


class HRImages:
    """An endless sequence of HR images; image `index` depends on (seed, index) alone."""

    def __init__(
        self,
        *,
        photos: Path,
        procedural: float,
        crop: int,
        minimum_scale: float,
        cache_gigabytes: float,
        seed: int,
    ) -> None:
        self.folder = (
            PhotoFolder(photos, smallest_side=crop, cache_gigabytes=cache_gigabytes)
            if procedural < 1
            else None
        )
        self.procedural = procedural
        self.crop = crop
        self.minimum_scale = minimum_scale
        self.seed = seed

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "crop crop 3"]:
        # A stream of its own: with the drawn image's, the choice to draw one would also choose which.
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index, 1)))
        if self.folder is None or rng.random() < self.procedural:
            return procedural_image(self.seed, index, self.crop)
        return self.folder.crop(rng, self.crop, self.minimum_scale)
