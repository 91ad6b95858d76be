"""Large pictures in overlapping tiles: where they lie, how they blend, and padding to the grid."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from allosr2.errors import ConfigError


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the fewest tiles that cover `length` pixels, evenly spread.

    Neighbors share `overlap` pixels or more. One tile starts at 0 if `length <= tile`.

    Raises:
        ConfigError: unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ConfigError(
            f"overlap {overlap} does not fit tile {tile}; choose an overlap from 0 to {tile - 1}"
        )
    if length <= tile:
        return [0]
    gaps = math.ceil((length - tile) / (tile - overlap))
    return [index * (length - tile) // gaps for index in range(gaps + 1)]


def blend_weights(length: int, tile: int, overlap: int) -> Float[Tensor, "n extent"]:
    """Weights along one axis of the tiles at `tile_starts`, one a row; extent = min(tile, length).

    They rise and fall as raised cosines over the pixels that neighbors share, are positive, and
    add up to 1 at every pixel. The weights in the plane are the products of both axes' weights and
    so add up to 1 as well: blended tiles need no division afterwards. Float64.

    Raises:
        ConfigError: unless 0 <= overlap < tile.
    """
    starts = tile_starts(length, tile, overlap)
    extent = min(tile, length)
    weights = torch.ones(len(starts), extent, dtype=torch.float64)
    for row, (start, following) in enumerate(pairwise(starts)):
        shared = start + tile - following
        phase = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared
        rise = torch.sin(phase * (math.pi / 2)).square()
        weights[row, extent - shared :] *= rise.flip(0)
        weights[row + 1, :shared] *= rise
    # Already 1 where two tiles meet; an overlap of more than half a tile makes more of them meet.
    total = torch.zeros(length, dtype=torch.float64)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + extent] += row
    return torch.stack(
        [row / total[start : start + extent] for start, row in zip(starts, weights, strict=True)]
    )


def map_tiles(
    function: Callable[[Float[Tensor, "b c tile_h tile_w"]], Float[Tensor, "b d tile_h tile_w"]],
    image: Float[Tensor, "b c h w"],
    *,
    tile: int,
    overlap: int,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Tensor, "b d h w"]:
    """Apply `function` tile by tile and blend its results into one float32 picture on the CPU.

    A tile measures min(tile, h) x min(tile, w): where `h`, `w` and `tile` are multiples of 16
    (`pad_to_multiple`), so is each tile. One tile that covers everything passes through unblended.

    Args:
        function: keeps height and width; its result may lie on any device.
        image: the whole picture; `function` gets views of it.
        tile: side in pixels.
        overlap: least number of pixels that neighbors share.
        progress: called with (tiles done, tiles in all) after each tile.

    Raises:
        ConfigError: unless 0 <= overlap < tile.
    """
    height, width = image.shape[-2:]
    tops, lefts = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    vertical = blend_weights(height, tile, overlap).float()
    horizontal = blend_weights(width, tile, overlap).float()
    corners = [(row, column) for row in range(len(tops)) for column in range(len(lefts))]
    canvas: Tensor | None = None
    for done, (row, column) in enumerate(corners, start=1):
        rows = slice(tops[row], tops[row] + tile)
        columns = slice(lefts[column], lefts[column] + tile)
        piece = function(image[..., rows, columns]).to("cpu", torch.float32)
        if canvas is None:
            canvas = torch.zeros(*piece.shape[:2], height, width)
        window = torch.outer(vertical[row], horizontal[column])
        canvas[..., rows, columns] += piece * window
        if progress is not None:
            progress(done, len(corners))
    assert canvas is not None
    return canvas


def pad_to_multiple(
    image: Float[Tensor, "b c h w"], multiple: int
) -> Float[Tensor, "b c padded_h padded_w"]:
    """Pad at the bottom and on the right to sides that are multiples, by reflection.

    The reflection goes back and forth as often as it takes, so that any side from 1 px up works.
    `crop` undoes it.
    """
    height, width = image.shape[-2:]
    rows = _reflected(height, math.ceil(height / multiple) * multiple).to(image.device)
    columns = _reflected(width, math.ceil(width / multiple) * multiple).to(image.device)
    if len(rows) > height:
        image = image.index_select(-2, rows)
    if len(columns) > width:
        image = image.index_select(-1, columns)
    return image


def crop(image: Float[Tensor, "b c h w"], height: int, width: int) -> Tensor:
    """The top left `height` x `width` pixels of a padded picture."""
    return image[..., :height, :width]


def _reflected(length: int, padded: int) -> Tensor:
    """Index of the pixel to show at each of `padded` places: 0 1 2 1 0 1 2 ... for length 3."""
    period = max(2 * (length - 1), 1)
    phase = torch.arange(padded) % period
    return torch.minimum(phase, period - phase) if length > 1 else torch.zeros_like(phase)
