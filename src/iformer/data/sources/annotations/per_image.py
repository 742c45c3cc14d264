"""Shared code of formats with one label file per image: folders of splits, images, lists of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from iformer.data.images import IMAGE_EXTENSIONS
from iformer.data.sources.annotations.split import read_lines
from iformer.data.sources.layout import SPLIT_NAMES, writable

_LISTS = ("classes.txt", "labels.txt")
_NO_CLASSES = ("__ignore__", "_background_")
"""Lines of LabelMe's class lists that do not name a class."""
_MAX_LIST_BYTES = 2**22


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of train and val, at the top or in `images` or `labels`; see `SPLIT_NAMES` for names."""
    found = {}
    for split in ("train", "val"):
        folders = [base / name for name in SPLIT_NAMES[split] for base in (root, root / "labels", root / "images")]
        if (folder := next(filter(Path.is_dir, folders), None)) is not None:
            found[split] = folder
    return found


def listed_names(root: Path) -> list[str]:
    """Return the class names in a list next to the data, in the list's order; empty if there is no list.

    Raises:
        DataError: the list cannot be read.
    """
    path = next((root / name for name in _LISTS if (root / name).is_file()), None)
    if path is None:
        return []
    lines = [writable(line) for line in read_lines(path, max_bytes=_MAX_LIST_BYTES)]
    return list(dict.fromkeys(line for line in lines if line not in _NO_CLASSES))


def find_image(name: str, labels: Path, folders: Sequence[Path]) -> Path:
    """Find the image that belongs to a label file.

    Args:
        name: the image's name in the labels, a path of any operating system; may be empty.
        labels: the label file. If no file has the name `name`, an image with the label file's stem is searched.
        folders: folders to search, after the folder of `labels` and its counterpart `images`.

    Returns:
        The image's path. If there is no image, the path of a missing file, which the check of the images reports.
    """
    mirrored = Path(*("images" if part in ("labels", "annotations") else part for part in labels.parent.parts))
    missing = folders[0] if folders[0].is_dir() else labels.parent
    folders = [labels.parent, mirrored, *folders]
    plain = name.replace("\\", "/")
    names = [plain, PureWindowsPath(plain).name] if plain else []
    for folder in folders:
        for candidate in names:
            if candidate and _is_file(folder / candidate):
                return folder / candidate
    endings = [ending for pair in sorted(IMAGE_EXTENSIONS) for ending in (pair, pair.upper())]
    for folder in folders:
        for ending in endings:
            if _is_file(folder / f"{labels.stem}{ending}"):
                return folder / f"{labels.stem}{ending}"
    return missing / (names[-1] if names else labels.stem)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False
