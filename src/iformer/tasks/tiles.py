"""Positions of the overlapping tiles of a large image."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from iformer.config.network import MIN_INPUT_SIZE
from iformer.errors import DataError, UserError

DEFAULT_OVERLAP = 0.2
"""Default overlap of neighbouring tiles, as a share of their side."""
MAX_TILES = 10_000
"""Largest number of tiles of an image."""
_NOTE_SECONDS = 15
"""Time between two notes about an image of many tiles."""


class Tile(NamedTuple):
    """A part of an image: edges in pixels, right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Tiling:
    """Square tiles of one size that overlap."""

    side: int
    """Side of a tile in pixels."""
    overlap: float = DEFAULT_OVERLAP
    """Smallest overlap of neighbouring tiles, as a share of their side."""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            UserError: a tile is smaller than a network takes, or the overlap is not from 0 to 0.9.
        """
        if self.side < MIN_INPUT_SIZE:
            raise UserError(f"--tile is {self.side}; expected {MIN_INPUT_SIZE} pixels or more")
        if not 0 <= self.overlap <= 0.9:
            raise UserError(f"--overlap is {self.overlap:g}; expected a share from 0 to 0.9")

    def tiles(self, width: int, height: int) -> list[Tile]:
        """Return tiles that cover an image, row by row. An image that is not larger than a tile is one tile.

        Raises:
            DataError: there are more than `MAX_TILES`.
        """
        step = max(1, round(self.side * (1 - self.overlap)))
        columns, rows = starts(width, self.side, step), starts(height, self.side, step)
        if len(columns) * len(rows) > MAX_TILES:
            raise DataError(
                f"an image of {width} x {height} pixels has {len(columns) * len(rows):,} tiles of {self.side}; "
                f"the limit is {MAX_TILES:,}, give a larger --tile"
            )
        return [
            Tile(left, top, min(width, left + self.side), min(height, top + self.side))
            for top in rows
            for left in columns
        ]

    def inner(self, tile: Tile, width: int, height: int) -> Tile:
        """Return the part of a tile that ends at the middle of each overlap with a neighbour.

        The inner parts of `tiles(width, height)` cover the image, each pixel once.
        """
        step = max(1, round(self.side * (1 - self.overlap)))
        edges = []
        for start, length in ((tile.left, width), (tile.top, height)):
            found = starts(length, self.side, step)
            position = found.index(start)
            # the middle between where the next tile begins and where this one ends
            begin = 0 if position == 0 else (found[position] + found[position - 1] + self.side) // 2
            is_last = position == len(found) - 1
            end = length if is_last else (found[position + 1] + found[position] + self.side) // 2
            edges.append((begin, end))
        (left, right), (top, bottom) = edges
        return Tile(left, top, right, bottom)


def tiling(side: int | None, overlap: float | None) -> Tiling | None:
    """Return the tiling that the options `--tile` and `--overlap` describe; None without tiles.

    Raises:
        UserError: there is an overlap without tiles, or a value is out of its range.
    """
    if side is None:
        if overlap is not None:
            raise UserError("--overlap is for --tile; give both")
        return None
    return Tiling(side, DEFAULT_OVERLAP if overlap is None else overlap)


def with_notes(tiles: Sequence[Tile]) -> Iterator[Tile]:
    """Yield tiles; print on stderr how many are done where that takes long."""
    said = time.monotonic()
    for index, tile in enumerate(tiles):
        if time.monotonic() - said >= _NOTE_SECONDS:
            said = time.monotonic()
            print(f"note: {index:,} of the image's {len(tiles):,} tiles are done", file=sys.stderr, flush=True)
        yield tile


def starts(length: int, window: int, step: int) -> list[int]:
    """Return the starts of windows that cover a side of `length` pixels; the last one ends where the side ends."""
    last = max(0, length - window)
    return [*range(0, last, step), last]
