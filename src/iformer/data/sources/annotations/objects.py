"""Checks of annotated objects, in COCO's terms. All errors are collected, not only the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iformer.data.detection import Instance, mask_operations
from iformer.data.sources.annotations.split import Box, ImageEntry, upright
from iformer.errors import counted

_TOLERANCE = 1.0
"""Number of pixels by which a box may extend beyond its image without a warning, because of rounding."""

MIN_SIDE = 0.01
"""Smallest side of a box in pixels; thinner boxes have no area in float32."""

_MAX_VALUE = 1e15
_MAX_OUTLINE = 2_000_000
"""Largest length in pixels of a polygon's outline; COCO's rasteriser takes memory in proportion to the length."""


class ObjectReader:
    """Converter of annotations to instances, which collects errors and warnings.

    Args:
        images: images by id.
        labels: label of each category id.
    """

    def __init__(self, images: Mapping[int, ImageEntry], labels: Mapping[int, int]) -> None:
        self._images, self._labels = images, labels
        self.errors: list[str] = []
        """Messages about annotations that make the file unusable."""
        self.warnings: list[str] = []
        """Messages about annotations that were changed or left out."""

    def read(self, entries: list[Any], places: Sequence[str] = ()) -> dict[int, list[tuple[Instance, int]]]:
        """Return by image id the usable objects, each with the position of its annotation in `entries`.

        Args:
            entries: COCO's annotations. A rotated box is replaced by the upright box around it.
            places: where each annotation was read, for messages. Empty: messages give the annotation's id.
        """
        found: dict[int, list[tuple[Instance, int]]] = {number: [] for number in self._images}
        unmasked: list[tuple[int, Instance, int, str]] = []
        largest = 0.0
        for position, entry in enumerate(entries):
            number = entry.get("id", position) if isinstance(entry, dict) else position
            where = places[position] if places else f"annotation {number!r:.40}"
            try:
                entry = entries[position] = self._upright(entry, where)
                instance, damaged = self._instance(entry, where)
            except _AnnotationError as error:
                self.errors.append(f"{where} {error}")
                continue
            largest = max(largest, *(float(value) for value in entry["bbox"]))
            if instance is not None and damaged:
                unmasked.append((entry["image_id"], instance, position, where))
            elif instance is not None:
                found[entry["image_id"]].append((instance, position))
        if 0 < largest <= 1 and not self.errors:
            self.errors.append(
                "all boxes lie within 0 to 1: they look like shares of the image; expected pixels, "
                "[left, top, width, height]"
            )
        has_masks = any(instance.mask is not None for pairs in found.values() for instance, _ in pairs)
        for image_id, instance, position, where in unmasked:
            if has_masks:
                self.warnings.append(f"{where}: has no sound polygon, while other objects have masks; left out")
            else:
                found[image_id].append((instance, position))
        repeated = sum(len(pairs) - len({instance for instance, _ in pairs}) for pairs in found.values())
        if repeated:
            self.warnings.append(
                f"{counted(repeated, 'object')} with the class and box of another object of the same image; kept, "
                "and counted by training and AP"
            )
        return found

    def _upright(self, entry: Any, where: str) -> Any:
        """Return an annotation without rotation; CVAT gives the box before the rotation, and its angle."""
        if not isinstance(entry, dict) or not isinstance(entry.get("attributes"), dict):
            return entry
        attributes = entry["attributes"]
        degrees = attributes.get("rotation")
        if not degrees or entry.get("segmentation") or not _is_box(entry.get("bbox")):
            return entry
        if not _is_number(degrees):
            raise _AnnotationError(f"has the rotation {degrees!r:.40}; expected a number of degrees")
        self.warnings.append(
            f"{where}: its box is rotated by {degrees:g} degrees; the upright box around it is taken"
        )
        box = [round(value, 6) for value in upright(entry["bbox"], degrees)]
        return {**entry, "bbox": box, "attributes": {**attributes, "rotation": 0}}

    def _instance(self, entry: Any, where: str) -> tuple[Instance | None, bool]:
        """Return an instance, or None if it is to be left out, and whether its polygons are all damaged."""
        for name in ("image_id", "category_id", "bbox"):
            if not isinstance(entry, dict) or name not in entry:
                raise _AnnotationError(f"has no {name}")
        if not isinstance(entry["image_id"], int) or entry["image_id"] not in self._images:
            raise _AnnotationError(f"image_id {entry['image_id']!r:.40} is the id of no image in the file")
        if not isinstance(entry["category_id"], int) or entry["category_id"] not in self._labels:
            raise _AnnotationError(
                f"category_id {entry['category_id']!r:.40} is the id of no category in the file"
            )
        image = self._images[entry["image_id"]]
        crowd = _crowd(entry.get("iscrowd", 0))
        mask, damaged = self._mask(entry.get("segmentation"), where, image)
        box = self._box(entry["bbox"], where, image)
        area = entry.get("area", entry["bbox"][2] * entry["bbox"][3])
        if not _is_number(area):
            raise _AnnotationError(f"has the area {area!r:.40}; expected a number of pixels")
        if area < 0:
            self.warnings.append(f"{where}: its area {area} is negative; its box's is taken")
            area = entry["bbox"][2] * entry["bbox"][3]
        if box is None:
            return None, False
        if mask is not None and not mask_operations().area({"size": [image.height, image.width], "counts": mask}):
            self.warnings.append(f"{where}: its mask is empty; left out")
            return None, False
        return Instance(self._labels[entry["category_id"]], box, mask, crowd, float(area)), damaged

    def _box(self, bbox: Any, where: str, image: ImageEntry) -> Box | None:
        if not _is_box(bbox):
            raise _AnnotationError(f"has the bbox {bbox!r:.80}; expected [left, top, width, height] in pixels")
        left, top, box_width, box_height = map(float, bbox)
        size = f"{image.width} x {image.height}"
        if box_width <= 0 or box_height <= 0:
            self.warnings.append(f"{where}: its box {bbox} has no area; left out")
            return None
        right, bottom = left + box_width, top + box_height
        inside = (max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height))
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            self.warnings.append(f"{where}: its box {bbox} is outside its image, {size}; left out")
            return None
        if inside[2] - inside[0] < MIN_SIDE or inside[3] - inside[1] < MIN_SIDE:
            self.warnings.append(f"{where}: its box {bbox} has no area inside its image, {size}; left out")
            return None
        if max(inside[0] - left, inside[1] - top, right - inside[2], bottom - inside[3]) > _TOLERANCE:
            self.warnings.append(f"{where}: its box {bbox} extends beyond its image, {size}; clipped")
        return inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]

    def _mask(self, segmentation: Any, where: str, image: ImageEntry) -> tuple[bytes | None, bool]:
        """Return compressed run lengths (None: no mask), and whether all polygons are damaged."""
        if segmentation is None or segmentation == []:
            return None, False
        if isinstance(segmentation, dict):
            return _run_lengths(segmentation, image), False
        if not isinstance(segmentation, list):
            raise _AnnotationError("has a segmentation that is neither polygons nor run lengths")
        polygons = [polygon for polygon in segmentation if _is_polygon(polygon, image)]
        if len(polygons) < len(segmentation):
            bad = len(segmentation) - len(polygons)
            self.warnings.append(
                f"{where}: {bad} of its {len(segmentation)} polygons not used; expected 3 or more points each, "
                "[x, y, x, y, x, y, …], in or near the image"
            )
        if not polygons:
            return None, True
        operations = mask_operations()
        return bytes(
            operations.merge(operations.frPyObjects(polygons, image.height, image.width))["counts"]
        ), False


class _AnnotationError(Exception):
    """An annotation that makes its file unusable."""


def _run_lengths(segmentation: dict[str, Any], image: ImageEntry) -> bytes:
    counts, size = segmentation.get("counts"), segmentation.get("size")
    height, width = image.height, image.width
    if not isinstance(counts, list | str) or not isinstance(size, list):
        raise _AnnotationError("has a segmentation without counts and size")
    if size != [height, width]:
        described = " x ".join(f"{side!r:.20}" for side in reversed(size[:3]))
        raise _AnnotationError(f"has a mask of {described} pixels; its image has {width} x {height}")
    operations = mask_operations()
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise _AnnotationError(f"has run lengths that do not add up to {width} x {height} pixels")
        exact = {"size": [height, width], "counts": counts}  # the size of the file may be floats
        return bytes(operations.frPyObjects([exact], height, width)[0]["counts"])
    try:
        encoded = counts.encode("ascii")
        operations.decode({"size": [height, width], "counts": encoded})
    except (RuntimeError, ValueError) as error:  # the library's errors for malformed run lengths
        raise _AnnotationError(f"has damaged run lengths ({' '.join(str(error).split())})") from None
    return encoded


def _is_polygon(polygon: Any, image: ImageEntry) -> bool:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(_is_number, polygon)):
        return False
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    outline = float(np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum())
    side = max(image.width, image.height)
    return outline <= _MAX_OUTLINE and bool((np.abs(points) <= 10 * side).all())


def _is_box(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= _MAX_VALUE
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MAX_VALUE


def _crowd(value: Any) -> bool:
    crowd = {"0": False, "1": True, "false": False, "true": True}.get(str(value).strip().lower())
    if crowd is None:
        raise _AnnotationError(f"has the iscrowd {value!r:.40}; expected 0 or 1")
    return crowd
