"""Reader of semantic segmentation data: folders of images and of masks, checked before training."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iformer.config.segmenter import IGNORED
from iformer.data.images import has_image_extension, open_image
from iformer.data.listing import files_below, images_below
from iformer.data.parallel import Progress, map_in_threads
from iformer.data.segmentation import SemanticSample, SemanticSet, SemanticSplits, read_indices
from iformer.data.sources.checks import CheckedImages, check_images, refuse_warnings
from iformer.data.sources.layout import SPLIT_NAMES, display_name, require_folder
from iformer.errors import DataError, listed

_IMAGES, _MASKS = ("images", "img", "JPEGImages"), ("annotations", "masks", "labels")
_CLASSES = "classes.txt"
_ADE20K_CLASSES = "objectInfo150.txt"
_LAYOUT = (
    "expected DIR/images/train/1.jpg with DIR/masks/train/1.png, or DIR/train/images/1.jpg with "
    f"DIR/train/masks/1.png, the same for val, and DIR/{_CLASSES} with one name per line; or ADE20K's folder"
)


def load_semantic(
    folder: str | os.PathLike[str],
    *,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
) -> SemanticSplits:
    """Find a data set's images and masks, and decode each of them once.

    An image that is damaged or has no mask is left out with a warning. A mask that is not an index image, has
    another size than its image, or contains an index that is no class, is an error; so are training masks with
    fewer than two classes.

    Args:
        folder: see `_LAYOUT`.
        strict: raise an error instead of a warning.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.
        for_training: require both splits; else one of them may be missing, and is then empty.

    Raises:
        DataError: the data cannot be used; one line names the files, what is wrong and what is expected.
    """
    root = require_folder(folder, _LAYOUT)
    class_names, zero_is_ignored = _class_names(root)
    folders = {split: pair for split in ("train", "val") if (pair := _folders(root, split)) is not None}
    if len(folders) < (2 if for_training else 1):
        missing = next(split for split in ("train", "val") if split not in folders)
        raise DataError(f"{root}: no folders of images and masks for {missing}; {_LAYOUT}")
    sets: dict[str, SemanticSet] = {}
    notes: list[str] = []
    for split in ("train", "val"):
        samples, warnings = _pairs(*folders[split]) if split in folders else ([], [])
        checked = check_images([sample.path for sample in samples], workers=workers, progress=progress)
        kept = tuple(sample for sample in samples if sample.path not in checked.broken)
        warnings += checked.broken.values()
        notes += checked.notes
        if split in folders and not kept:
            reasons = listed(warnings, limit=3, separator="; ", length=500) or "none found"
            raise DataError(f"{root}: no image with a mask for {split} ({reasons})")
        present = _check_masks(kept, checked, len(class_names), zero_is_ignored=zero_is_ignored, workers=workers)
        if split == "train" and for_training:
            notes += _check_classes(folders[split][1], class_names, present, zero_is_ignored=zero_is_ignored)
        sets[split] = SemanticSet(
            name=display_name(root, split),
            class_names=class_names,
            samples=kept,
            root=root,
            zero_is_ignored=zero_is_ignored,
            palette=_palette(kept[0].mask, len(class_names), zero_is_ignored=zero_is_ignored) if kept else (),
            warnings=tuple(warnings),
        )
    everything = (*sets["train"].warnings, *sets["val"].warnings)
    refuse_warnings(everything, strict=strict)
    return SemanticSplits(train=sets["train"], val=sets["val"], warnings=(*everything, *notes))


def _class_names(root: Path) -> tuple[tuple[str, ...], bool]:
    """Return the names in the order of their indices, and whether the index 0 means no class."""
    plain, ade20k = root / _CLASSES, root / _ADE20K_CLASSES
    path = plain if plain.is_file() else ade20k
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{root}: has no readable {_CLASSES}; {_LAYOUT}") from None
    if path is ade20k:  # a table with a header; the last column lists synonyms
        lines = [line.split("\t")[-1].split(",")[0].strip() for line in lines[1:]]
    names = tuple(lines)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if path is ade20k:  # two of ADE20K's names occur twice
        names = tuple(f"{name} {index}" if name in repeated else name for index, name in enumerate(names, start=1))
    elif repeated:
        raise DataError(f"{path}: names {', '.join(repeated)} twice")
    if not 2 <= len(names) < IGNORED:
        raise DataError(f"{path}: names {len(names)} classes; expected 2 to {IGNORED - 1}")
    return names, path is ade20k


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return the folders of a split's images and of its masks; None if there are none."""
    for name in SPLIT_NAMES[split]:
        for images in _IMAGES:
            for masks in _MASKS:
                for pair in (
                    (root / images / name, root / masks / name),
                    (root / name / images, root / name / masks),
                ):
                    if pair[0].is_dir() and pair[1].is_dir():
                        return pair
    return None


