"""Checks of image files before training: broken files, and images in both splits."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from iformer.data.images import check_image
from iformer.data.listing import natural_key
from iformer.data.parallel import Progress, map_in_threads
from iformer.data.samples import ImageSet
from iformer.errors import DataError, counted, listed


def find_broken(
    paths: Sequence[Path], *, workers: int | None = None, progress: Progress | None = None
) -> dict[Path, str]:
    """Decode every image once, in threads.

    Returns:
        The paths that cannot be read, in the given order, with one line `path: reason` each.
    """

    def problem(path: Path) -> str | None:
        try:
            check_image(path)
        except DataError as error:
            return str(error)
        return None

    def report(done: int) -> None:
        if progress is not None:
            progress(done, len(paths))

    found = map_in_threads(problem, paths, workers=workers, progress=report)
    return {path: reason for path, reason in zip(paths, found, strict=True) if reason is not None}


def find_duplicates(train: ImageSet, val: ImageSet) -> list[str]:
    """Return a warning if images of `val` are byte for byte in `train` too. Only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in train.files:
        by_size[path.stat().st_size].append(path)
    digests: dict[int, dict[bytes, Path]] = {}
    pairs: list[str] = []
    for path in val.files:
        size = path.stat().st_size
        if size not in by_size:
            continue
        if size not in digests:
            digests[size] = {_digest(twin): twin for twin in by_size[size]}
        twin = digests[size].get(_digest(path))
        if twin is not None:
            pairs.append(f"{path} = {twin}")
    if not pairs:
        return []
    pairs.sort(key=natural_key)
    return [
        f"{counted(len(pairs), 'validation image')} also among the training images, so the accuracy on them means "
        f"little: {listed(pairs, limit=5)}"
    ]


def refuse_warnings(warnings: Sequence[str], *, strict: bool) -> None:
    """Raise a `DataError` that lists the warnings if there are any and `strict` is set."""
    if strict and warnings:
        raise DataError(f"{counted(len(warnings), 'warning')} with the data: {listed(warnings, separator='; ')}")


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
