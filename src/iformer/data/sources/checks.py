"""Checks of every image file before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iformer.data.images import check_image
from iformer.data.parallel import Progress, map_in_threads
from iformer.data.samples import Sample
from iformer.data.sources.duplicates import MAX_COMPARED, THUMBNAIL_SHAPE, perceptual_hash, shrink
from iformer.errors import DataError, counted, listed

_FULL_RANGE = 2**14
"""A 16-bit image whose values are all below this number looks nearly black."""

_SHARE_OF_DARK = 0.1
"""Smallest share of nearly black images among all 16-bit images that gives a note; fewer may be dark scenes."""


@dataclass(frozen=True, kw_only=True)
class CheckedImages:
    """Results of `check_images`; the arrays have one row per path."""

    rows: dict[Any, int]
    broken: dict[Any, str]
    """Images that cannot be read, in the given order, with one line `path: reason` each."""
    sizes: npt.NDArray[np.int32]
    """Width and height, shape (N, 2)."""
    hashes: npt.NDArray[np.uint64]
    """Perceptual hashes, shape (N,); 0 for more than `MAX_COMPARED` images."""
    thumbnails: npt.NDArray[np.uint8]
    """Gray thumbnails, shape (N, 16, 16); empty for more than `MAX_COMPARED` images."""
    notes: tuple[str, ...]
    """Notes for the user about the readable images."""

    def size(self, path: Path) -> tuple[int, int]:
        """Return the width and height of an image."""
        width, height = self.sizes[self.rows[path]].tolist()
        return width, height


def check_images(
    paths: Sequence[Path | Sample], *, workers: int | None = None, progress: Progress | None = None
) -> CheckedImages:
    """Decode every image once, in threads. Unreadable images are listed in the result and raise no error.

    Args:
        paths: image files, or samples inside other files.
        workers: threads; None means one per core, at most 16.
        progress: called with the number of images checked and their total.
    """
    count = len(paths)
    sizes = np.zeros((count, 2), np.int32)
    hashes = np.zeros(count, np.uint64)
    thumbnails = np.zeros((count if count <= MAX_COMPARED else 0, *THUMBNAIL_SHAPE), np.uint8)
    highest = np.full(count, -1, np.int32)

    def check(row: int) -> str | None:
        try:
            facts = check_image(paths[row])
        except DataError as error:
            return str(error)
        sizes[row] = facts.size
        if len(thumbnails):
            hashes[row] = perceptual_hash(facts.thumbnail)
            thumbnails[row] = shrink(facts.thumbnail)
        if facts.highest is not None:
            highest[row] = facts.highest
        return None

    def report(done: int) -> None:
        if progress is not None:
            progress(done, count)

    errors = map_in_threads(check, range(count), workers=workers, progress=report)
    return CheckedImages(
        rows={path: row for row, path in enumerate(paths)},
        broken={path: error for path, error in zip(paths, errors, strict=True) if error is not None},
        sizes=sizes,
        hashes=hashes,
        thumbnails=thumbnails,
        notes=_note_on_range(highest),
    )


def refuse_warnings(warnings: Sequence[str], *, strict: bool) -> None:
    """Raise a `DataError` that lists the warnings if there are any and `strict` is set."""
    if strict and warnings:
        raise DataError(
            f"{counted(len(warnings), 'warning')} with the data: {listed(warnings, separator='; ', length=500)}"
        )


def _note_on_range(highest: npt.NDArray[np.int32]) -> tuple[str, ...]:
    wide = highest[highest >= 0]
    dark = wide[(wide > 0) & (wide < _FULL_RANGE)]
    if len(dark) < max(1, _SHARE_OF_DARK * len(wide)):
        return ()
    most = int(dark.max())
    bits = most.bit_length()
    if len(dark) < len(wide):
        return (
            f"{len(dark):,} of {counted(len(wide), '16-bit image')} with values up to {most:,} of 65,535 "
            f"({bits}-bit data?), which is nearly black beside the others; scale them to 16 bits",
        )
    return (
        f"{counted(len(wide), '16-bit image')} with values up to {most:,} of 65,535 ({bits}-bit data?), which is "
        f"nearly black unless the setting value_range, such as [0, {2**bits - 1}], says which value is white",
    )
