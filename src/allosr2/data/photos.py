"""HR training images: crops of photographs mixed with drawn images, each a function of (seed, index)."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from allosr2.data.photo import Photo
from allosr2.data.procedural import procedural_image
from allosr2.data.sources import Source
from allosr2.errors import DataError, ImageError

logger = logging.getLogger(__name__)

DRAWS = 100
"""Damaged photographs in a row after which a sample gives up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadPhoto:
    """A photograph that cannot be read."""

    photo: str
    """Its name, as `Photo.name`."""
    reason: str
    """One line: which, what is wrong with it, what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One HR training image and where it comes from."""

    image: UInt8[np.ndarray, "crop crop 3"]
    """RGB."""
    photo: str | None
    """Name of the photograph that it is a crop of; None for a drawn image."""
    bad: tuple[BadPhoto, ...] = ()
    """Damaged photographs that were drawn before that one."""


class PhotoFolder:
    """The photographs of one or more sources, decoded when first asked for and kept in memory up to a limit."""

    def __init__(
        self, sources: Sequence[str], *, smallest_side: int, cache_gigabytes: float
    ) -> None:
        """Read every header; photographs with a side below `smallest_side` pixels are left out.

        Raises DataError if a source cannot be used (`Source.photos`), a header cannot be read for the moment
        (`Photo.size`), or no photograph is left.
        """
        self.photos: list[Photo] = []
        unreadable: list[BadPhoto] = []
        small: list[str] = []
        areas: list[int] = []
        digest = hashlib.sha256()
        for photo in (photo for text in sources for photo in Source.parse(text).photos()):
            try:
                height, width = photo.size()
            except ImageError as error:
                unreadable.append(BadPhoto(photo=photo.name, reason=str(error)))
                continue
            if min(height, width) < smallest_side:
                small.append(f"{photo.name} ({width} x {height})")
                continue
            self.photos.append(photo)
            areas.append(height * width)
            digest.update(f"{photo.key}\0{height}\0{width}\0".encode(errors="surrogateescape"))
        self.fingerprint = digest.hexdigest()[:16]
        """Tells photographs that draw other samples, by their names within their sources and their sizes."""
        self.unreadable = tuple(unreadable)
        """Photographs whose header cannot be read, which are left out too."""
        if not self.photos:
            raise DataError(_no_photograph(sources, smallest_side, self.unreadable))
        if small:
            logger.warning(
                "%d of %d photographs have a side below the crop's %d pixels and are left out, such as %s",
                len(small),
                len(small) + len(self.photos) + len(unreadable),
                smallest_side,
                small[0],
            )
        # Every pixel of the folder is equally likely to be seen, whatever photograph it is in.
        self.probabilities = np.asarray(areas, dtype=np.float64) / sum(areas)
        self._cache: OrderedDict[int, UInt8[np.ndarray, "h w 3"]] = OrderedDict()
        self._cached_bytes = 0
        self._cache_bytes = int(cache_gigabytes * 2**30)

    def with_part_of_cache(self, parts: int) -> PhotoFolder:
        """The same photographs with one of `parts` equal parts of the cache, which is empty and its own."""
        folder = copy.copy(self)
        folder._cache, folder._cached_bytes = OrderedDict(), 0
        folder._cache_bytes = self._cache_bytes // parts
        return folder

    def photo(self, number: int) -> UInt8[np.ndarray, "h w 3"]:
        """Photograph `number`, decoded. Errors as `Photo.pixels`."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        image = self.photos[number].pixels()
        self._cache[number] = image
        self._cached_bytes += image.nbytes
        while self._cached_bytes > self._cache_bytes:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= oldest.nbytes
        return image

    def crop(self, rng: np.random.Generator, size: int, scales: tuple[float, float]) -> Sample:
        """A random crop, randomly resized and mirrored.

        Half of the crops keep the photograph's own pixels; the others are resized by a factor drawn uniformly
        from the range `scales`. Below 1 (less where the photograph is too small for it) that adds finer
        textures than the photograph has, above 1 softer ones. For a damaged photograph another is drawn,
        from the same generator: which one depends on it and the files alone.

        Raises DataError if `DRAWS` in a row are damaged, or one cannot be read for the moment (`Photo.pixels`).
        """
        number, image, bad = self._draw(rng)
        scale = rng.uniform(*scales) if rng.random() < 0.5 else 1.0
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
        return Sample(
            image=np.ascontiguousarray(crop), photo=self.photos[number].name, bad=tuple(bad)
        )

    def _draw(
        self, rng: np.random.Generator
    ) -> tuple[int, UInt8[np.ndarray, "h w 3"], list[BadPhoto]]:
        """The number of a photograph that can be decoded, its pixels, and what was drawn in vain."""
        # None is remembered as damaged: what was met before, and in which process, must not matter.
        bad: list[BadPhoto] = []
        for _ in range(DRAWS):
            number = int(rng.choice(len(self.photos), p=self.probabilities))
            try:
                return number, self.photo(number), bad
            except ImageError as error:
                bad.append(BadPhoto(photo=self.photos[number].name, reason=str(error)))
        raise DataError(
            f"{DRAWS} photographs in a row are damaged, the last: {bad[-1].reason}; "
            "put whole ones in their places"
        )


def _no_photograph(sources: Sequence[str], side: int, unreadable: Sequence[BadPhoto]) -> str:
    where = f"{', '.join(sources)}: no photograph of at least {side} x {side} pixels in it"
    remedy = "name another folder or lower --crop"
    if not unreadable:
        return f"{where}; {remedy}"
    return f"{where}, and {len(unreadable)} that cannot be read: {unreadable[0].reason}; {remedy}"


class HRImages:
    """An endless sequence of HR images; image `index` depends on (seed, index) and the files alone."""

    def __init__(
        self,
        *,
        photos: Sequence[str],
        procedural: float,
        crop: int,
        minimum_scale: float,
        maximum_scale: float = 1.0,
        cache_gigabytes: float,
        seed: int,
    ) -> None:
        """Open the photographs, if any are wanted; without any every image is drawn. Raises DataError."""
        self.folder = (
            PhotoFolder(photos, smallest_side=crop, cache_gigabytes=cache_gigabytes)
            if photos and procedural < 1
            else None
        )
        self.procedural = procedural
        self.crop = crop
        self.scales = (minimum_scale, maximum_scale)
        self.seed = seed

    @property
    def fingerprint(self) -> str:
        """Differs, 16 digits, where the photographs' names or sizes do; empty where every image is drawn.

        Names are those within the sources: photographs that were moved together keep it.
        """
        return self.folder.fingerprint if self.folder else ""

    def with_part_of_cache(self, parts: int) -> HRImages:
        """The same images, for one of `parts` processes that share the cache out; nothing is cached yet."""
        images = copy.copy(self)
        images.folder = self.folder.with_part_of_cache(parts) if self.folder else None
        return images

    def with_seed(self, seed: int) -> HRImages:
        """Other images of the same photographs."""
        images = copy.copy(self)
        images.seed = seed
        return images

    def sample(self, index: int) -> Sample:
        """Image `index`. Errors as `PhotoFolder.crop`."""
        # A stream of its own: with the drawn image's, the choice to draw one would also choose which.
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(index, 1)))
        if self.folder is None or rng.random() < self.procedural:
            return Sample(image=procedural_image(self.seed, index, self.crop), photo=None)
        return self.folder.crop(rng, self.crop, self.scales)
