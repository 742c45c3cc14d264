"""Reader of semantic segmentation data: folders of images and of masks, checked before training."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iformer.config.segmenter import IGNORED
from iformer.data.images import has_image_extension, open_image
from iformer.data.listing import files_below, images_below
from iformer.data.parallel import Progress, map_in_threads
from iformer.data.segmentation import SemanticSample, SemanticSet, SemanticSplits, read_indices
from iformer.data.sources.annotations.split import read_bytes, read_lines
from iformer.data.sources.checks import CheckedImages, check_images, refuse_warnings
from iformer.data.sources.layout import SPLIT_NAMES, display_name, explain_unicode, require_folder, writable
from iformer.data.sources.splitting import DEFAULT_VAL_SPLIT, split_stratified
from iformer.errors import ConfigError, DataError, counted, listed, one_line, printable

_IMAGES, _MASKS = ("images", "img", "JPEGImages"), ("annotations", "masks", "labels")
_CLASSES = "classes.txt"
_MAX_CLASSES_BYTES = 2**20
_ADE20K_CLASSES = "objectInfo150.txt"
_COLOURS = ("labelmap.txt", "class_dict.csv")
"""Files that list the classes and their colours in masks: CVAT's `name:r,g,b::`, and a table `name,r,g,b`."""
_VOC_IMAGES, _VOC_MASKS, _VOC_LISTS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
_VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_MAX_LIST_BYTES = 2**26
_LAYOUT = (
    "expected DIR/images/train/1.jpg with DIR/masks/train/1.png, or DIR/train/images/1.jpg with "
    f"DIR/train/masks/1.png, the same for val, and DIR/{_CLASSES} with one name per line; or the folder of "
    "ADE20K, Pascal VOC or CVAT"
)


class _Classes(NamedTuple):
    """The classes of a data set, and how its masks encode them."""

    names: tuple[str, ...]
    zero_is_ignored: bool = False
    colours: tuple[tuple[int, int, int], ...] = ()
    """Colour of each class; empty if the list has no colours."""


class _Pairs(NamedTuple):
    """Images of one split with their masks."""

    samples: list[SemanticSample]
    warnings: list[str]
    masks: Path
    """The folder of the masks."""


def load_semantic(
    folder: str | os.PathLike[str],
    *,
    val_split: float | None = None,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
) -> SemanticSplits:
    """Find a data set's images and masks, and decode each of them once.

    Masks are images of class indices, or of colours if the data set's folder has a table of colours. An image that
    is damaged or has no mask is left out with a warning. A mask that is no such image, has another size than its
    image, or has a value without a class is an error. Training masks with fewer than two classes are an error too.

    Args:
        folder: the data set's folder; see `_LAYOUT`.
        val_split: share of the images that becomes validation data where the data is not split. None: 0.2.
        seed: selects the validation images.
        strict: raise an error instead of a warning.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.
        for_training: require both splits; else one of them may be missing, and is then empty.

    Raises:
        DataError: the data cannot be used; one line names the files, what is wrong and what is expected.
        ConfigError: `val_split` is not between 0 and 1, or is given for data that is split.
    """
    if val_split is not None and not 0 < val_split < 1:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    root = require_folder(folder, _LAYOUT)
    classes = _read_classes(root)
    class_names, zero_is_ignored = classes.names, classes.zero_is_ignored
    found = _find_pairs(root)
    split_off = "all" in found
    notes: list[str] = []
    if split_off:
        found = _split_off(found["all"], root, val_split or DEFAULT_VAL_SPLIT, seed, notes)
    elif val_split is not None:
        raise ConfigError(f"val_split is {val_split:g}, and {root} is split; leave it out")
    if len(found) < (2 if for_training else 1):
        missing = next(split for split in ("train", "val") if split not in found)
        raise DataError(f"{root}: no folders of images and masks for {missing}; {_LAYOUT}")
    sets: dict[str, SemanticSet] = {}
    for split in ("train", "val"):
        samples, warnings, masks = found.get(split, _Pairs([], [], root))
        checked = check_images([sample.path for sample in samples], workers=workers, progress=progress)
        kept = tuple(sample for sample in samples if sample.path not in checked.broken)
        warnings += checked.broken.values()
        notes += checked.notes
        if split in found and not kept:
            reasons = listed(warnings, limit=3, separator="; ", length=500) or "none found"
            raise DataError(f"{root}: no image with a mask for {split} ({reasons})")
        coloured = bool(classes.colours and kept and _is_coloured(kept[0].mask))
        present = _check_masks(kept, checked, classes, coloured=coloured, workers=workers)
        if split == "train" and for_training:
            notes += _check_classes(masks, class_names, present, zero_is_ignored=zero_is_ignored)
        sets[split] = SemanticSet(
            name=display_name(root, split),
            class_names=class_names,
            samples=kept,
            root=root,
            zero_is_ignored=zero_is_ignored,
            palette=classes.colours or _palette(kept, len(class_names), zero_is_ignored=zero_is_ignored),
            colours=classes.colours if coloured else (),
            warnings=tuple(warnings),
        )
    everything = (*sets["train"].warnings, *sets["val"].warnings)
    refuse_warnings(everything, strict=strict)
    return SemanticSplits(
        train=sets["train"], val=sets["val"], warnings=(*everything, *notes), split_off=split_off
    )


