"""Listing of folders, without hidden and system files and without this package's own outputs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from iformer.data.images import has_image_extension

_SYSTEM_NAMES = frozenset(
    {
        "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "__pycache__",  # Windows, macOS, Python
        "$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "$extend",  # Windows
        "lost+found", "network trash folder", "temporary items",  # ext4, macOS
        "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb",  # Synology, QNAP
    }
)  # fmt: skip

_OUTPUT_NAMES = (
    *("log.jsonl", "predictions.jsonl", "predictions.csv", "predictions.parquet"),
    *("last.safetensors", "best.safetensors", "resume.safetensors"),
)
"""Files that `train`, `eval` or `predict` write; a folder with any of them is an output folder."""


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, without hidden and system files, in the file system's order.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as found:
        for entry in found:
            if not is_hidden(entry.name):
                yield entry


def is_hidden(name: str) -> bool:
    """Return whether `name` belongs to a hidden file or to a file that an operating system leaves in folders."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def is_output(folder: Path) -> bool:
    """Return whether a folder holds files that this package wrote, as a run does. Its pictures are not data."""
    return any((folder / name).is_file() for name in _OUTPUT_NAMES)


def files_below(folder: Path, root: Path | None = None) -> Iterator[Path]:
    """Yield the files below a folder at any depth, in the file system's order.

    Output folders (see `is_output`) are left out. Links to folders are followed, except links into `root` (by
    default the folder itself) and links to a folder that contains `root`. No folder is listed twice.

    Raises:
        OSError: a folder cannot be read.
    """
    base = os.path.realpath(root or folder)
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        status = current.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries(current):
            path = Path(entry.path)
            if not _is_folder(entry):
                yield path
            elif not (leads_back(path, base) or is_output(path)):
                waiting.append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: a file that cannot be read
        return False


def leads_back(path: Path, base: str) -> bool:
    """Return whether a path is a link into the folder `base` (a real path) or to a folder that contains `base`."""
    if not path.is_symlink():
        return False
    target = os.path.realpath(path)
    return os.path.commonpath([target, base]) in (target, base)


def images_below(folder: Path) -> list[Path]:
    """Return the image files (by extension) below a folder at any depth, in natural order.

    Raises:
        OSError: a folder cannot be read.
    """
    return natural_order(filter(has_image_extension, files_below(folder)))


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Return paths sorted by `natural_key`: digits by value (img2 before img10), ignoring case."""
    return sorted(paths, key=lambda path: natural_key(str(path)))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Return a sort key that compares digits by value (img2 before img10) and ignores case."""
    pieces = re.split(r"([0-9]+)", text)  # alternates text and digits, so that types line up
    return [_number(piece) if place % 2 else piece.lower() for place, piece in enumerate(pieces)], text


def _number(digits: str) -> int:
    # Python refuses to convert more than 4,300 digits, and file names have at most 255 bytes
    return int(digits[:4000])
