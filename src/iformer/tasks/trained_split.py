"""Recognise the data that a network was trained on, so that it is split as in its training."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from iformer.config.metadata import Metadata
from iformer.errors import DataError
from iformer.training.protocol import SplitData, TrainData

SplitsT = TypeVar("SplitsT", bound=TrainData)


def trained_data(metadata: Any) -> dict[str, Any]:
    """Return what a network's metadata says about the data of its training; empty if it says nothing."""
    found = metadata.provenance.get("data") if isinstance(metadata, Metadata) else None
    return found if isinstance(found, dict) else {}


def has_name(trained_on: dict[str, Any], data: str) -> bool:
    """Return whether `data` names the data of the training: the same text, or the same file or folder."""
    name = trained_on.get("name")
    if not isinstance(name, str) or name == data:
        return name == data
    try:
        return os.path.samefile(name, data)
    except (OSError, ValueError):
        return False


def has_images(trained_on: dict[str, Any], split: Literal["train", "val"], images: SplitData) -> bool:
    """Return whether `images` are those of a split of the training, wherever the files are now."""
    expected = trained_on.get(f"{split}_fingerprint")
    return expected is not None and expected == images.fingerprint()


def load_as_trained(metadata: Any, data: str, load: Callable[[float | None], SplitsT]) -> SplitsT:
    """Load data by `load`, which takes the share to split off for validation, with the share of the training.

    If it is other data than that of the training, `load` gets None.

    Raises:
        DataError: see `load`.
    """
    trained_on = trained_data(metadata)
    share = trained_on.get("val_split")
    if not isinstance(share, float) or not 0 < share < 1:
        return load(None)
    if has_name(trained_on, data):
        return load(share)
    try:
        splits = load(share)
    except DataError:  # such as data that is split
        return load(None)
    return splits if has_images(trained_on, "train", splits.train) else load(None)
