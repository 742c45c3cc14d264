"""One tiny data set in the formats of COCO, YOLO, Pascal VOC and LabelMe, each written here by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog")
SPLITS = {"train": 4, "val": 3}


class Object(NamedTuple):
    """An object: its class, and the corners of its outline in pixels."""

    label: int
    outline: tuple[tuple[int, int], ...]

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        xs, ys = zip(*self.outline, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


def objects_of(number: int, width: int, height: int) -> list[Object]:
    """The objects of an image: none, a triangle, or a triangle and a hexagon."""
    x, y = 3 + 2 * number, 5 + number
    triangle = Object(number % 2, ((x, y), (x + 20, y + 3), (x + 7, y + 18)))
    hexagon = Object(1, ((40, 20), (50, 22), (width - 1, 30), (50, height), (41, height - 4), (36, 28)))
    return [[triangle, hexagon], [triangle], [triangle, hexagon], []][number % 4]


def images_of(split: str) -> list[tuple[str, int, int, list[Object]]]:
    """Name, width, height and objects of each image of a split."""
    found = []
    for number in range(SPLITS[split]):
        width, height = 64 + 8 * number, 48 + number
        found.append((f"{split}-{number}.png", width, height, objects_of(number, width, height)))
    return found


def _write_image(path: Path, width: int, height: int) -> None:
    generator = np.random.default_rng(sum(path.name.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


def make_coco(folder: Path) -> Path:
    """`annotations/instances_train.json` and `images/train/`."""
    (folder / "annotations").mkdir(parents=True)
    for split in SPLITS:
        images, annotations = [], []
        for image_id, (name, width, height, objects) in enumerate(images_of(split), start=1):
            _write_image(folder / "images" / split / name, width, height)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            annotations += [_annotation(image_id, found) for found in objects]
        content = {"images": images, "annotations": annotations, "categories": categories()}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(numbered(content)))
    return folder


def categories() -> list[dict[str, Any]]:
    """COCO's list of the classes."""
    return [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)]


def numbered(content: dict[str, Any]) -> dict[str, Any]:
    """COCO's content with ids of the annotations."""
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
    return content


def _annotation(image_id: int, found: Object) -> dict[str, Any]:
    left, top, right, bottom = found.edges
    x, y = np.array(found.outline).T
    return {
        "image_id": image_id,
        "category_id": found.label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2,
        "iscrowd": 0,
        "segmentation": [[value for point in found.outline for value in point]],
    }


def make_yolo(folder: Path) -> Path:
    """`data.yaml`, `images/train/` and `labels/train/`: polygons, with the six decimals that tools write."""
    for split in SPLITS:
        (folder / "labels" / split).mkdir(parents=True)
        for name, width, height, objects in images_of(split):
            _write_image(folder / "images" / split / name, width, height)
            lines = [
                " ".join([str(found.label), *(f"{x / width:.12f} {y / height:.12f}" for x, y in found.outline)])
                for found in objects
            ]
            if lines:
                (folder / "labels" / split / name).with_suffix(".txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\nnames: [cat, dog]\n")
    return folder


def make_voc(folder: Path) -> Path:
    """`Annotations/`, `JPEGImages/` and `ImageSets/Main/`: boxes in pixels that count from 1."""
    for kind in ("Annotations", "ImageSets/Main"):
        (folder / kind).mkdir(parents=True)
    for split in SPLITS:
        names = []
        for name, width, height, objects in images_of(split):
            _write_image(folder / "JPEGImages" / name, width, height)
            text = [
                f"<annotation><filename>{name}</filename><size><width>{width}</width><height>{height}</height>"
            ]
            text.append("<depth>3</depth></size>")
            for found in objects:
                left, top, right, bottom = found.edges
                text.append(f"<object><name>{CLASSES[found.label]}</name><difficult>0</difficult><bndbox>")
                text.append(
                    f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
                )
                text.append("</bndbox></object>")
            stem = Path(name).stem
            (folder / "Annotations" / f"{stem}.xml").write_text("\n".join([*text, "</annotation>"]))
            names.append(stem)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def make_labelme(folder: Path) -> Path:
    """`train/` and `val/`, a JSON file beside each image."""
    for split in SPLITS:
        for name, width, height, objects in images_of(split):
            _write_image(folder / split / name, width, height)
            shapes = [
                {"label": CLASSES[found.label], "points": [list(map(float, point)) for point in found.outline]}
                | {"group_id": None, "shape_type": "polygon", "flags": {}}
                for found in objects
            ]
            content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
            content |= {"imageHeight": height, "imageWidth": width}
            (folder / split / name).with_suffix(".json").write_text(json.dumps(content))
    return folder


MAKERS = {"coco": make_coco, "yolo": make_yolo, "voc": make_voc, "labelme": make_labelme}
