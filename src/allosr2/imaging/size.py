"""How large a result is to be."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from allosr2.errors import ConfigError, ImageError

LARGEST_SCALE = 64
"""Largest enlargement factor: far beyond what any model can fill, yet a bound against slips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSize:
    """The size of a result, in one of five ways; the ratio of the sides stays.

    With none, a picture is enlarged by the factor that the model was trained for.

    Raises ConfigError for more than one of them, and for a value out of range.
    """

    scale: float | None = None
    """Enlargement factor of the sides, above 0, such as 2.5."""
    width: int | None = None
    """Width in pixels."""
    height: int | None = None
    """Height in pixels."""
    max_side: int | None = None
    """The longer side in pixels."""
    megapixels: float | None = None
    """Millions of pixels, width times height."""

    def __post_init__(self) -> None:
        given = {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} are given: give one of them")
        for name, value in given.items():
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} is {value}: use a number above 0")
        if self.scale is not None and self.scale > LARGEST_SCALE:
            raise ConfigError(f"scale is {self.scale}: use at most {LARGEST_SCALE}")

    def of(self, height: int, width: int, native: int) -> tuple[int, int]:
        """Height and width of the result of a picture, in pixels, 1 or more.

        Args:
            height: of the picture, in pixels.
            width: likewise.
            native: the factor that the model was trained for.

        Raises:
            ImageError: if that is more than `LARGEST_SCALE` times the picture.
        """
        if self.width is not None:
            factor = self.width / width
        elif self.height is not None:
            factor = self.height / height
        elif self.max_side is not None:
            factor = self.max_side / max(height, width)
        elif self.megapixels is not None:
            factor = math.sqrt(self.megapixels * 1e6 / (height * width))
        else:
            factor = self.scale or native
        if factor > LARGEST_SCALE:
            raise ImageError(
                f"a picture of {width} x {height} px would have to become {factor:.0f} times larger; "
                f"ask for at most {LARGEST_SCALE} times"
            )
        # halves go up, as a photographer expects, not to the even number
        return max(math.floor(height * factor + 0.5), 1), max(math.floor(width * factor + 0.5), 1)


NATIVE_SIZE = OutputSize()
"""Enlarged by the factor that the model was trained for."""