def _pairs(images: Path, masks: Path) -> tuple[list[SemanticSample], list[str]]:
    """Pair images with the masks of the same name; return the pairs, and a warning per image without a mask."""
    by_stem = {_stem(path, masks): path for path in files_below(masks) if has_image_extension(path)}
    samples, warnings = [], []
    for path in images_below(images):
        mask = by_stem.get(_stem(path, images))
        if mask is None:
            warnings.append(f"{path}: has no mask in {masks}")
        else:
            samples.append(SemanticSample(path, mask))
    return samples, warnings


def _stem(path: Path, folder: Path) -> str:
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def _check_masks(
    samples: tuple[SemanticSample, ...],
    checked: CheckedImages,
    num_classes: int,
    *,
    zero_is_ignored: bool,
    workers: int | None,
) -> npt.NDArray[np.bool_]:
    """Return which of the values 0 to 255 occur in the masks; raise a `DataError` that lists all bad masks."""
    present = np.zeros(256, np.bool_)
    highest = num_classes if zero_is_ignored else num_classes - 1

    def error_of(sample: SemanticSample) -> str | None:
        try:
            indices = read_indices(sample.mask)
        except DataError as error:
            return str(error)
        width, height = checked.size(sample.path)
        if indices.shape != (height, width):
            return (
                f"{sample.mask}: is {indices.shape[1]} x {indices.shape[0]} pixels, its image {width} x {height}"
            )
        values = np.unique(indices)
        present[values] = True
        wrong = values[(values > highest) & (values != IGNORED)]
        if len(wrong):
            return (
                f"{sample.mask}: has the index {int(wrong[-1])}; with {num_classes} classes it may be "
                f"0 to {highest}, or {IGNORED} for no class"
            )
        return None

    errors = list(filter(None, map_in_threads(error_of, samples, workers=workers)))
    if errors:
        raise DataError(listed(errors, separator="; ", length=500))
    return present


def _check_classes(
    folder: Path, class_names: tuple[str, ...], present: npt.NDArray[np.bool_], *, zero_is_ignored: bool
) -> list[str]:
    """Return a note about classes that occur in no training mask; raise a `DataError` if fewer than two occur."""
    first = int(zero_is_ignored)
    unused = [name for index, name in enumerate(class_names, start=first) if not present[index]]
    if len(unused) > len(class_names) - 2:
        values = np.flatnonzero(present).tolist()
        hint = ""
        if values == [0, IGNORED] and not zero_is_ignored:
            hint = f" If {IGNORED} marks an object, write its class instead: pixels of value {IGNORED} to 1"
        raise DataError(
            f"{folder}: the masks only have the values {listed(list(map(str, values)))}; {IGNORED} means no class "
            f"(ignored), so there are no two classes to learn.{hint}"
        )
    return [f"{folder}: no pixel of {listed(unused)} to learn from"] if unused else []


def _palette(path: Path, num_classes: int, *, zero_is_ignored: bool) -> tuple[tuple[int, int, int], ...]:
    with open_image(path) as image:
        values = image.getpalette("RGB") if image.mode == "P" else None
    first = 3 if zero_is_ignored else 0
    if values is None or len(values) < first + 3 * num_classes:
        return ()
    colours = [values[first + 3 * k : first + 3 * k + 3] for k in range(num_classes)]
    # a ramp of grays is no choice of colours
    if all(red == green == blue for red, green, blue in colours):
        return ()
    return tuple((red, green, blue) for red, green, blue in colours)
