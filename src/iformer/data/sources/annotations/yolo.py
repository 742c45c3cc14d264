"""Reader of YOLO's labels: `data.yaml`, and a text file of boxes or polygons for each image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iformer.data.images import has_image_extension
from iformer.data.listing import entries, images_below, natural_order
from iformer.data.parallel import map_in_threads
from iformer.data.sources.annotations.split import (
    AnnotatedSplit,
    LabelledImage,
    LabelledObject,
    bounds,
    finite,
    joined,
    read_lines,
    stored_size,
)
from iformer.data.sources.layout import SPLIT_NAMES, writable
from iformer.errors import ConfigError, DataError, counted, listed, printable
from iformer.safe_yaml import read_yaml

MAX_CLASSES = 100_000
_SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LISTS = ("classes.txt", "obj.names", "_darknet.labels")
_PLACES = ("images/{}", "{}.txt", "{}")
"""Where the images of a split are, if there is no settings file."""
_MAX_SETTINGS_BYTES = 2**22
_MAX_LABEL_BYTES = 2**24
_MAX_LIST_BYTES = 2**28
_MAX_SHARE = 2.0
"""Largest coordinate, as a share of the image's side, that is clipped with a warning. Larger values are an error,
because they are pixels or meaningless."""
_LINE = "expected a line CLASS X Y WIDTH HEIGHT, or CLASS X1 Y1 X2 Y2 X3 Y3 …, in shares of the image"


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Contents of `data.yaml` that are used."""

    path: Path
    folders: tuple[Path, ...]
    """Folders that relative paths may start from, in this order."""
    class_names: tuple[str, ...]
    keypoints: bool
    """Whether keypoints follow the box in each line."""
    splits: Mapping[str, Sequence[str]]


def find_yolo(root: Path) -> Path | None:
    """Return a folder's settings file, or its list of classes if images have files of labels; None without either.

    Raises:
        DataError: several YAML files could be the settings.
    """
    named = [root / name for name in _SETTINGS if (root / name).is_file()]
    if named:
        return named[0]
    others = [path for ending in ("*.yaml", "*.yml") for path in sorted(root.glob(ending)) if _has_names(path)]
    if len(others) == 1:
        return others[0]
    if len(others) > 1:
        raise DataError(f"{root}: has {listed([path.name for path in others])}; give one of them as --data")
    lists = _class_lists(root)
    return lists[0] if lists and has_yolo_labels(root) else None


def _class_lists(root: Path) -> list[Path]:
    """Return the lists of classes in a folder, in `labels/` and in the folders of the splits."""
    splits = [name for names in SPLIT_NAMES.values() for name in names]
    folders = [base / name for base in (root, root / "labels") for name in ("", *splits)]
    return [folder / name for folder in folders for name in _CLASS_LISTS if (folder / name).is_file()]


def has_yolo_labels(root: Path) -> bool:
    """Return whether an image below a folder has a text file in `labels/` or beside it."""
    return any(map(_exists, map(_label_file, images_below(root))))


def _has_names(path: Path) -> bool:
    """Return whether a YAML file is a mapping with the key `names`."""
    try:
        content = read_yaml(path, max_bytes=_MAX_SETTINGS_BYTES)
    except (OSError, ConfigError):
        return False
    return isinstance(content, dict) and "names" in content


def read_yolo(path: Path, root: Path) -> dict[str, AnnotatedSplit]:
    """Read the splits of a data set: "train" and "val", or "all" for a folder without splits.

    Args:
        path: the settings file or list of classes; see `find_yolo`.
        root: the folder of the data.

    Raises:
        DataError: the file is not of this format, names a path that does not exist, or no image has labels.
    """
    settings = _read_class_list(path, root) if path.name in _CLASS_LISTS else _read_settings(path)
    return {split: _read_split(settings, split, values) for split, values in settings.splits.items()}


# ---------------------------------------------------------------------------------------------- the settings


