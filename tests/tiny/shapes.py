"""A tiny data set for detection and segmentation: coloured shapes on noise, with boxes and masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ("disc", "square")
COLOURS = ((220, 60, 50), (50, 90, 230))


def draw(
    size: int, objects: int, generator: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image, size x size x 3, and its objects: (class, visible pixels)."""
    pixels = generator.integers(90, 140, (size, size, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:size, :size]
    found: list[tuple[int, np.ndarray]] = []
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    for index in range(objects):
        label = int(generator.integers(2))
        half = int(generator.integers(size // 8, size // 5))
        cell = corners[index]  # each object in a quarter of its own
        top, left = (int(generator.integers(half, size // 2 - half)) + cell[axis] * size // 2 for axis in (0, 1))
        if label == 0:
            inside = (rows - top) ** 2 + (columns - left) ** 2 <= half**2
        else:
            inside = (abs(rows - top) <= half) & (abs(columns - left) <= half)
        pixels[inside] = COLOURS[label]
        found.append((label, inside))
    return pixels, found


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    lengths: list[int] = np.diff(np.concatenate([[0], changes])).tolist()
    return lengths


def colour_the_masks(folder: Path) -> Path:
    """Store the masks of `make_shapes` as colours, and their table as CVAT does."""
    colours = {"background": (0, 0, 0), **dict(zip(CLASSES, COLOURS, strict=True))}
    for path in folder.glob("masks/*/*.png"):
        Image.fromarray(np.array(list(colours.values()), np.uint8)[np.asarray(Image.open(path))]).save(path)
    (folder / "classes.txt").unlink()
    lines = [f"{name}:{red},{green},{blue}::" for name, (red, green, blue) in colours.items()]
    (folder / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines]) + "\n")
    return folder


def make_shapes(folder: Path, *, train: int = 8, val: int = 4, size: int = 96, empty: int = 1) -> Path:
    """Write `annotations/`, `images/`, `masks/` and `classes.txt`; the last `empty` images have no object."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            objects = 0 if number >= count - empty else 1 + number % 3
            pixels, found = draw(size, objects, generator)
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.png")
            mask = np.zeros((size, size), np.uint8)
            for label, inside in found:
                mask[inside] = label + 1
                rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
                left, top = int(columns[0]), int(rows[0])
                box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 + number,
                        "category_id": 7 + label,
                        "bbox": box,
                        "area": int(inside.sum()),
                        "iscrowd": 0,
                        "segmentation": {"size": [size, size], "counts": run_lengths(inside)},
                    }
                )
            Image.fromarray(mask).save(folder / "masks" / split / f"{number}.png")
            images.append({"id": 100 + number, "file_name": f"{number}.png", "width": size, "height": size})
        (folder / "annotations").mkdir(exist_ok=True)
        categories = [{"id": 7 + label, "name": name} for label, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (folder / "classes.txt").write_text("\n".join(["background", *CLASSES]) + "\n")
    return folder
