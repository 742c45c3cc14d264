"""Reader of LabelMe's annotations: one JSON file for each image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from iformer.data.listing import files_below, natural_key, natural_order
from iformer.data.parallel import map_in_threads
from iformer.data.sources.annotations.per_image import (
    copied_labels,
    find_image,
    listed_names,
    split_folders,
    without_labels,
)
from iformer.data.sources.annotations.split import (
    AnnotatedSplit,
    LabelledImage,
    LabelledObject,
    Point,
    bounds,
    finite,
    joined,
    read_bytes,
    stored_size,
)
from iformer.data.sources.layout import writable
from iformer.errors import DataError, counted, one_line

_MAX_BYTES = 2**28
"""Largest annotation file in bytes. The file also contains the image, unless LabelMe is set not to store it."""
_MAX_POINTS = 100_000
_TRIED = 20
"""Largest number of files in a folder that are read to recognise the format."""
_SHAPES = ("rectangle", "polygon")


def find_labelme(root: Path) -> dict[str, list[Path]]:
    """Return the JSON files of each split: "train" and "val" by folder, or "all" where the folder is not split.

    Empty if a split has no file in LabelMe's format among its first `_TRIED` JSON files.
    """
    found = {split: _json_files(folder) for split, folder in split_folders(root).items()}
    found = {split: files for split, files in found.items() if files}
    if not found and (files := _json_files(root)):
        found = {"all": files}
    return found if all(any(map(_is_labelme, files[:_TRIED])) for files in found.values()) else {}


def read_labelme(root: Path, files: dict[str, list[Path]]) -> tuple[dict[str, AnnotatedSplit], list[str]]:
    """Read the files of `find_labelme`; return the splits and notes.

    Rectangles and polygons are read; other shapes are left out with a warning.

    Polygons with the same label and the same `group_id` are joined to one object. Faults of a file are collected
    in the `errors` of its split.

    Raises:
        DataError: the list of classes cannot be read.
    """
    read = {
        split: [image for image in map_in_threads(_read_file, paths) if image is not None]
        for split, paths in files.items()
    }
    used = {found.name for images in read.values() for image in images for found in image.objects}
    known = listed_names(root)
    names = [*known, *sorted(used - set(known), key=natural_key)]
    notes = without_labels(root, (image.path for images in read.values() for image in images))
    return {split: joined(root, images, names) for split, images in read.items()}, notes


def _json_files(folder: Path) -> list[Path]:
    return natural_order(path for path in files_below(folder) if path.suffix.lower() == ".json")


def _is_labelme(path: Path) -> bool:
    try:
        content = _read_json(path)
    except DataError:
        return False
    return isinstance(content, dict) and "shapes" in content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_bytes(path, max_bytes=_MAX_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: is not JSON ({one_line(error)})") from None


def _read_file(path: Path) -> LabelledImage | None:
    """Read an annotation file; None if the file is JSON of another kind."""
    try:
        content = _read_json(path)
    except DataError as error:
        return LabelledImage(path=path, size=(0, 0), errors=[str(error)])
    if not isinstance(content, dict) or "shapes" not in content:
        return None
    if not isinstance(content["shapes"], list):
        problem = f"{path}: its shapes are no list"
        return LabelledImage(path=path, size=(0, 0), errors=[problem])
    name = content.get("imagePath")
    folders = [path.parent.parent / "images", path.parent.parent]
    image = LabelledImage(path=find_image(name if isinstance(name, str) else "", path, folders), size=(0, 0))
    image.warnings += copied_labels(image.path, path)
    size = content.get("imageWidth"), content.get("imageHeight")
    if all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        image.size = int(size[0]), int(size[1])  # type: ignore[arg-type]
    else:
        image.size = stored_size(image.path)
    groups: dict[tuple[str, str], int] = {}
    for number, shape in enumerate(content["shapes"], start=1):
        place = f"{path}, shape {number}"
        try:
            found = _object(shape, place)
        except ValueError as error:
            image.errors.append(f"{place}: {error}")
            continue
        if found is None:
            kind = str(shape.get("shape_type"))
            image.warnings.append(f"{place}: is a {kind:.40}; expected a rectangle or a polygon; left out")
            continue
        group = shape.get("group_id")
        if group is None or not found.polygons:
            image.objects.append(found)
            continue
        key = found.name, f"{group!r:.80}"
        if key in groups:
            image.objects[groups[key]] = _merged(image.objects[groups[key]], found)
        else:
            groups[key] = len(image.objects)
            image.objects.append(found)
    return image


def _object(shape: Any, place: str) -> LabelledObject | None:
    """Read a shape; None if its kind is not supported. Raise a `ValueError` for a malformed shape."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"].strip():
        raise ValueError("has no label")
    kind = shape.get("shape_type") or "polygon"
    if kind not in _SHAPES:
        return None
    points = _points(shape.get("points"))
    name = writable(shape["label"].strip())
    if kind == "rectangle":
        if len(points) not in (2, 4):
            raise ValueError(f"is a rectangle of {counted(len(points), 'point')}; expected two corners")
        return LabelledObject(name, bounds(points), (), False, place)
    if len(points) < 3:
        raise ValueError(f"is a polygon of {counted(len(points), 'point')}; expected 3 or more")
    return LabelledObject(name, bounds(points), (points,), False, place)


def _points(values: Any) -> list[Point]:
    if not isinstance(values, list) or not values or len(values) > _MAX_POINTS:
        raise ValueError("has no list of points")
    points = []
    for value in values:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"has the point {value!r:.40}; expected [x, y]")
        points.append((finite(value[0]), finite(value[1])))
    return points


def _merged(one: LabelledObject, other: LabelledObject) -> LabelledObject:
    outlines = (*one.polygons, *other.polygons)
    return one._replace(polygons=outlines, box=bounds([point for outline in outlines for point in outline]))
