"""Data as people have it: small copies of layouts and files from public bug reports."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

RED = (220, 20, 20)


def picture(path: Path, seed: int, *, size: tuple[int, int] = (40, 36)) -> Path:
    """A picture of coloured noise; another seed gives another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def classes(root: Path, names: Sequence[str] = ("cat", "dog"), *, count: int = 6, first: int = 0) -> Path:
    """One folder of pictures for each class."""
    for label, name in enumerate(names):
        for number in range(count):
            picture(root / name / f"{number}.jpg", 1000 * label + first + number)
    return root


def rename(path: Path, name: bytes) -> None:
    """Give a file or folder a name of any bytes."""
    os.rename(path, os.fsencode(path.parent) + b"/" + name)


def red_square(number: int) -> tuple[npt.NDArray[np.uint8], tuple[int, int, int, int]]:
    """A gray image, 96 x 120 x 3, with a red square, and the square's box: left, top, width and height."""
    pixels = np.random.default_rng(number).integers(90, 110, (96, 120, 3)).astype(np.uint8)
    left, top = 20 + 3 * number, 15 + 4 * number
    pixels[top : top + 30, left : left + 28] = RED
    return pixels, (left, top, 28, 30)


def coco(root: Path, splits: dict[str, int], names: Sequence[str] = ("red",)) -> dict[str, dict[str, Any]]:
    """COCO files and folders of images for each split; returns the documents, for `write_coco` after a change."""
    documents = {}
    for split, count in splits.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for number in range(count):
            pixels, (x, y, width, height) = red_square(number)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number + 1, "file_name": f"{number}.png", "width": 120, "height": 96})
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation = {"id": number + 1, "image_id": number + 1, "category_id": 1 + number % len(names)}
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0, "segmentation": [corners]}
            annotations.append(annotation | box)
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(names)]
        documents[split] = {"images": images, "annotations": annotations, "categories": categories}
    write_coco(root, documents)
    return documents


def write_coco(root: Path, documents: dict[str, dict[str, Any]]) -> None:
    """Write `train.json`, `val.json`."""
    for split, document in documents.items():
        (root / f"{split}.json").write_text(json.dumps(document))


def masks(root: Path, splits: dict[str, int], *, value: int = 1) -> Path:
    """Images and masks of the classes background and object; objects have the given value."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("background\nobject\n")
    for split, count in splits.items():
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            pixels, (x, y, width, height) = red_square(number)
            mask = np.zeros((96, 120), np.uint8)
            mask[y : y + height, x : x + width] = value
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    return root
