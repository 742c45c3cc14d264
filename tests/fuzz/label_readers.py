"""The readers of object labels, for `fuzz.readers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from fuzz.mutations import BYTES, Mutation, json_values, yaml_values
from iformer.data.segmentation import read_mask
from iformer.data.sources.detection import load_detection
from iformer.data.sources.masks import load_semantic
from tiny.labels import make_coco, make_labelme, make_voc, make_yolo
from tiny.shapes import colour_the_masks, make_shapes

LABEL_READERS: dict[str, tuple[str, tuple[Mutation, ...], Callable[[Path], object]]] = {
    "data.yaml": ("yolo/data.yaml", (yaml_values, *BYTES), lambda f: load_detection(f, workers=1)),
    "YOLO labels": (
        "yolo/labels/train/train-0.txt",
        BYTES,
        lambda f: load_detection(f.parents[2], workers=1),
    ),
    "list of images": ("lists/train.txt", BYTES, lambda f: load_detection(f.parent, workers=1)),
    "VOC annotations": (
        "voc/Annotations/train-0.xml",
        BYTES,
        lambda f: load_detection(f.parents[1], workers=1),
    ),
    "VOC list of images": (
        "voc/ImageSets/Main/train.txt",
        BYTES,
        lambda f: load_detection(f.parents[2], workers=1),
    ),
    "LabelMe annotations": (
        "labelme/train/train-0.json",
        (json_values, *BYTES),
        lambda f: load_detection(f.parents[1], workers=1),
    ),
    "COCO annotations of one file": (
        "one/result.json",
        (json_values, *BYTES),
        lambda f: load_detection(f.parent, workers=1),
    ),
    "table of colours": ("coloured/labelmap.txt", BYTES, lambda f: load_semantic(f.parent, workers=1)),
    "mask in colours": (
        "coloured/masks/train/0.png",
        BYTES,
        lambda f: read_mask(f, colours=((0, 0, 0), (220, 60, 50), (50, 90, 230))),
    ),
}
"""File, how it is changed, and what reads it."""


def make_label_files(folder: Path) -> None:
    """Write a sound file for each reader."""
    make_yolo(folder / "yolo")
    make_voc(folder / "voc")
    make_labelme(folder / "labelme")
    lists = make_yolo(folder / "lists")
    for split in ("train", "val"):
        names = [f"images/{split}/{path.name}\n" for path in sorted((lists / "images" / split).iterdir())]
        (lists / f"{split}.txt").write_text("".join(names))
    (lists / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    one = make_coco(folder / "one")
    content = json.loads((one / "annotations" / "instances_train.json").read_text())
    for split in ("train", "val"):
        (one / "annotations" / f"instances_{split}.json").unlink()
    for image in content["images"]:
        image["file_name"] = f"images/train/{image['file_name']}"
    (one / "result.json").write_text(json.dumps(content))
    colour_the_masks(make_shapes(folder / "coloured"))
