"""Readers of data sets. `load_data` opens any classification data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from iformer.data.parallel import Progress
from iformer.data.samples import DataSplits
from iformer.data.sources.elpv import ELPV, load_elpv
from iformer.data.sources.folders import load_folder
from iformer.data.sources.huggingface import HUB_PREFIX, load_hub_data
from iformer.data.sources.shards.reader import holds_shards, load_shards
from iformer.data.sources.shards.stores import is_url
from iformer.data.sources.tables import is_table, load_table
from iformer.data.sources.zips import is_zip, load_zip

__all__ = ["load_data"]


def load_data(
    spec: str | os.PathLike[str],
    *,
    val_split: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
    multi_label: bool = False,
) -> DataSplits:
    """Find a data set's images and labels, and split them. Image files are decoded once to check them.

    Args:
        spec: "elpv" (`load_elpv`), a folder (`load_folder`; write "./elpv" for a folder of that name), a folder
            of tar shards or its URL (`load_shards`), a table (`load_table`), a zip archive (`load_zip`), or
            "hfds/NAME", a Hugging Face data set (`load_hub_data`).
        val_split: share of each class that becomes validation data where a folder has no validation split.
        seed: selects the validation images. It is not the training seed; runs to be compared must share it.
        strict: raise an error for a file that cannot be used, instead of a warning.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.
        for_training: require both splits with the same classes, at least two of them, and images of each class
            in both. False accepts any labelled images: a split may then be empty.
        multi_label: an image of a table may have several labels, or none.

    Raises:
        DataError: the data cannot be trained on; the message says what is wrong and what is expected.
        ConfigError: `val_split` is not between 0 and 1.
        MissingDependencyError: an optional package is not installed.
    """
    name = os.fspath(spec)
    if name == ELPV:
        return load_elpv(strict=strict, workers=workers, progress=progress)
    if name.startswith(HUB_PREFIX):
        return load_hub_data(name, for_training=for_training)
    if is_url(spec) or (os.path.isdir(spec) and holds_shards(Path(spec))):
        return load_shards(spec, for_training=for_training)
    options: dict[str, Any] = {
        "val_split": val_split,
        "seed": seed,
        "strict": strict,
        "workers": workers,
        "progress": progress,
        "for_training": for_training,
    }
    if is_table(spec):
        return load_table(spec, multi_label=multi_label, **options)
    return (load_zip if is_zip(spec) else load_folder)(spec, **options)
