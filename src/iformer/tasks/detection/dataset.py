"""Batches of images with boxes and masks, for training and evaluation.

All randomness is a function of (seed, epoch, index of the image), as in `iformer.data.sampling`.

Shape letters: C channels, H and W an image's sides, N objects.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.data.conversion import ValueRange
from iformer.data.detection import DetectionSample, DetectionSet, decode_mask
from iformer.data.images import read_image
from iformer.data.sampling import Key, seeded
from iformer.tasks.class_order import class_order
from iformer.tasks.detection.augment import Canvas
from iformer.tasks.detection.config import DetectionRecipe


def too_many_objects(image_set: DetectionSet, detections: int, *, trained: bool = False) -> list[str]:
    """Return a note if an image has more than `detections` objects, the most that the network reports.

    The note says what to do, at the training or with a network that is `trained`.
    """
    most = image_set.most_objects
    if most <= detections:
        return []
    remedy = f"give --max-detections {most}, or train" if trained else "train"
    return [
        f"{image_set.name}: an image has {most:,} objects, the network reports up to {detections:,}, which "
        f"limits its AP; {remedy} with --set detections={most}"
    ]


def with_class_order(image_set: DetectionSet, class_names: Sequence[str]) -> DetectionSet:
    """Return an image set whose labels are the indices of a network's outputs.

    Objects of other classes are left out. `class_names` may have more classes than the data. If empty, the data
    keeps its own classes.

    Raises:
        DataError: the data has none of the classes.
    """
    order = class_order(class_names, image_set.class_names)
    if not class_names or order == tuple(range(len(class_names))):
        return image_set
    ids = dict(zip(order, image_set.category_ids, strict=True))
    free = itertools.count(max(image_set.category_ids) + 1)
    samples = []
    for sample in image_set.samples:
        labelled = ((order[instance.label], instance) for instance in sample.instances)
        kept = tuple(instance._replace(label=label) for label, instance in labelled if label is not None)
        samples.append(sample._replace(instances=kept))
    return replace(
        image_set,
        class_names=tuple(class_names),
        category_ids=tuple(ids[label] if label in ids else next(free) for label in range(len(class_names))),
        samples=tuple(samples),
    )


class DetectionImages:
    """The images of a `DetectionSet` at their own sizes; the network resizes them."""

    def __init__(
        self,
        image_set: DetectionSet,
        recipe: DetectionRecipe | None = None,
        *,
        masks: bool,
        value_range: ValueRange | None = None,
    ) -> None:
        """Create the data set.

        Args:
            image_set: image files and their objects.
            recipe: recipe with the flips and the colour jitter of training. None: images are not changed.
            masks: add masks to the targets.
            value_range: see `iformer.data.images.read_image`.
        """
        self.image_set, self.value_range = image_set, value_range
        self.masks = masks
        self._seed = recipe.seed if recipe is not None else 0
        self._hflip = recipe.augment.hflip if recipe is not None else 0.0
        strength = recipe.augment.color_jitter if recipe is not None else 0.0
        self._jitter = transforms.ColorJitter(strength, strength, strength) if strength > 0 else None

    def __len__(self) -> int:
        return len(self.image_set)

    def batch(self, keys: Sequence[Key]) -> dict[str, Any]:
        """Read the images of `keys` with their targets.

        Returns:
            `images`: list of uint8 C x H x W; `targets`: list of the dicts that `Detector.forward` takes;
            `indices`: int64 (B).

        Raises:
            DataError: a file cannot be read.
        """
        items = [self._item(*key) for key in keys]
        return {
            "images": [image for image, _ in items],
            "targets": [target for _, target in items],
            "indices": torch.tensor([index for _, index in keys], dtype=torch.int64),
        }

    def _item(self, epoch: int, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = self.image_set.samples[index]
        image = read_image(sample.path, value_range=self.value_range)
        target = _target(sample, masks=self.masks)
        with seeded(self._seed, epoch, index):
            if self._jitter is not None:
                image = self._jitter(image)
            flips = random.random() < self._hflip
        pixels_CHW = pil_to_tensor(image)
        return _flipped(pixels_CHW, target) if flips else (pixels_CHW, target)


class DetectionCanvases(DetectionImages):
    """Training images of the light detector: square canvases, some of them mosaics."""

    def __init__(
        self,
        image_set: DetectionSet,
        recipe: DetectionRecipe,
        *,
        fill: tuple[int, ...],
        value_range: ValueRange | None = None,
    ) -> None:
        """Create the data set; `fill` is the RGB colour, 0 to 255, of pixels that no image covers."""
        super().__init__(image_set, recipe, masks=False, value_range=value_range)
        self._mosaic_epochs = round(recipe.augment.mosaic_until * recipe.epochs)
        self._recipe, self._fill = recipe, fill

    def _item(self, epoch: int, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        with seeded(self._seed, epoch, index, len(self)):  # other random numbers than those of flips and colours
            others = random.sample(range(len(self)), k=min(3, len(self) - 1))
            mosaic = (
                epoch < self._mosaic_epochs and random.random() < self._recipe.augment.mosaic and len(others) == 3
            )
        items = [DetectionImages._item(self, epoch, i) for i in ([index, *others] if mosaic else [index])]
        side = self._recipe.train_size(epoch)
        canvas = Canvas((side, side), self._recipe.augment.scale_jitter, self._fill)
        with seeded(self._seed, epoch, index, len(self) + 1):
            return canvas.mosaic(items) if mosaic else canvas.single(items[0])


def _target(sample: DetectionSample, *, masks: bool) -> dict[str, Tensor]:
    objects = [instance for instance in sample.instances if not instance.crowd]
    boxes_N4 = torch.tensor([instance.box for instance in objects], dtype=torch.float32).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]  # COCO stores widths and heights, torchvision right and bottom edges
    target = {
        "boxes": boxes_N4,
        "labels": torch.tensor([instance.label for instance in objects], dtype=torch.int64),
    }
    if masks:
        masks_NHW = np.zeros((len(objects), sample.height, sample.width), np.uint8)
        for row, instance in enumerate(objects):
            assert instance.mask is not None
            masks_NHW[row] = decode_mask(instance.mask, sample.height, sample.width)
        target["masks"] = torch.from_numpy(masks_NHW)
    return target


def _flipped(pixels_CHW: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    width = pixels_CHW.shape[2]
    boxes = target["boxes"]
    flipped = {
        **target,
        "boxes": torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1),
    }
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(2)
    return pixels_CHW.flip(2), flipped
