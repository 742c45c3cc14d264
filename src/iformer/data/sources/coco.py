"""Reader of COCO annotation files for detection; everything is checked before training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from iformer.data.detection import DetectionSample, DetectionSet, DetectionSplits, Instance, mask_operations
from iformer.data.parallel import Progress
from iformer.data.sources.checks import check_images, refuse_warnings
from iformer.data.sources.layout import SPLIT_NAMES, display_name, require_folder
from iformer.errors import DataError

_LAYOUT = (
    "expected DIR/annotations/instances_train*.json and instances_val*.json (as COCO has them), "
    "DIR/train.json and DIR/val.json, or DIR/train/_annotations.coco.json and DIR/valid/_annotations.coco.json"
)
_TOUCHES = 1.0
"""Pixels by which a box may lie outside its image without a warning: rounding."""


def load_detection(
    folder: str | os.PathLike[str],
    *,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DetectionSplits:
    """Find a data set's annotations, check each of them, and decode each image once.

    What makes the file useless is an error: it is not COCO JSON, an id does not resolve, a mask or an image has
    another size than stated. What makes one object or image useless is a warning, and it is left out: a missing
    or damaged image file, a box without area or outside its image. Boxes that extend beyond the image are
    clipped. Images without objects are kept.

    Args:
        folder: see `_LAYOUT`; images are beside the annotations or in `train2017/`, `train/`, `images/` ….
        strict: raise an error instead of a warning.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.

    Raises:
        DataError: the data cannot be used; one line names the file, what is wrong and what is expected.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    root = require_folder(folder, _LAYOUT)
    sets = {split: read_coco(_annotation_file(root, split), root, split) for split in ("train", "val")}
    if sets["train"].class_names != sets["val"].class_names:
        raise DataError(
            f"{root}: the categories of training and validation differ "
            f"({_difference(sets['train'].class_names, sets['val'].class_names)}); give both the same list"
        )
    checked = {split: _without_broken(image_set, workers, progress) for split, image_set in sets.items()}
    warnings = [warning for image_set in checked.values() for warning in image_set.warnings]
    refuse_warnings(warnings, strict=strict)
    for split, image_set in checked.items():
        if not any(image_set.class_counts.values()):
            raise DataError(f"{root}: no object to {'train on' if split == 'train' else 'validate with'}")
    return DetectionSplits(train=checked["train"], val=checked["val"], warnings=tuple(warnings))


def read_coco(annotations: Path, root: Path, split: str) -> DetectionSet:
    """Read one annotation file; `root` is the data set's folder.

    Raises:
        DataError: see `load_detection`.
    """
    content = _read_json(annotations)
    categories = _by_id(content["categories"], annotations, "category", ("name",))
    images = _by_id(content["images"], annotations, "image", ("file_name", "width", "height"))
    ids = sorted(categories)
    class_names = tuple(str(categories[number]["name"]) for number in ids)
    if not ids or len(set(class_names)) != len(ids):
        raise DataError(
            f"{annotations}: its categories are {list(class_names)}; expected one or more, each named once"
        )
    label_of = {number: label for label, number in enumerate(ids)}
    folder = _image_folder(annotations, root, split, [str(image["file_name"]) for image in images.values()])
    warnings: list[str] = []
    instances: dict[int, list[Instance]] = {number: [] for number in images}
    for position, annotation in enumerate(content["annotations"]):
        number = annotation.get("id", position) if isinstance(annotation, dict) else position
        where = f"{annotations}: annotation {number}"
        instance = _instance(annotation, where, images, label_of, warnings)
        if instance is not None:
            instances[annotation["image_id"]].append(instance)
    samples = tuple(
        DetectionSample(
            folder / str(image["file_name"]), number, image["height"], image["width"], tuple(instances[number])
        )
        for number, image in images.items()
    )
    return DetectionSet(
        name=display_name(root, split),
        class_names=class_names,
        category_ids=tuple(ids),
        samples=samples,
        root=root,
        warnings=tuple(warnings),
    )


# ---------------------------------------------------------------------------------------------- the file


