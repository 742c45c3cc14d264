"""Sets of images with annotated objects, for detection and instance segmentation.

Shape letters: H and W are an image's height and width.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iformer.data.samples import check_class_names
from iformer.dependencies import require


class Instance(NamedTuple):
    """One annotated object."""

    label: int
    """Index into the set's `class_names`."""
    box: tuple[float, float, float, float]
    """Left, top, width and height in pixels, inside the image."""
    mask: bytes | None
    """COCO's compressed run lengths over the whole image; None if the annotation has no mask."""
    crowd: bool
    """Whether this is a region of many objects. It is not trained on; detections in it do not count as wrong."""
    area: float
    """Annotated area in square pixels, by which metrics group objects into small, medium and large ones."""


class DetectionSample(NamedTuple):
    """One image and its objects, possibly none."""

    path: Path
    image_id: int
    height: int
    width: int
    instances: tuple[Instance, ...]


@dataclass(frozen=True, kw_only=True)
class DetectionSet:
    """The images of one split (training or validation) of a data set with annotated objects."""

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """COCO's id of each class."""
    samples: tuple[DetectionSample, ...] = field(repr=False)
    root: Path
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_class_names(self.class_names, self.name)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def has_masks(self) -> bool:
        """Whether every object (crowds aside) has a mask."""
        return all(i.mask is not None for sample in self.samples for i in sample.instances if not i.crowd)

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of objects of each class, crowds aside."""
        counts = Counter(i.label for sample in self.samples for i in sample.instances if not i.crowd)
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    @property
    def most_objects(self) -> int:
        """Largest number of objects in an image, crowds aside."""
        return max((sum(not i.crowd for i in sample.instances) for sample in self.samples), default=0)

    def ground_truth(self) -> dict[str, Any]:
        """Return the set in COCO's annotation format, from which COCO's metrics are computed."""
        annotations: list[dict[str, Any]] = []
        for sample in self.samples:
            for instance in sample.instances:
                annotation: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": self.category_ids[instance.label],
                    "bbox": list(instance.box),
                    "area": instance.area,
                    "iscrowd": int(instance.crowd),
                }
                if instance.mask is not None:
                    counts = instance.mask.decode("ascii")
                    annotation["segmentation"] = {"size": [sample.height, sample.width], "counts": counts}
                annotations.append(annotation)
        return {
            "images": [
                {"id": s.image_id, "file_name": s.path.name, "height": s.height, "width": s.width}
                for s in self.samples
            ],
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the class names and of each image's relative path, file size and objects.

        Raises:
            OSError: a file no longer exists.
        """
        digest = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogateescape"))
        for sample in self.samples:
            relative = os.path.relpath(sample.path, self.root)
            line = f"{relative}\0{sample.path.stat().st_size}\0{sample.instances}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DetectionSplits:
    """Training and validation images of the same classes."""

    train: DetectionSet
    val: DetectionSet
    warnings: tuple[str, ...] = ()
    split_off: bool = False
    """Whether the validation images were split off from the training images, because the data has none."""


def decode_mask(mask: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Decode run lengths (see `Instance.mask`) to a mask, uint8 H x W, of 0 and 1.

    Raises:
        MissingDependencyError: faster-coco-eval is not installed.
    """
    decoded: npt.NDArray[np.uint8] = mask_operations().decode({"size": [height, width], "counts": mask})
    return decoded


def encode_mask(mask_HW: npt.NDArray[np.uint8]) -> bytes:
    """Encode a mask, uint8 H x W, as run lengths; the inverse of `decode_mask`.

    Raises:
        MissingDependencyError: faster-coco-eval is not installed.
    """
    counts: bytes = mask_operations().encode(np.asfortranarray(mask_HW))["counts"]
    return counts


def mask_operations() -> Any:
    """Return the `mask` module of faster-coco-eval, which works on COCO's run-length encoded masks.

    Raises:
        MissingDependencyError: faster-coco-eval is not installed.
    """
    return require("faster_coco_eval", extra="detect").mask
