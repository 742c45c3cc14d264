"""Shared code of formats with one label file per image: folders of splits, images, lists of classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from iformer.data.images import IMAGE_EXTENSIONS, has_image_extension
from iformer.data.listing import entries, natural_order
from iformer.data.sources.annotations.split import read_lines
from iformer.data.sources.layout import SPLIT_NAMES, writable
from iformer.errors import counted, listed

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
    of_stem = (image for folder in folders if (image := _image_of_stem(folder, labels.stem)) is not None)
    return next(of_stem, missing / (names[-1] if names else labels.stem))


def _image_of_stem(folder: Path, stem: str) -> Path | None:
    endings = [ending for pair in sorted(IMAGE_EXTENSIONS) for ending in (pair, pair.upper())]
    return next((folder / f"{stem}{ending}" for ending in endings if _is_file(folder / f"{stem}{ending}")), None)


def copied_labels(image: Path, labels: Path) -> list[str]:
    """Return a warning if a label file names another image than the one of its own name beside that image."""
    own = _image_of_stem(image.parent, labels.stem) if image.stem != labels.stem else None
    if own is None:
        return []
    return [f"{labels}: is taken as the labels of {image.name}, which it names, not of {own.name}"]


def without_labels(root: Path, images: Iterable[Path]) -> list[str]:
    """Return a note about the image files without labels in the folders of the labelled `images`."""
    known = {Path(os.path.normpath(image)) for image in images}
    folders = sorted({image.parent for image in known if image.parent.is_dir()})
    files = (Path(entry.path) for folder in folders for entry in entries(folder))
    found = natural_order(path for path in files if has_image_extension(path) and path not in known)
    if not found:
        return []
    names = listed([os.path.relpath(path, root) for path in found], limit=5)
    return [f"{root}: {counted(len(found), 'image')} without a file of labels left out: {names}"]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False
