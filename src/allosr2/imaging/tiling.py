"""Large pictures in overlapping tiles: where they lie, how they blend, and the rows that come of them.

A picture passes through in bands of rows from top to bottom, each as high as the step from one row of tiles
to the next: what is held at a time does not grow with its height.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from allosr2.errors import ConfigError

RowsOf = Callable[[int, int], Float[Tensor, "b c n w"]]
"""Gives the rows from one number up to another of a picture."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Tiles of one extent along one axis of a picture."""

    length: int
    """Of the picture, in units of the caller's."""
    extent: int
    """Of each tile."""
    starts: tuple[int, ...]
    """Where each begins; the last one ends with the picture."""

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.starts)

    def scaled(self, factor: int) -> Axis:
        """The same in a unit that is `factor` times finer."""
        starts = tuple(start * factor for start in self.starts)
        return Axis(self.length * factor, self.extent * factor, starts)

    def weights(self) -> Float[Tensor, "n extent"]:
        """Weights of the tiles, one a row.

        They rise and fall as raised cosines over what neighbors share, are positive, and add up to 1 at
        every place. The weights in the plane are the products of both axes' weights and so add up to 1 as
        well: blended tiles need no division afterwards. Float64.
        """
        weights = torch.ones(len(self.starts), self.extent, dtype=torch.float64)
        for row, (start, following) in enumerate(pairwise(self.starts)):
            shared = start + self.extent - following
            phase = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared
            rise = torch.sin(phase * (math.pi / 2)).square()
            weights[row, self.extent - shared :] *= rise.flip(0)
            weights[row + 1, :shared] *= rise
        # Already 1 where two tiles meet; an overlap of more than half a tile makes more of them meet.
        total = torch.zeros(self.length, dtype=torch.float64)
        for start, row in zip(self.starts, weights, strict=True):
            total[start : start + self.extent] += row
        return torch.stack(
            [
                row / total[start : start + self.extent]
                for start, row in zip(self.starts, weights, strict=True)
            ]
        )


def lay_tiles(length: int, tile: int, overlap: int, least: int = 0) -> Axis:
    """The fewest tiles of at most `tile` that cover `length`, evenly spread.

    Neighbors share `overlap` or more. Tiles are made as small as they can be, but no smaller than `least` (or
    `tile`). One tile is as long as the picture if that is no longer than `tile`.

    Raises:
        ConfigError: unless 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ConfigError(
            f"overlap {overlap} does not fit tile {tile}; choose an overlap from 0 to {tile - 1}"
        )
    if length <= tile:
        return Axis(length, length, (0,))
    steps = math.ceil((length - tile) / (tile - overlap))
    extent = max(math.ceil((length + steps * overlap) / (steps + 1)), min(least, tile))
    starts = tuple(index * (length - extent) // steps for index in range(steps + 1))
    return Axis(length, extent, starts)


def blend_rows(
    function: Callable[[Float[Tensor, "k c th tw"]], Float[Tensor, "k d sh sw"]],
    source: RowsOf,
    rows: Axis,
    columns: Axis,
    units: tuple[int, int] = (1, 1),
    batch: int = 1,
) -> Iterator[Float[Tensor, "1 d n w"]]:
    """Apply `function` tile by tile; yield the blended result's rows, all of them in order, float32 on the CPU.

    Args:
        function: of a batch of tiles; its results may lie on any device.
        source: rows of the one picture that it is applied to, asked for from top to bottom.
        rows: where the tiles lie from top to bottom, in units.
        columns: likewise from left to right.
        units: elements of the source, and of the result, along a side of a unit.
        batch: most tiles in one call.
    """
    unit, result_unit = units
    rows_out, columns_out = rows.scaled(result_unit), columns.scaled(result_unit)
    vertical, horizontal = rows_out.weights().float(), columns_out.weights().float()
    following = (*rows_out.starts[1:], rows_out.length)
    carried: Tensor | None = None
    for row, top in enumerate(rows.starts):
        strip = source(top * unit, (top + rows.extent) * unit)
        blended: Tensor | None = None
        for begin in range(0, len(columns), batch):
            places = range(begin, min(begin + batch, len(columns)))
            lefts = [columns.starts[column] * unit for column in places]
            width = columns.extent * unit
            tiles = torch.cat([strip[..., left : left + width] for left in lefts])
            for column, result in zip(
                places, function(tiles).to("cpu", torch.float32), strict=True
            ):
                if blended is None:
                    blended = result.new_zeros(len(result), rows_out.extent, columns_out.length)
                left = columns_out.starts[column]
                window = torch.outer(vertical[row], horizontal[column])
                blended[..., left : left + columns_out.extent] += result * window
        assert blended is not None
        if carried is not None:
            blended[:, : carried.shape[1]] += carried
        done = following[row] - rows_out.starts[row]
        carried = blended[:, done:]
        yield blended[None, :, :done]


class Rows:
    """A picture that passes by once in bands; any rows of it that are asked for in order.

    Rows before those asked for last are let go.
    """

    def __init__(self, bands: Iterator[Float[Tensor, "b c n w"]]) -> None:
        self._bands = bands
        self._held: list[Tensor] = []
        self._first = 0

    def take(self, first: int, last: int) -> Float[Tensor, "b c n w"]:
        """Rows `first` up to `last`; `first` is no smaller than at any time before."""
        self._let_go(first)
        while self._first + sum(band.shape[-2] for band in self._held) < last:
            self._held.append(next(self._bands))
            self._let_go(first)
        rows = torch.cat(self._held, dim=-2)
        return rows[..., first - self._first : last - self._first, :]

    def _let_go(self, first: int) -> None:
        while self._held and self._first + self._held[0].shape[-2] <= first:
            self._first += self._held.pop(0).shape[-2]


def reflected(places: Int[Tensor, "n"], length: int) -> Int[Tensor, "n"]:
    """The place in 0 ... length - 1 to show at each of `places`, by reflection: 2 1 0 1 2 1 0 ... for length 3.

    It goes back and forth as often as it takes, so that any length from 1 up can be padded to any other.
    """
    period = max(2 * (length - 1), 1)
    phase = places % period
    return torch.minimum(phase, period - phase) if length > 1 else torch.zeros_like(phase)
