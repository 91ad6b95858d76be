"""The fonts that are at hand, and random words to set in them."""

import functools
import importlib.util
from pathlib import Path

import numpy as np
from PIL import ImageFont

_TEXT_FONTS = (
    *("DejaVuSans", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral"),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
"""Fonts of letters among matplotlib's, which has others of symbols; styles follow after a hyphen."""
_STIX_STYLES = ("STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta")
LETTERS = "etaoinshrdlcumwfgypbvk" * 3 + "etaoinetaoinxjqz"
MARKS = ".,;:!?-&%#@()/+*='\"$"


@functools.cache
def font_paths() -> tuple[Path, ...]:
    """The text fonts that come with matplotlib, where it is installed; else none.

    Sans, serif and typewriter faces of three families, most of them in four styles. Training
    installs matplotlib.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or not spec.submodule_search_locations:
        return ()
    folder = Path(spec.submodule_search_locations[0]) / "mpl-data" / "fonts" / "ttf"
    names = {*_TEXT_FONTS, *_STIX_STYLES}
    return tuple(p for p in sorted(folder.glob("*.ttf")) if p.stem.partition("-")[0] in names)


@functools.lru_cache(maxsize=128)  # an open font costs a file handle
def font(index: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Font 0 is Pillow's own, the others are `font_paths`; `size` in pixels."""
    if index == 0:
        return ImageFont.load_default(size)
    # Basic layout, so that an image does not depend on whether libraqm is installed.
    return ImageFont.truetype(font_paths()[index - 1], size, layout_engine=ImageFont.Layout.BASIC)


def random_words(generator: np.random.Generator, count: int) -> list[str]:
    """Words, numbers and capitals, in part with a mark after them."""
    letters = np.array(list(LETTERS))
    lengths = (1 + generator.poisson(4.0, count)).tolist()
    spelled = "".join(letters[generator.integers(len(letters), size=sum(lengths))].tolist())
    kinds = generator.random(count).tolist()
    marks = generator.integers(4 * len(MARKS), size=count).tolist()
    words: list[str] = []
    for length, kind, mark in zip(lengths, kinds, marks, strict=True):
        word, spelled = spelled[:length], spelled[length:]
        words.append(_styled(word, kind) + MARKS[mark : mark + 1])
    return words


def _styled(word: str, kind: float) -> str:
    """A number, capitals, a capitalized word or a plain one, by `kind` in [0, 1)."""
    if kind < 0.15:
        return "".join(str(ord(letter) % 10) for letter in word)
    return word.upper() if kind < 0.3 else word.capitalize() if kind < 0.5 else word