def _read_class_list(path: Path, root: Path) -> _Settings:
    """Read a list of classes; the splits are lists of images (`train.txt`) or folders (`images/train/`, `train/`).

    Label Studio writes `classes.txt`, `images/` and `labels/`; labelImg `classes.txt` beside the labels, in the
    folder of the images or in `labels/`; CVAT (as Darknet) `obj.names`, `train.txt` and `obj_train_data/`;
    Roboflow `train/_darknet.labels`.

    Raises:
        DataError: lists of several folders differ.
    """
    names = _listed_classes(path)
    for other in _class_lists(root):
        if _listed_classes(other) != names:
            raise DataError(
                f"{path} and {other} differ: the numbers of labels stand for the lines of one list; number the "
                "labels by one list and remove the other"
            )
    splits = {}
    for split in ("train", "val"):
        places = [form.format(name) for form in _PLACES for name in SPLIT_NAMES[split]]
        if (found := next((place for place in places if _exists(root / place)), None)) is not None:
            splits[split] = [found]
    whole = "images" if (root / "images").is_dir() else "."
    return _Settings(
        path=path,
        folders=(root,),
        class_names=_checked_names(path, names),
        keypoints=False,
        splits=splits or {"all": [whole]},
    )


def _listed_classes(path: Path) -> list[str]:
    return [writable(line) for line in read_lines(path, max_bytes=_MAX_SETTINGS_BYTES)]


