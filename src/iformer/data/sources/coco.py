"""Reader of COCO annotation files for detection; everything is checked before training."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from iformer.data.detection import DetectionSample, DetectionSet, DetectionSplits
from iformer.data.images import MAX_PIXELS
from iformer.data.parallel import Progress
from iformer.data.sources.checks import check_images, refuse_warnings
from iformer.data.sources.coco_objects import ImageEntry, ObjectReader
from iformer.data.sources.layout import SPLIT_NAMES, display_name, require_folder, writable
from iformer.errors import DataError, counted, listed

_LAYOUT = (
    "expected DIR/annotations/instances_train*.json and instances_val*.json (as COCO has them), "
    "DIR/train.json and DIR/val.json, or DIR/train/_annotations.coco.json and DIR/valid/_annotations.coco.json"
)
_MAX_ID = 2**63 - 1


class _Annotations(NamedTuple):
    """The lists of an annotation file."""

    path: Path
    images: dict[int, ImageEntry]
    categories: dict[int, dict[str, Any]]
    objects: list[Any]

    def used_categories(self) -> set[Any]:
        """Return the ids of the categories that have an object."""
        numbers = (entry.get("category_id") for entry in self.objects if isinstance(entry, dict))
        return {number for number in numbers if isinstance(number, int)}


def load_detection(
    folder: str | os.PathLike[str],
    *,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
) -> DetectionSplits:
    """Find a data set's annotations, check each of them, and decode each image once.

    What makes a file useless is an error: it is not COCO JSON, an id does not resolve, a mask or an image has
    another size than stated. What makes one object or image useless is a warning, and it is left out: a missing
    or damaged image file, a box without area or outside its image. Boxes that extend beyond the image are
    clipped. Images without objects are kept. Group categories, which have no object and share the name of a
    category or are its supercategory, are left out.

    Args:
        folder: see `_LAYOUT`; images are beside the annotations or in `train2017/`, `train/`, `images/` ….
        strict: raise an error instead of a warning.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.
        for_training: require both splits with the same classes; else one of them may be missing, and is then
            empty.

    Raises:
        DataError: the data cannot be used; one line names the files, what is wrong and what is expected.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    root = require_folder(folder, _LAYOUT)
    paths = {split: path for split in ("train", "val") if (path := _annotation_file(root, split)) is not None}
    if len(paths) < (2 if for_training else 1):
        missing = next(split for split in ("train", "val") if split not in paths)
        raise DataError(f"{root}: no annotation file for {missing}; {_LAYOUT}")
    files = {split: _read_file(path) for split, path in paths.items()}
    notes = _drop_groups(list(files.values()))
    sets: dict[str, DetectionSet] = {}
    errors: list[str] = []
    for split, file in files.items():
        sets[split] = _read_set(file, root, split, errors)
    _raise(errors)
    if for_training and len(sets) == 2 and sets["train"].class_names != sets["val"].class_names:
        raise DataError(
            f"{root}: the categories of training and validation differ "
            f"({_difference(sets['train'].class_names, sets['val'].class_names)}); give both the same list"
        )
    sets = {split: _without_broken(found, workers, progress, errors, notes) for split, found in sets.items()}
    _raise(errors)
    warnings = [warning for found in sets.values() for warning in found.warnings]
    refuse_warnings(warnings, strict=strict)
    for split, found in sets.items():
        if not any(found.class_counts.values()):
            raise DataError(f"{root}: no object to {'train on' if split == 'train' else 'validate with'}")
        unused = [name for name, count in found.class_counts.items() if count == 0]
        if unused and split == "train" and for_training:
            notes.append(f"{files[split].path}: no object of {listed(unused)} to learn from")
    notes += _repeated(sets)
    for split in {"train", "val"} - sets.keys():
        sets[split] = replace(next(iter(sets.values())), name=display_name(root, split), samples=(), warnings=())
    return DetectionSplits(train=sets["train"], val=sets["val"], warnings=(*warnings, *notes))


