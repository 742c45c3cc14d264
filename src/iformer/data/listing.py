"""Listing of folders: natural order, without hidden files and files that operating systems leave behind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from iformer.data.images import has_image_extension

_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, without hidden and system files, in the file system's order."""
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_NAMES:
                yield entry


def files_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Yield the files below a folder at any depth. Links are followed, but not back to a folder in `above`."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in entries(folder):
        if entry.is_dir():
            yield from files_below(Path(entry.path), above | {identity})
        else:
            yield Path(entry.path)


def images_below(folder: Path, is_image: Callable[[Path], bool] = has_image_extension) -> list[Path]:
    """Return the image files (by extension) below a folder at any depth, in natural order."""
    return sorted(filter(is_image, files_below(folder)), key=lambda path: natural_key(str(path)))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a sort key that compares digits by value (img2 before img10) and ignores case."""
    pieces = re.split(r"([0-9]+)", text)  # alternates text and digits, so that types line up
    return [int(piece) if place % 2 else piece.lower() for place, piece in enumerate(pieces)], text
