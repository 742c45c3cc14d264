"""The annotated images of one split, in COCO's terms: the common result of the readers of all formats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iformer.data.images import MAX_PIXELS, image_size
from iformer.errors import DataError
from iformer.files import read_at_most

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""


class ImageEntry(NamedTuple):
    """Path of an image, and its height and width in pixels according to the annotations."""

    path: Path
    height: int
    width: int


@dataclass(kw_only=True)
class AnnotatedSplit:
    """Images and objects of one split. `iformer.data.sources.detection` checks them."""

    source: Path
    """The file or folder that messages name."""
    images: dict[int, ImageEntry]
    """Images by id."""
    class_names: dict[int, str]
    """Class names by category id, in the order of the labels."""
    objects: list[Any]
    """COCO's annotations: `image_id`, `category_id`, `bbox`, and optionally `segmentation`, `area`, `iscrowd` and
    `attributes`, of which CVAT's `rotation` is read."""
    places: list[str] = field(default_factory=list)
    """Where each object was read, for messages. Empty: messages name the object's id."""
    warnings: list[str] = field(default_factory=list)
    """Files and objects that the reader left out, one line each."""
    errors: list[str] = field(default_factory=list)
    """Reasons why the split is unusable, one line each."""


class LabelledObject(NamedTuple):
    """An object of a format that has no ids."""

    name: str
    box: Box
    polygons: tuple[Sequence[Point], ...]
    """Outlines in pixels; empty if the object has a box only."""
    crowd: bool
    place: str
    """Where the object was read, for messages."""
    rotation: float = 0.0
    """Angle in degrees by which the box is rotated about its centre."""


@dataclass(kw_only=True)
class LabelledImage:
    """An image of a format that has one file of labels for each image."""

    path: Path
    size: tuple[int, int]
    """Width and height in pixels; (0, 0) if the file cannot be read."""
    objects: list[LabelledObject] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def joined(source: Path, labelled: Iterable[LabelledImage], class_names: Sequence[str]) -> AnnotatedSplit:
    """Return a split of the labelled images. Images and classes get ids from 1, in the given order."""
    split = AnnotatedSplit(source=source, images={}, class_names=dict(enumerate(class_names, start=1)), objects=[])
    numbers = {name: number for number, name in split.class_names.items()}
    for image_id, image in enumerate(labelled, start=1):
        width, height = image.size
        split.warnings += image.warnings
        split.errors += image.errors
        if width * height > MAX_PIXELS:
            split.errors.append(f"{image.path}: has labels for {width:,} x {height:,} pixels; too many")
        readable = 0 < width * height <= MAX_PIXELS
        # the check of the images names the unreadable ones
        split.images[image_id] = ImageEntry(image.path, *((height, width) if readable else (1, 1)))
        for found in image.objects if readable else ():
            split.places.append(found.place)
            split.objects.append(
                {
                    "image_id": image_id,
                    "category_id": numbers[found.name],
                    "bbox": [round(value, 6) for value in found.box],
                    "iscrowd": int(found.crowd),
                    "area": _area(found),
                    "segmentation": [
                        [round(value, 6) for point in outline for value in point] for outline in found.polygons
                    ],
                    "attributes": {"rotation": found.rotation},
                }
            )
    return split


def upright(box: Box, degrees: float) -> Box:
    """Return the smallest upright box that contains a box rotated about its centre; left, top, width, height."""
    left, top, width, height = box
    cosine, sine = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    wide, high = width * cosine + height * sine, width * sine + height * cosine
    return left + (width - wide) / 2, top + (height - high) / 2, wide, high


def bounds(points: Sequence[Point]) -> Box:
    """Return the smallest box that contains all points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def stored_size(path: Path) -> tuple[int, int]:
    """Return width and height from an image's header; (0, 0) for an unreadable image, which the check reports."""
    try:
        return image_size(path)
    except DataError:
        return 0, 0


def read_bytes(path: Path, *, max_bytes: int) -> bytes:
    """Return the contents of a file of labels.

    Raises:
        DataError: the file is missing, is not a regular file, or is larger than `max_bytes`.
    """
    try:
        contents = read_at_most(path, max_bytes)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if contents is None:
        raise DataError(f"{path}: has more than {max_bytes / 2**20:g} MiB, the limit for a file of labels")
    return contents


def read_lines(path: Path, *, max_bytes: int) -> list[str]:
    """Return the lines of a UTF-8 text file without blank lines and surrounding spaces.

    Raises:
        DataError: the file cannot be read (see `read_bytes`), or is not UTF-8.
    """
    try:
        text = read_bytes(path, max_bytes=max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text in UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def finite(text: object) -> float:
    """Convert a text or number to a finite float.

    Raises:
        ValueError: `text` is not a number, is not finite, or has an absolute value above 1e15.
    """
    if isinstance(text, bool) or not isinstance(text, str | int | float) or len(str(text)) > 400:
        raise ValueError(f"{text!r:.40} is no number")
    if isinstance(text, str) and ("_" in text or not text.isascii()):  # Python's float takes 1_0 and Arabic digits
        raise ValueError(f"{text!r:.40} is no number")
    number = float(text)
    if not math.isfinite(number) or abs(number) > 1e15:
        raise ValueError(f"{text!r:.40} is not a finite number")
    return number


def _area(found: LabelledObject) -> float:
    """Return the area of an object's outlines or, without outlines, of its box, in square pixels.

    The area is right only if no outline crosses itself.
    """
    if not found.polygons:
        return found.box[2] * found.box[3]
    total = 0.0
    for outline in found.polygons:
        x, y = np.asarray(outline, np.float64).T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return round(total, 6)
