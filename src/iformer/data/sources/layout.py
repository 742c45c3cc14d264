"""Names of the training and validation splits in folders and files."""

from __future__ import annotations

import os
from pathlib import Path

from iformer.errors import DataError

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
"""Names of each split's folder or file, the preferred one first."""


def require_folder(folder: str | os.PathLike[str], expected: str) -> Path:
    """Return the folder's path.

    Raises:
        DataError: it does not exist or is not a folder; the message ends with `expected`.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; {expected}")
    return root


def display_name(root: Path, split: str) -> str:
    """Return a split's name for messages: "pets train"."""
    return f"{root.name or root.resolve().name} {split}"
