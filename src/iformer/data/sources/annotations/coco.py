"""Reader of COCO annotation files: one for each split, or one for all images."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from iformer.data.images import MAX_PIXELS
from iformer.data.sources.annotations.split import AnnotatedSplit, ImageEntry
from iformer.data.sources.layout import SPLIT_NAMES, writable
from iformer.errors import DataError, listed

_MAX_ID = 2**63 - 1
_MARKS = ('"images"', '"annotations"', '"categories"')


@dataclass(kw_only=True)
class _Contents:
    """The lists of an annotation file: images and categories by id, and objects."""

    path: Path
    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    objects: list[Any]

    def used_categories(self) -> set[Any]:
        """Return the ids of the categories that have an object."""
        numbers = (entry.get("category_id") for entry in self.objects if isinstance(entry, dict))
        return {number for number in numbers if isinstance(number, int)}


def find_coco(root: Path) -> dict[str, Path]:
    """Return the annotation files of the splits "train" and "val" of a folder; empty if there is none."""
    return {split: path for split in ("train", "val") if (path := _annotation_file(root, split)) is not None}


def find_one_coco(root: Path) -> Path | None:
    """Return the only annotation file of a folder, as CVAT and Label Studio export it; None if there is none.

    Raises:
        DataError: there are several annotation files.
    """
    folders = [folder for folder in (root / "annotations", root) if folder.is_dir()]
    files = [path for folder in folders for path in sorted(folder.glob("*.json")) if path.is_file()]
    found = [path for path in files[:100] if _looks_like_coco(path)]
    if len(found) > 1:
        names = listed([str(path.relative_to(root)) for path in found])
        raise DataError(f"{root}: has {names}; give one of them as --data, or name them train.json and val.json")
    return found[0] if found else None


def read_coco(root: Path, files: dict[str, Path]) -> tuple[dict[str, AnnotatedSplit], list[str]]:
    """Read annotation files by split ("train", "val" or "all"); return the splits, and notes about categories.

    Group categories are left out: they have no object, and share the name of another category or are its
    supercategory.

    Raises:
        DataError: a file is not COCO JSON, or its images do not exist.
    """
    contents = {split: _read_file(path) for split, path in files.items()}
    notes = _drop_groups(list(contents.values()))
    return {split: _read_split(found, root, split) for split, found in contents.items()}, notes


# ---------------------------------------------------------------------------------------------- the files


def _annotation_file(root: Path, split: str) -> Path | None:
    candidates: list[Path] = []
    for name in SPLIT_NAMES[split]:
        candidates += sorted((root / "annotations").glob(f"instances_{name}*.json"))
        candidates += sorted((root / "annotations").glob(f"instances_{name.title()}*.json"))  # CVAT's subsets
        candidates += [root / "annotations" / f"{name}.json", root / f"{name}.json"]
        candidates += [root / name / "_annotations.coco.json"]
    return next(filter(Path.is_file, candidates), None)


def _looks_like_coco(path: Path) -> bool:
    """Return whether a JSON file has the keys of COCO's format near its beginning or its end."""
    try:
        with path.open("rb") as file:
            start = file.read(2**16)
            file.seek(max(len(start), path.stat().st_size - 2**16))
            text = (start + file.read()).decode("utf-8", "replace")
    except OSError:
        return False
    return sum(mark in text for mark in _MARKS) >= 2 and '"shapes"' not in text[:1000]


def _read_file(path: Path) -> _Contents:
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
    return _Contents(path=path, images=images, categories=categories, objects=content["annotations"])


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


def _drop_groups(files: Sequence[_Contents]) -> list[str]:
    """Remove group categories from the files, and return a note about each."""
    used = {number for file in files for number in file.used_categories()}
    dropped: dict[str, None] = {}
    for file in files:
        names = Counter(str(category["name"]).strip() for category in file.categories.values())
        groups = {str(category.get("supercategory")) for category in file.categories.values()}
        for number, category in list(file.categories.items()):
            name = str(category["name"]).strip()
            if number not in used and (names[name] > 1 or name in groups - {str(category.get("supercategory"))}):
                names[name] -= 1
                del file.categories[number]
                dropped[f"category {number} ({name}) is a group without objects; left out"] = None
    return list(dropped)


def _read_split(found: _Contents, root: Path, split: str) -> AnnotatedSplit:
    names = [image["file_name"] for image in found.images.values()]
    # exports of one file often name images by the paths of another machine
    alone = Counter(PureWindowsPath(name).name for name in names) if split == "all" else Counter[str]()
    folder = _image_folder(found.path, root, split, names, alone)
    return AnnotatedSplit(
        source=found.path,
        images={
            number: ImageEntry(
                _find_image(folder, image["file_name"], alone), int(image["height"]), int(image["width"])
            )
            for number, image in found.images.items()
        },
        class_names={
            number: writable(str(found.categories[number]["name"]).strip()) for number in sorted(found.categories)
        },
        objects=found.objects,
    )


# ---------------------------------------------------------------------------------------------- the images


def _image_folder(annotations: Path, root: Path, split: str, names: list[str], alone: Counter[str]) -> Path:
    """Return the folder of the images: the first candidate that contains one of the first images."""
    year = annotations.stem.removeprefix("instances_")
    folders = [root / year, annotations.parent]
    for name in SPLIT_NAMES.get(split, (year,)):
        folders += [root / name, root / "images" / name, root / name / "images"]
    folders += [root / "images" / year, root / "images", root]
    for name in names[:20]:
        for folder in folders:
            if _is_file(_find_image(folder, name, alone)):
                return folder
    if not names:
        raise DataError(f"{annotations}: lists no images")
    existing = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    searched = ", ".join(str(folder.relative_to(root)) for folder in existing)
    raise DataError(f"{annotations}: its first images, such as {names[0]:.80}, are not in {searched} of {root}")


def _find_image(folder: Path, name: str, alone: Counter[str]) -> Path:
    """Return the path of an image, whose name may have backslashes or be in another Unicode form.

    If no file has this path, but the name's last component is in `alone` once and names a file directly in
    `folder`, that file is returned.
    """
    if _is_file(folder / name):
        return folder / name
    plain = name.replace("\\", "/")
    others = [folder / plain, *(folder / unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    last = PureWindowsPath(name).name
    if alone[last] == 1:
        others.append(folder / last)
    return next(filter(_is_file, others), folder / name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False


def _raise(errors: Sequence[str]) -> None:
    if errors:
        raise DataError(listed(errors, separator="; ", length=500))