def _annotation_file(root: Path, split: str) -> Path:
    candidates: list[Path] = []
    for name in SPLIT_NAMES[split]:
        candidates += sorted((root / "annotations").glob(f"instances_{name}*.json"))
        candidates += [root / "annotations" / f"{name}.json", root / f"{name}.json"]
        candidates += [root / name / "_annotations.coco.json"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise DataError(f"{root}: no annotation file for {split}; {_LAYOUT}")


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
    return {key: content[key] for key in ("images", "annotations", "categories")}


def _by_id(entries: list[Any], path: Path, kind: str, fields: Sequence[str]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        missing = [name for name in ("id", *fields) if not isinstance(entry, dict) or name not in entry]
        if missing:
            raise DataError(f"{path}: {kind} number {position} has no {missing[0]}")
        if not isinstance(entry["id"], int):
            raise DataError(
                f"{path}: {kind} number {position} has the id {entry['id']!r}; expected a whole number"
            )
        if entry["id"] in found:
            raise DataError(f"{path}: two of its {kind} entries have the id {entry['id']}")
        for side in ("width", "height"):
            if side in fields and not (isinstance(entry[side], int) and entry[side] > 0):
                raise DataError(f"{path}: {kind} {entry['id']} has the {side} {entry[side]!r}; expected pixels")
        found[entry["id"]] = entry
    return found


def _image_folder(annotations: Path, root: Path, split: str, names: list[str]) -> Path:
    """Return the folder of the images: the first candidate that contains one of the first images."""
    year = annotations.stem.removeprefix("instances_")
    folders = [root / year, annotations.parent]
    for name in SPLIT_NAMES[split]:
        folders += [root / name, root / "images" / name, root / name / "images"]
    folders += [root / "images", root]
    for name in names[:20]:
        for folder in folders:
            if (folder / name).is_file():
                return folder
    searched = ", ".join(dict.fromkeys(str(folder.relative_to(root)) for folder in folders))
    first = names[0] if names else "it has none"
    raise DataError(f"{annotations}: none of its first images ({first} …) is in {searched} of {root}")


# ------------------------------------------------------------------------------------------- one object


def _instance(
    annotation: Any,
    where: str,
    images: dict[int, dict[str, Any]],
    label_of: dict[int, int],
    warnings: list[str],
) -> Instance | None:
    """Check an annotation. Return None, and add a warning, if it is to be left out."""
    for name in ("image_id", "category_id", "bbox"):
        if not isinstance(annotation, dict) or name not in annotation:
            raise DataError(f"{where} has no {name}")
    if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in images:
        raise DataError(f"{where}: image_id {annotation['image_id']!r} is the id of no image in the file")
    if not isinstance(annotation["category_id"], int) or annotation["category_id"] not in label_of:
        raise DataError(f"{where}: category_id {annotation['category_id']!r} is the id of no category in the file")
    image = images[annotation["image_id"]]
    height, width = image["height"], image["width"]
    crowd = bool(annotation.get("iscrowd", 0))
    mask = _mask(annotation.get("segmentation"), where, height, width)
    box = _box(annotation["bbox"], where, height, width, warnings)
    if box is None:
        return None
    area = annotation.get("area", box[2] * box[3])
    if not isinstance(area, int | float) or not math.isfinite(area):
        raise DataError(f"{where} has the area {area!r}; expected a number of pixels")
    if mask is not None and mask_operations().area({"size": [height, width], "counts": mask}) == 0:
        warnings.append(f"{where}: its mask is empty; left out")
        return None
    return Instance(label_of[annotation["category_id"]], box, mask, crowd, float(area))


def _box(
    bbox: Any, where: str, height: int, width: int, warnings: list[str]
) -> tuple[float, float, float, float] | None:
    if (
        not isinstance(bbox, list | tuple)
        or len(bbox) != 4
        or not all(isinstance(value, int | float) and math.isfinite(value) for value in bbox)
    ):
        raise DataError(f"{where} has the bbox {bbox!r}; expected [left, top, width, height] in pixels")
    left, top, box_width, box_height = map(float, bbox)
    if box_width <= 0 or box_height <= 0:
        warnings.append(f"{where}: its box {bbox} has no area; left out")
        return None
    right, bottom = left + box_width, top + box_height
    inside = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        warnings.append(f"{where}: its box {bbox} is outside its image, {width} x {height}; left out")
        return None
    if max(inside[0] - left, inside[1] - top, right - inside[2], bottom - inside[3]) > _TOUCHES:
        warnings.append(f"{where}: its box {bbox} extends beyond its image, {width} x {height}; clipped")
    return inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]


def _mask(segmentation: Any, where: str, height: int, width: int) -> bytes | None:
    """Convert polygons, or run lengths in either form, to compressed run lengths."""
    if segmentation is None or segmentation == []:
        return None
    operations = mask_operations()
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if not isinstance(counts, list | str) or not isinstance(size, list):
            raise DataError(f"{where}: its segmentation has no counts and size")
        if list(size) != [height, width]:
            raise DataError(
                f"{where}: its mask is {size[1] if len(size) == 2 else size} x {size[0]} pixels, "
                f"its image {width} x {height}"
            )
        if isinstance(counts, list):
            if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
                raise DataError(f"{where}: the runs of its mask do not add up to {width} x {height} pixels")
            return bytes(operations.frPyObjects([segmentation], height, width)[0]["counts"])
        try:
            operations.decode({"size": [height, width], "counts": counts.encode("ascii")})
        except (RuntimeError, ValueError) as error:  # the library's errors for malformed run lengths
            raise DataError(f"{where}: the run lengths of its mask are damaged ({error})") from None
        return counts.encode("ascii")
    if not isinstance(segmentation, list) or not all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(value, int | float) and math.isfinite(value) for value in polygon)
        for polygon in segmentation
    ):
        raise DataError(
            f"{where}: its segmentation is neither polygons ([x, y, x, y, x, y, …] each) nor run lengths"
        )
    return bytes(operations.merge(operations.frPyObjects(segmentation, height, width))["counts"])


# ------------------------------------------------------------------------------------------- the images


def _without_broken(image_set: DetectionSet, workers: int | None, progress: Progress | None) -> DetectionSet:
    """Leave out images that are missing or damaged.

    Raises:
        DataError: an image has another size than the file states, or none is left.
    """
    checked = check_images([sample.path for sample in image_set.samples], workers=workers, progress=progress)
    broken = checked.broken
    kept = tuple(sample for sample in image_set.samples if sample.path not in broken)
    if not kept:
        some = next(iter(broken.values()), "the annotation file has none")
        raise DataError(f"{image_set.name}: no image can be read ({some})")
    for sample in kept:
        width, height = checked.size(sample.path)
        if (width, height) != (sample.width, sample.height):
            raise DataError(
                f"{sample.path}: is {width} x {height} pixels, its annotations are for "
                f"{sample.width} x {sample.height}"
            )
    return replace(image_set, samples=kept, warnings=(*image_set.warnings, *broken.values()))


def _difference(train: tuple[str, ...], val: tuple[str, ...]) -> str:
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if not only_train and not only_val:
        return "their ids are in another order"
    return (
        f"only in training: {', '.join(only_train) or 'none'}; only in validation: {', '.join(only_val) or 'none'}"
    )