def _repeated(sets: Mapping[str, DetectionSet]) -> list[str]:
    """Return notes about image files that are listed more than once."""
    listings = {
        split: Counter(os.path.normpath(sample.path) for sample in found.samples) for split, found in sets.items()
    }
    notes = [
        f"{sets[split].name}: {counted(len(twice), 'image file')} listed more than once: {listed(twice, limit=5)}"
        for split, files in listings.items()
        if (twice := sorted(file for file, number in files.items() if number > 1))
    ]
    if len(listings) == 2 and (both := sorted(listings["train"].keys() & listings["val"].keys())):
        notes.append(
            f"{counted(len(both), 'validation image')} also among the training images, so the AP on them means "
            f"little: {listed(both, limit=5)}"
        )
    return notes


# ---------------------------------------------------------------------------------------------- the files


def _annotation_file(root: Path, split: str) -> Path | None:
    candidates: list[Path] = []
    for name in SPLIT_NAMES[split]:
        candidates += sorted((root / "annotations").glob(f"instances_{name}*.json"))
        candidates += [root / "annotations" / f"{name}.json", root / f"{name}.json"]
        candidates += [root / name / "_annotations.coco.json"]
    return next(filter(Path.is_file, candidates), None)


def _read_file(path: Path) -> _Annotations:
    """Read a file's lists; raise a `DataError` that names everything that is wrong with images and categories."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {' '.join(str(error).split())[:120]}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{path} is not a COCO annotation file: it has no list '{key}'; "
                "expected an object with images, annotations and categories"
            )
    errors: list[str] = []
    categories = _by_id(content["categories"], "category", ("name",), errors)
    images = _by_id(content["images"], "image", ("file_name", "width", "height"), errors)
    for number, image in images.items():
        width, height = image["width"], image["height"]
        if not isinstance(image["file_name"], str) or not image["file_name"].strip("\0"):
            errors.append(f"image {number} has the file_name {image['file_name']!r:.80}; expected a path")
        for name, side in (("width", width), ("height", height)):
            if not _is_count(side):
                errors.append(f"image {number} has the {name} {side!r:.40}; expected pixels")
        if _is_count(width) and _is_count(height) and width * height > MAX_PIXELS:
            errors.append(f"image {number} has {width} x {height} pixels; the limit is {MAX_PIXELS:,}")
    errors += [
        f"category {number} has the name {category['name']!r:.80}; expected text"
        for number, category in categories.items()
        if not isinstance(category["name"], str | int) or not str(category["name"]).strip()
    ]
    _raise([f"{path}: {error}" for error in errors])
    entries = {
        number: ImageEntry(image["file_name"], int(image["height"]), int(image["width"]))
        for number, image in images.items()
    }
    return _Annotations(path, entries, categories, content["annotations"])


def _by_id(entries: list[Any], kind: str, fields: Sequence[str], errors: list[str]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        missing = [name for name in ("id", *fields) if not isinstance(entry, dict) or name not in entry]
        if missing:
            errors.append(f"{kind} number {position} has no {missing[0]}")
        elif not isinstance(entry["id"], int) or abs(entry["id"]) > _MAX_ID:
            errors.append(f"{kind} number {position} has the id {entry['id']!r:.40}; expected a whole number")
        elif entry["id"] in found:
            errors.append(f"two of its {kind} entries have the id {entry['id']}")
        else:
            found[entry["id"]] = entry
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value <= MAX_PIXELS and value == int(value)


def _drop_groups(files: Sequence[_Annotations]) -> list[str]:
    """Remove group categories from the files, and return a note about each."""
    used = {number for file in files for number in file.used_categories()}
    dropped: dict[str, None] = {}
    for file in files:
        names = Counter(str(category["name"]) for category in file.categories.values())
        groups = {str(category.get("supercategory")) for category in file.categories.values()}
        for number, category in list(file.categories.items()):
            name = str(category["name"])
            if number not in used and (names[name] > 1 or name in groups - {str(category.get("supercategory"))}):
                names[name] -= 1
                del file.categories[number]
                dropped[f"category {number} ({name}) is a group without objects; left out"] = None
    return list(dropped)


def _read_set(file: _Annotations, root: Path, split: str, errors: list[str]) -> DetectionSet:
    """Read a file's objects; add what makes it useless to `errors`."""
    ids = sorted(file.categories)
    class_names = tuple(writable(str(file.categories[number]["name"])) for number in ids)
    if not ids or len(set(class_names)) != len(ids):
        raise DataError(
            f"{file.path}: its categories are {listed([repr(name) for name in class_names])}; "
            "expected one or more, each named once"
        )
    reader = ObjectReader(file.images, {number: label for label, number in enumerate(ids)})
    objects = reader.read(file.objects)
    errors += [f"{file.path}: {error}" for error in reader.errors]
    folder = _image_folder(file.path, root, split, [image.file_name for image in file.images.values()])
    return DetectionSet(
        name=display_name(root, split),
        class_names=class_names,
        category_ids=tuple(ids),
        samples=tuple(
            DetectionSample(
                _find_image(folder, image.file_name), number, image.height, image.width, tuple(objects[number])
            )
            for number, image in file.images.items()
        ),
        root=root,
        warnings=tuple(f"{file.path}: {warning}" for warning in reader.warnings),
    )