def _read_classes(root: Path) -> _Classes:
    """Return the classes in the order of their indices.

    Raises:
        DataError: there is no list of classes, or the list is malformed.
    """
    plain, ade20k = root / _CLASSES, root / _ADE20K_CLASSES
    table = next((root / name for name in _COLOURS if (root / name).is_file()), None)
    if table is not None:
        return _read_colours(table)
    if not plain.is_file() and not ade20k.is_file() and (root / _VOC_MASKS).is_dir():
        return _Classes(_VOC_CLASSES)
    path = plain if plain.is_file() else ade20k
    try:
        text = read_bytes(path, max_bytes=_MAX_CLASSES_BYTES).decode("utf-8-sig")
    except (DataError, UnicodeDecodeError):
        raise DataError(f"{root}: has no readable {_CLASSES}; {_LAYOUT}") from None
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if "" in lines[:-1]:  # skipping it would move the later names by one index
        raise DataError(f"{path}: line {lines.index('') + 1} is empty; expected one class per line")
    if path is ade20k:  # a table with a header; the last column lists synonyms
        lines = [line.split("\t")[-1].split(",")[0].strip() for line in lines[1:]]
    names = tuple(lines)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if path is ade20k:  # two of ADE20K's names occur twice
        names = tuple(f"{name} {index}" if name in repeated else name for index, name in enumerate(names, start=1))
    elif repeated:
        raise DataError(f"{path}: names {', '.join(repeated)} twice")
    elif alike := explain_unicode(names, remedy="keep one"):
        raise DataError(f"{path}: {alike}")
    if not 2 <= len(names) < IGNORED:
        raise DataError(f"{path}: names {counted(len(names), 'class')}; expected 2 to {IGNORED - 1}")
    return _Classes(names, zero_is_ignored=path is ade20k)


def _read_colours(path: Path) -> _Classes:
    """Read a table of classes and colours; see `_COLOURS`."""
    lines = [line for line in read_lines(path, max_bytes=_MAX_LIST_BYTES) if not line.startswith("#")]
    if path.suffix == ".csv":
        try:
            rows = _by_header(list(csv.reader(lines)))
        except csv.Error as error:
            raise DataError(f"{path}: is not a table ({one_line(error)})") from None
    else:
        rows = [[parts[0], *parts[1].split(",")] for line in lines if len(parts := line.split(":")) > 1]
    classes: dict[str, tuple[int, int, int]] = {}
    for row in rows:
        name, numbers = writable(row[0].strip()), [value.strip() for value in row[1:]]
        if not name or len(numbers) != 3 or not all(n.isascii() and n.isdigit() and len(n) < 4 for n in numbers):
            raise DataError(f"{path}: has the line {','.join(row)!r:.80}; expected a name and red, green, blue")
        if name in classes:
            raise DataError(f"{path}: names {printable(name, limit=80)} twice")
        red, green, blue = map(int, numbers)
        classes[name] = red, green, blue
    if not 2 <= len(classes) < IGNORED or len(set(classes.values())) != len(classes):
        raise DataError(f"{path}: expected 2 to {IGNORED - 1} classes, each with a colour of its own up to 255")
    if max(value for colour in classes.values() for value in colour) > 255:
        raise DataError(f"{path}: has a colour above 255")
    return _Classes(tuple(classes), colours=tuple(classes.values()))


def _by_header(rows: list[list[str]]) -> list[list[str]]:
    """Return the columns name, r, g and b of a table; a table without a header must have this order."""
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if all(value.isdigit() for value in header[1:]):
        return rows
    if {"name", "r", "g", "b"} <= set(header):
        places = [header.index(name) for name in ("name", "r", "g", "b")]
        return [[row[place] for place in places] if len(row) == len(header) else row for row in rows[1:]]
    return rows[1:]


def _find_pairs(root: Path) -> dict[str, _Pairs]:
    """Pair the images and masks of each split: "train" and "val", or "all" where the folder is not split."""
    if (root / _VOC_MASKS).is_dir() and (root / _VOC_IMAGES).is_dir():
        return _find_voc(root)
    folders = {split: pair for split in ("train", "val") if (pair := _folders(root, split)) is not None}
    if folders:
        return {split: _Pairs(*_pairs(*pair), pair[1]) for split, pair in folders.items()}
    unmatched: list[str] = []
    for images in _IMAGES:
        for masks in _MASKS:
            if (root / images).is_dir() and (root / masks).is_dir():
                pairs = _Pairs(*_pairs(root / images, root / masks), root / masks)
                if pairs.samples:
                    return {"all": pairs}
                unmatched += pairs.warnings[:1] if images_below(root / masks) else []
    if unmatched:
        raise DataError(f"{root}: no mask has the name of an image ({unmatched[0]}); {_LAYOUT}")
    return {}


