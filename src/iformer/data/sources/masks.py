"""Reader of semantic segmentation data: folders of images and of masks, checked before training."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

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
) -> SemanticSplits:
    """Find a data set's images and masks, and decode each of them once.

    An image that is damaged or has no mask is left out with a warning. A mask that is not an index image, has
    another size than its image, or contains an index that is no class, is an error.

    Args:
        folder: see `_LAYOUT`.
        strict: raise an error instead of a warning.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.

    Raises:
        DataError: the data cannot be used; one line names the file, what is wrong and what is expected.
    """
    root = require_folder(folder, _LAYOUT)
    class_names, zero_is_ignored = _class_names(root)
    sets = {}
    for split in ("train", "val"):
        samples, warnings = _pairs(*_folders(root, split))
        checked = check_images([sample.path for sample in samples], workers=workers, progress=progress)
        kept = tuple(sample for sample in samples if sample.path not in checked.broken)
        warnings += checked.broken.values()
        if not kept:
            found = listed(warnings, limit=3, separator="; ") or "none found"
            raise DataError(f"{root}: no image with a mask for {split} ({found})")
        _check_masks(kept, checked, len(class_names), zero_is_ignored=zero_is_ignored, workers=workers)
        sets[split] = SemanticSet(
            name=display_name(root, split),
            class_names=class_names,
            samples=kept,
            root=root,
            zero_is_ignored=zero_is_ignored,
            palette=_palette(kept[0].mask, len(class_names), zero_is_ignored=zero_is_ignored),
            warnings=tuple(warnings),
        )
    everything = (*sets["train"].warnings, *sets["val"].warnings)
    refuse_warnings(everything, strict=strict)
    return SemanticSplits(train=sets["train"], val=sets["val"], warnings=everything)


def _class_names(root: Path) -> tuple[tuple[str, ...], bool]:
    """Return the names in the order of their indices, and whether the index 0 means no class."""
    plain, ade20k = root / _CLASSES, root / _ADE20K_CLASSES
    path = plain if plain.is_file() else ade20k
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
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


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    """Return the folders of a split's images and of its masks."""
    for name in SPLIT_NAMES[split]:
        for images in _IMAGES:
            for masks in _MASKS:
                for pair in (
                    (root / images / name, root / masks / name),
                    (root / name / images, root / name / masks),
                ):
                    if pair[0].is_dir() and pair[1].is_dir():
                        return pair
    raise DataError(f"{root}: no folders of images and masks for {split}; {_LAYOUT}")


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
    return path.relative_to(folder).with_suffix("").as_posix()


def _check_masks(
    samples: tuple[SemanticSample, ...],
    checked: CheckedImages,
    num_classes: int,
    *,
    zero_is_ignored: bool,
    workers: int | None,
) -> None:
    def check(sample: SemanticSample) -> None:
        indices = read_indices(sample.mask)
        width, height = checked.size(sample.path)
        if indices.shape != (height, width):
            raise DataError(
                f"{sample.mask}: is {indices.shape[1]} x {indices.shape[0]} pixels, its image {width} x {height}"
            )
        known = indices[indices != IGNORED]
        highest = num_classes if zero_is_ignored else num_classes - 1
        if known.size and known.max() > highest:
            raise DataError(
                f"{sample.mask}: has the index {int(known.max())}; with {num_classes} classes it may be "
                f"0 to {highest}, or {IGNORED} for no class"
            )

    for _ in map_in_threads(check, samples, workers=workers):
        pass


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
