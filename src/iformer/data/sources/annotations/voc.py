"""Reader of Pascal VOC's annotations: one XML file for each image."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element

from iformer.data.listing import entries, natural_key, natural_order
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
    finite,
    joined,
    read_lines,
    stored_size,
)
from iformer.data.sources.annotations.xml import read_xml
from iformer.data.sources.layout import SPLIT_NAMES, writable
from iformer.errors import DataError

_MAX_LIST_BYTES = 2**26
_DIFFICULT = {
    **dict.fromkeys(("", "0", "0.0", "false", "unspecified"), False),
    **dict.fromkeys(("1", "1.0", "true"), True),
}
_IMAGES = ("JPEGImages", "images")


def find_voc(root: Path) -> dict[str, list[Path]]:
    """Return the XML files of each split: "train" and "val", or "all" where the folder is not split.

    The splits are those of `ImageSets/Main/train.txt` and `val.txt`, or folders named train and val. Empty if the
    folder has no XML file.

    Raises:
        DataError: a list cannot be read.
    """
    annotations = next((root / name for name in ("Annotations", "annotations") if _has_xml(root / name)), None)
    if annotations is None:
        found = {split: _xml_files(folder) for split, folder in split_folders(root).items()}
        found = {split: files for split, files in found.items() if files}
        return found or ({"all": files} if (files := _xml_files(root)) else {})
    lists = root / "ImageSets" / "Main"
    splits = {}
    for split in ("train", "val"):
        path = next(
            (lists / f"{name}.txt" for name in SPLIT_NAMES[split] if (lists / f"{name}.txt").is_file()), None
        )
        if path is not None:
            lines = read_lines(path, max_bytes=_MAX_LIST_BYTES)
            splits[split] = [_listed(annotations, line) for line in lines]
    return splits or {"all": _xml_files(annotations)}


def _listed(annotations: Path, line: str) -> Path:
    """Return the XML file that a line names: a name, optionally in quotes, optionally with a mark -1, 0 or 1."""
    marked = re.fullmatch(r"(.*\S)\s+(?:-1|0|1)", line)
    if marked and not (annotations / f"{line}.xml").is_file():
        line = marked[1]
    if len(line) > 2 and line[0] == line[-1] == '"':
        line = line[1:-1]
    return annotations / f"{line}.xml"


def read_voc(root: Path, files: dict[str, list[Path]]) -> tuple[dict[str, AnnotatedSplit], list[str]]:
    """Read the files of `find_voc`; return the splits and notes.

    An object that is marked as difficult becomes a crowd region: it is neither trained on nor counted. Faults of a
    file are collected in the `errors` of its split.

    Raises:
        DataError: the list of classes cannot be read.
    """
    read = {
        split: list(map_in_threads(lambda path: _read_file(path, root), paths)) for split, paths in files.items()
    }
    images = [image for found in read.values() for image in found]
    notes = _to_zero_based(images)
    if not (root / "ImageSets").is_dir():  # its lists may leave out images on purpose
        notes += without_labels(root, (image.path for image in images))
    names = listed_names(root) or sorted(
        {found.name for image in images for found in image.objects}, key=natural_key
    )
    for image in images:
        for found in image.objects:
            if found.name not in names:
                image.errors.append(
                    f"{found.place}: is of the class {found.name}, which the list of classes lacks"
                )
        image.objects = [found for found in image.objects if found.name in names]
    return {split: joined(root, found, names) for split, found in read.items()}, notes


def _to_zero_based(images: Iterable[LabelledImage]) -> list[str]:
    """Convert boxes from VOC's inclusive pixels, counted from 1; return notes.

    If a box begins below 1, pixels already count from 0: no box is changed, and a note says so.
    """
    images = list(images)
    if any(min(found.box[:2]) < 1 for image in images for found in image.objects):
        return ["boxes begin at 0, where Pascal VOC begins at 1; they are taken as they are"]
    for image in images:
        image.objects = [
            found._replace(box=(left - 1, top - 1, width + 1, height + 1))
            for found in image.objects
            for left, top, width, height in [found.box]
        ]
    return []


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and any(entry.name.lower().endswith(".xml") for entry in entries(folder))


def _xml_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return natural_order(Path(entry.path) for entry in entries(folder) if entry.name.lower().endswith(".xml"))


def _read_file(path: Path, root: Path) -> LabelledImage:
    try:
        tree = read_xml(path)
    except DataError as error:
        return LabelledImage(path=path, size=(0, 0), errors=[str(error)])
    if tree.tag != "annotation":
        return LabelledImage(
            path=path, size=(0, 0), errors=[f"{path}: begins with <{tree.tag:.40}>; expected <annotation>"]
        )
    name = _text(tree, "filename")
    folders = [*(root / images for images in _IMAGES), root]
    image = LabelledImage(path=find_image(name, path, folders), size=(0, 0))
    image.warnings += copied_labels(image.path, path)
    try:
        width, height = (int(finite(_text(tree, f"size/{side}") or "0")) for side in ("width", "height"))
    except ValueError as error:
        image.errors.append(f"{path}: has a size that is none ({error})")
        return image
    # tools that do not know the size write 0
    image.size = (width, height) if width > 0 and height > 0 else stored_size(image.path)
    for number, found in enumerate(tree.findall("object"), start=1):
        place = f"{path}, object {number}"
        try:
            image.objects.append(_object(found, place))
        except ValueError as error:
            image.errors.append(f"{place}: {error}")
    return image


def _object(found: Element, place: str) -> LabelledObject:
    name = writable(_text(found, "name"))
    if not name:
        raise ValueError("has no name")
    edges = []
    for edge in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(found, f"bndbox/{edge}")
        if not text:
            raise ValueError(f"has no bndbox with {edge}")
        edges.append(finite(text))
    left, top, right, bottom = edges
    return LabelledObject(
        name,
        (left, top, right - left, bottom - top),
        (),
        _difficult(_text(found, "difficult")),
        place,
        _rotation(found),
    )


def _difficult(text: str) -> bool:
    if text.lower() not in _DIFFICULT:
        raise ValueError(f"has <difficult>{text:.40}; expected 0 or 1")
    return _DIFFICULT[text.lower()]


def _rotation(found: Element) -> float:
    """Return the angle in degrees that CVAT writes beside the box before the rotation."""
    attributes = {_text(attribute, "name"): attribute for attribute in found.iterfind("attributes/attribute")}
    return finite(_text(attributes["rotation"], "value") or "0") if "rotation" in attributes else 0.0


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
