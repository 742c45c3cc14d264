"""Images without labels, for pretraining."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from iformer.data.listing import images_below
from iformer.data.samples import DataSplits, FileSample, ImageSet
from iformer.data.sources import load_data
from iformer.data.sources.checks import check_images, refuse_warnings
from iformer.data.sources.elpv import ELPV
from iformer.data.sources.layout import display_name
from iformer.data.sources.shards.reader import holds_shards
from iformer.data.sources.splitting import split_stratified
from iformer.errors import ConfigError, DataError, counted

DEFAULT_VAL_SPLIT = 0.1
"""Share of the images on which a pretraining is evaluated."""


def load_unlabelled(
    spec: str | os.PathLike[str],
    *,
    val_split: float = DEFAULT_VAL_SPLIT,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
) -> DataSplits:
    """Find images, whatever their labels, and set a share of them aside for validation.

    Image files are decoded once to check them.

    Args:
        spec: a folder, whose images are taken at any depth (links to folders are followed), or any other name that
            `iformer.data.sources.load_data` accepts: its training images are taken, or all if it has no split.
        val_split: share of the images that is set aside.
        seed: selects the validation images.
        strict: raise an error for an image that cannot be read, instead of a warning.
        workers: threads that decode; None means one per core, at most 16.

    Raises:
        DataError: fewer than two images can be read, or `strict` is set and an image cannot be read.
        ConfigError: `val_split` is not between 0 and 1.
    """
    if not 0.0 < val_split < 1.0:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    folder = Path(spec)
    if os.fspath(spec) != ELPV and os.path.isdir(folder) and not holds_shards(folder):
        whole = _images_of_folder(folder, strict=strict, workers=workers)
    else:
        data = load_data(spec, strict=strict, workers=workers, for_training=False)
        whole = replace(data.train, warnings=data.warnings)
        if data.split_off:
            whole = replace(whole, samples=(*data.train.samples, *data.val.samples))
    if len(whole) < 2:
        raise DataError(
            f"{os.fspath(spec)}: holds {counted(len(whole), 'image')} that can be read; expected two or more"
        )
    names = [whole.relative_path(sample) for sample in whole.samples]
    chosen = split_stratified(names, [0] * len(names), val_share=val_split, seed=seed)
    train, val = (replace(whole.subset(places), class_names=()) for places in chosen)
    name = whole.name.removesuffix(" train")
    return DataSplits(
        train=train, val=replace(val, name=f"{name} val", warnings=()), warnings=whole.warnings, split_off=True
    )


def _images_of_folder(folder: Path, *, strict: bool, workers: int | None) -> ImageSet:
    try:
        paths = images_below(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from None
    if not paths:
        raise DataError(f"{folder}: holds no image; expected image files such as .jpg or .png, at any depth")
    checked = check_images(paths, workers=workers)
    refuse_warnings(tuple(checked.broken.values()), strict=strict)
    return ImageSet(
        name=display_name(folder, "train"),
        class_names=("image",),
        samples=tuple(FileSample(path, label=0) for path in paths if path not in checked.broken),
        root=folder,
        warnings=(*checked.broken.values(), *checked.notes),
    )