def _read_settings(path: Path) -> _Settings:
    try:
        content = read_yaml(path, max_bytes=_MAX_SETTINGS_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ConfigError as error:
        raise DataError(str(error)) from None
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{path}: describes no YOLO labels; expected train, val and names (of the classes)")
    splits = {}
    for split in ("train", "val"):
        value = next((content[name] for name in SPLIT_NAMES[split] if content.get(name)), None)
        values = [value] if isinstance(value, str) else value
        if values is None:
            continue
        if not isinstance(values, list) or not all(isinstance(item, str) and item.strip() for item in values):
            raise DataError(
                f"{path}: its {split} is {value!r:.80}; expected a folder, a list of images or several"
            )
        splits[split] = values
    if not splits:
        raise DataError(f"{path}: names no images; expected train: and val: with folders or lists of images")
    base = content.get("path")
    named = [path.parent / base] if isinstance(base, str) and base.strip() else []
    return _Settings(
        path=path,
        folders=(*named, path.parent),
        class_names=_class_names(path, content),
        keypoints="kpt_shape" in content,
        splits=splits,
    )


def _class_names(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    names = content["names"]
    if isinstance(names, dict):
        numbers = all(type(key) is int for key in names)
        if len(names) > MAX_CLASSES or not numbers or sorted(names) != list(range(len(names))):
            raise DataError(
                f"{path}: the numbers of its names are {list(names)!r:.80}; expected 0, 1, 2 and so on"
            )
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list):
        raise DataError(f"{path}: its names are {names!r:.80}; expected a list of names")
    if changed := [name for name in names if type(name) not in (str, int)]:  # YAML reads no as False, 0.50 as 0.5
        raise DataError(f"{path}: its names have {changed[0]!r:.80}, which is not text; put names in quotes")
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(
            f"{path}: has {counted(len(names), 'name')}, but nc is {count!r:.40}; expected one name for each class"
        )
    return _checked_names(path, [writable(str(name).strip()) for name in names])


def _checked_names(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    if not names or len(set(names)) != len(names) or not all(names) or len(names) > MAX_CLASSES:
        raise DataError(f"{path}: its names are {listed(list(names))}; expected one or more, each named once")
    return tuple(names)


# ---------------------------------------------------------------------------------------------- the images


def _read_split(settings: _Settings, split: str, values: Sequence[str]) -> AnnotatedSplit:
    images: dict[Path, None] = {}
    for value in values:
        images |= dict.fromkeys(_images(settings, split, value))
    paths = list(images)
    labels = [_label_file(path) for path in paths]
    if not any(map(_exists, labels)):
        where = f"such as {labels[0]}" if labels else f"and no image in {listed(list(values))}"
        raise DataError(f"{settings.path}: no file of labels for {split}, {where}")
    read = map_in_threads(lambda pair: _labelled(*pair, settings), zip(paths, labels, strict=True))
    result = joined(settings.path, read, settings.class_names)
    result.warnings += [f"{path}: has no image" for path in _without_image(labels)]
    for path, count in Counter(labels).items():
        if count > 1 and _exists(path):
            result.warnings.append(f"{path}: belongs to {count} images, which differ only in their ending")
    return result


def _without_image(labels: Sequence[Path]) -> list[Path]:
    """Return the text files without an image in the folders of `labels`, the label files of all images."""
    known = set(labels)
    folders = {label.parent for label in labels if "labels" in label.parts}
    files = (
        Path(entry.path) for folder in folders if _exists(folder) and folder.is_dir() for entry in entries(folder)
    )
    return natural_order(
        path
        for path in files
        if path.suffix.lower() == ".txt" and path not in known and path.name not in _CLASS_LISTS
    )


def _images(settings: _Settings, split: str, value: str) -> list[Path]:
    """Return the images of a folder, or of a text file with one image per line."""
    found = _located(settings, value)
    if found is None:
        tried = listed([str(folder / value) for folder in settings.folders])
        raise DataError(
            f"{settings.path}: its {split} is {printable(value, limit=200)}; no such folder or list of images "
            f"({tried})"
        )
    if found.is_dir():
        return images_below(found)
    if has_image_extension(found):
        return [found]
    lines = [line.replace("\\", "/") for line in read_lines(found, max_bytes=_MAX_LIST_BYTES)]
    starts = (found.parent, *settings.folders)
    # CVAT begins each path with data/, a folder that its exports do not have
    for known in (lines, [line.removeprefix("data/") for line in lines]):
        start = next((base for base in starts for line in known[:20] if _exists(base / line)), None)
        if start is not None:
            return [Path(os.path.normpath(start / line)) for line in known]
    return [Path(os.path.normpath(found.parent / line)) for line in lines]


def _located(settings: _Settings, value: str) -> Path | None:
    """Find a path that the settings name, also without a leading `../`; None if there is none.

    Exports often write `../` although the settings file is next to the folders.
    """
    plain = value.strip().replace("\\", "/")
    inside = plain
    while inside.startswith(("../", "./")):
        inside = inside.partition("/")[2]
    candidates = [folder / name for name in (plain, inside) for folder in settings.folders]
    return next(filter(_exists, candidates), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long or has a null character
        return False


def _label_file(image: Path) -> Path:
    """Return an image's label file: in `labels/` if the image is in `images/`, or next to the image."""
    if not image.name:
        return image
    parts = list(image.parts)
    positions = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if positions:
        parts[positions[-1]] = "labels"
        below = Path(*parts).with_suffix(".txt")
        if _exists(below) or not _exists(image.with_suffix(".txt")):
            return below
    return image.with_suffix(".txt")


def _labelled(path: Path, labels: Path, settings: _Settings) -> LabelledImage:
    """Read the labels of one image; an image without a file of labels has no object."""
    image = LabelledImage(path=path, size=stored_size(path))
    if not _exists(labels):
        return image
    try:
        lines = read_lines(labels, max_bytes=_MAX_LABEL_BYTES)
    except DataError as error:
        image.errors.append(str(error))
        return image
    for number, line in enumerate(lines, start=1):
        place = f"{labels}, line {number}"
        try:
            image.objects.append(_object(line.split(), image.size, settings, place))
        except ValueError as error:
            image.errors.append(f"{place}: {error}")
    return image


def _object(values: Sequence[str], size: tuple[int, int], settings: _Settings, place: str) -> LabelledObject:
    """Read a line of labels; raise a `ValueError` that says what is wrong with the line."""
    if settings.keypoints:
        values = values[:5]
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        raise ValueError(f"has {counted(len(values), 'value')}; {_LINE}")
    try:
        label, shares = finite(values[0]), [finite(value) for value in values[1:]]
    except ValueError as error:
        raise ValueError(f"{error}; {_LINE}") from None
    if label != int(label) or not 0 <= label < len(settings.class_names):
        raise ValueError(f"has the class {values[0]:.40}; the classes are 0 to {len(settings.class_names) - 1}")
    highest = max(shares, key=abs)
    if abs(highest) > _MAX_SHARE:
        raise ValueError(f"has the coordinate {highest:g}; expected shares of the image, 0 to 1")
    width, height = size
    name = settings.class_names[int(label)]
    if len(shares) == 4:
        x, y, w, h = shares
        box = ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
        return LabelledObject(name, box, (), False, place)
    points = [(x * width, y * height) for x, y in zip(shares[::2], shares[1::2], strict=True)]
    return LabelledObject(name, bounds(points), (points,), False, place)