# ---------------------------------------------------------------------------------------------- the images


def _image_folder(annotations: Path, root: Path, split: str, names: list[str]) -> Path:
    """Return the folder of the images: the first candidate that contains one of the first images."""
    year = annotations.stem.removeprefix("instances_")
    folders = [root / year, annotations.parent]
    for name in SPLIT_NAMES[split]:
        folders += [root / name, root / "images" / name, root / name / "images"]
    folders += [root / "images", root]
    for name in names[:20]:
        for folder in folders:
            if _is_file(_find_image(folder, name)):
                return folder
    existing = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    searched = ", ".join(str(folder.relative_to(root)) for folder in existing)
    first = names[0] if names else "it has none"
    raise DataError(f"{annotations}: none of its first images ({first:.80} …) is in {searched} of {root}")


def _find_image(folder: Path, name: str) -> Path:
    """Return the path of an image, also if its name has backslashes or is in another Unicode form."""
    if _is_file(folder / name):
        return folder / name
    plain = name.replace("\\", "/")
    others = [folder / plain, *(folder / unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    return next(filter(_is_file, others), folder / name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False


def _without_broken(
    found: DetectionSet, workers: int | None, progress: Progress | None, errors: list[str], notes: list[str]
) -> DetectionSet:
    """Leave out images that are missing or damaged; add images of another size than stated to `errors`.

    Raises:
        DataError: no image is left.
    """
    checked = check_images([sample.path for sample in found.samples], workers=workers, progress=progress)
    kept = tuple(sample for sample in found.samples if sample.path not in checked.broken)
    if not kept:
        some = next(iter(checked.broken.values()), "the annotation file has none")
        raise DataError(f"{found.name}: no image can be read ({some})")
    for sample in kept:
        width, height = checked.size(sample.path)
        if (width, height) != (sample.width, sample.height):
            errors.append(
                f"{sample.path}: is {width} x {height} pixels, its annotations are for "
                f"{sample.width} x {sample.height}"
            )
    notes += checked.notes
    return replace(found, samples=kept, warnings=(*found.warnings, *checked.broken.values()))


def _raise(errors: Sequence[str]) -> None:
    if errors:
        raise DataError(listed(errors, separator="; ", length=500))


def _difference(train: tuple[str, ...], val: tuple[str, ...]) -> str:
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if not only_train and not only_val:
        return "their ids are in another order"
    return (
        f"only in training: {', '.join(only_train) or 'none'}; only in validation: {', '.join(only_val) or 'none'}"
    )