def _find_voc(root: Path) -> dict[str, _Pairs]:
    images, masks = root / _VOC_IMAGES, root / _VOC_MASKS
    found: dict[str, _Pairs] = {}
    for split in ("train", "val"):
        lists = [root / _VOC_LISTS / f"{name}.txt" for name in SPLIT_NAMES[split]]
        if (path := next(filter(Path.is_file, lists), None)) is None:
            continue
        by_stem = {kind: _by_stem(kind, images_below(kind)) for kind in (images, masks)}
        samples, warnings = [], []
        for name in read_lines(path, max_bytes=_MAX_LIST_BYTES):
            stem = unicodedata.normalize("NFC", name)
            if stem in by_stem[images] and stem in by_stem[masks]:
                samples.append(SemanticSample(by_stem[images][stem], by_stem[masks][stem]))
            else:
                warnings.append(f"{path}: {writable(name):.200} has no image and mask in {images} and {masks}")
        found[split] = _Pairs(samples, warnings, masks)
    if found:
        return found
    # only a part of Pascal VOC's images has masks
    samples, _ = _pairs(images, masks)
    return {"all": _Pairs(samples, [], masks)}


def _split_off(pairs: _Pairs, root: Path, val_split: float, seed: int, notes: list[str]) -> dict[str, _Pairs]:
    """Split pairs into training and validation; append a note about the split.

    Raises:
        DataError: there are fewer than two pairs.
    """
    names = [os.path.relpath(sample.path, root) for sample in pairs.samples]
    train, val = split_stratified(names, [0] * len(names), val_share=val_split, seed=seed)
    if not train or not val:
        raise DataError(f"{root}: {counted(len(names), 'image')} with masks cannot be split; {_LAYOUT}")
    notes.append(
        f"{root} is not split: {len(val):,} of {len(names):,} images are for validation; --val-split sets "
        "their share"
    )
    return {
        "train": pairs._replace(samples=[pairs.samples[index] for index in train]),
        "val": pairs._replace(samples=[pairs.samples[index] for index in val], warnings=[]),
    }


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    """Return the folders of a split's images and masks; None if there are no such folders."""
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
    by_stem = _by_stem(masks, filter(has_image_extension, files_below(masks)))
    samples, warnings = [], []
    for path in images_below(images):
        mask = by_stem.get(_stem(path, images))
        if mask is None:
            warnings.append(f"{path}: has no mask in {masks}")
        else:
            samples.append(SemanticSample(path, mask))
    return samples, warnings


def _by_stem(folder: Path, paths: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names without extensions.

    Raises:
        DataError: two files have the same name without extension.
    """
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(_stem(path, folder), path)
        if other is not path:
            raise DataError(f"{folder}: has {other.name} and {path.name} for one image; keep one of them")
    return found


def _stem(path: Path, folder: Path) -> str:
    return unicodedata.normalize("NFC", path.relative_to(folder).with_suffix("").as_posix())


def _check_masks(
    samples: tuple[SemanticSample, ...],
    checked: CheckedImages,
    classes: _Classes,
    *,
    coloured: bool,
    workers: int | None,
) -> npt.NDArray[np.bool_]:
    """Return which of the values 0 to 255 occur in the masks; raise a `DataError` that lists all bad masks."""
    present = np.zeros(256, np.bool_)
    num_classes, zero_is_ignored = len(classes.names), classes.zero_is_ignored
    colours = classes.colours if coloured else ()
    highest = num_classes if zero_is_ignored else num_classes - 1

    def error_of(sample: SemanticSample) -> str | None:
        try:
            indices = read_indices(sample.mask, colours)
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


def _is_coloured(path: Path) -> bool:
    with open_image(path) as image:
        return image.mode not in ("L", "1", "I;16", "I")


def _palette(
    samples: Sequence[SemanticSample], num_classes: int, *, zero_is_ignored: bool
) -> tuple[tuple[int, int, int], ...]:
    if not samples:
        return ()
    with open_image(samples[0].mask) as image:
        values = image.getpalette("RGB") if image.mode == "P" else None
    first = 3 if zero_is_ignored else 0
    if values is None or len(values) < first + 3 * num_classes:
        return ()
    colours = [values[first + 3 * k : first + 3 * k + 3] for k in range(num_classes)]
    # a ramp of grays is not a palette that someone chose
    if all(red == green == blue for red, green, blue in colours):
        return ()
    return tuple((red, green, blue) for red, green, blue in colours)
