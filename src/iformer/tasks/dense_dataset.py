"""Training and evaluation images of detection and segmentation, as sources of batches.

Whatever is random here is a function of (seed, epoch, index of the image), as in `iformer.data.sampling`.

Shape letters: C channels, H and W an image's sides, N objects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from iformer.config.dense import IGNORED
from iformer.config.dense_recipe import DetectionRecipe, SegmentationRecipe
from iformer.data.detection import DetectionSample, DetectionSet, decode_mask
from iformer.data.images import read_image
from iformer.data.sampling import Key, seeded
from iformer.data.segmentation import SemanticSet, read_mask

_MOST_OF_ONE_CLASS = 0.75
_TRIES = 10


class DetectionImages:
    """The images of a `DetectionSet` at their own sizes; the network resizes them."""

    def __init__(self, image_set: DetectionSet, recipe: DetectionRecipe | None = None, *, masks: bool) -> None:
        """`recipe`: flips and colours of training; None: nothing is changed. `masks`: targets have masks."""
        self.image_set = image_set
        self.masks = masks
        self._seed = recipe.seed if recipe is not None else 0
        self._hflip = recipe.hflip if recipe is not None else 0.0
        strength = recipe.color_jitter if recipe is not None else 0.0
        self._jitter = transforms.ColorJitter(strength, strength, strength) if strength > 0 else None

    def __len__(self) -> int:
        return len(self.image_set)

    def batch(self, keys: Sequence[Key]) -> dict[str, Any]:
        """`images`: list of uint8 C x H x W; `targets`: list of what `Detector.forward` takes; `indices`.

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
        image = read_image(sample.path)
        target = _target(sample, masks=self.masks)
        with seeded(self._seed, epoch, index):
            if self._jitter is not None:
                image = self._jitter(image)
            flips = random.random() < self._hflip
        pixels_CHW = image_tensor(image)
        return _flipped(pixels_CHW, target) if flips else (pixels_CHW, target)


class SemanticImages:
    """The images of a `SemanticSet`: training cuts squares out of resized ones, evaluation takes them whole."""

    def __init__(
        self,
        image_set: SemanticSet,
        recipe: SegmentationRecipe | None = None,
        *,
        size: int,
        max_size: int,
        fill: tuple[float, float, float],
    ) -> None:
        """Describe the images.

        Args:
            recipe: sizes, crops, flips and colours of training; None: only the resize of evaluation, while
                masks keep their own size.
            size, max_size: see `iformer.config.dense.DenseConfig`.
            fill: colour (0 to 1) of what a crop has beyond the image.
        """
        self.image_set = image_set
        self.recipe, self.size, self.max_size = recipe, size, max_size
        self._fill = tuple(round(255 * value) for value in fill)
        self._distort = v2.RandomPhotometricDistort() if recipe is not None and recipe.photometric else None

    def __len__(self) -> int:
        return len(self.image_set)

    def batch(self, keys: Sequence[Key]) -> dict[str, Any]:
        """Training: `images` uint8 B x C x size x size, `masks` int64 B x size x size. Else lists of them.

        Raises:
            DataError: a file cannot be read.
        """
        items = [self._item(*key) for key in keys]
        images, masks = [image for image, _ in items], [mask for _, mask in items]
        indices = torch.tensor([index for _, index in keys], dtype=torch.int64)
        if self.recipe is None:
            return {"images": images, "masks": masks, "indices": indices}
        return {"images": torch.stack(images), "masks": torch.stack(masks), "indices": indices}

    def _item(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        sample = self.image_set.samples[index]
        image = read_image(sample.path)
        mask_HW = read_mask(sample.mask, zero_is_ignored=self.image_set.zero_is_ignored)
        if self.recipe is None:
            image = image.resize(fitted(image.size, self.size, self.max_size), Image.Resampling.BILINEAR)
            return image_tensor(image), torch.from_numpy(mask_HW).long()
        with seeded(self.recipe.seed, epoch, index):
            return self._augmented(image, mask_HW, self.recipe)

    def _augmented(
        self, image: Image.Image, mask_HW: np.ndarray, recipe: SegmentationRecipe
    ) -> tuple[Tensor, Tensor]:
        factor = random.uniform(*recipe.resize)
        width, height = fitted(image.size, round(self.size * factor), round(self.max_size * factor))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        mask = Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST)
        side = self.size
        for _ in range(_TRIES):
            left, top = random.randint(0, max(0, width - side)), random.randint(0, max(0, height - side))
            window = (left, top, min(left + side, width), min(top + side, height))
            cut = np.asarray(mask.crop(window))
            counts = np.bincount(cut[cut != IGNORED].ravel(), minlength=1)
            if counts.sum() > 0 and counts.max() < _MOST_OF_ONE_CLASS * counts.sum():
                break  # a window of little but sky teaches little
        square = Image.new("RGB", (side, side), self._fill)
        square.paste(image.crop(window))
        pixels_CHW = image_tensor(square)
        mask_square = np.full((side, side), IGNORED, np.uint8)
        mask_square[: cut.shape[0], : cut.shape[1]] = cut
        if self._distort is not None:
            pixels_CHW = self._distort(pixels_CHW)
        target_HW = torch.from_numpy(mask_square).long()
        if random.random() < recipe.hflip:
            pixels_CHW, target_HW = pixels_CHW.flip(2), target_HW.flip(1)
        return pixels_CHW, target_HW


def fitted(size: tuple[int, int], shorter: int, longest: int) -> tuple[int, int]:
    """Width and height that an image of such a size is resized to.

    Its shorter side becomes `shorter` pixels, or less where its longer side would be more than `longest`.
    """
    width, height = size
    scale = min(shorter / min(width, height), longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def image_tensor(image: Image.Image) -> Tensor:
    """A decoded RGB image as uint8 C x H x W."""
    pixels_HWC = torch.from_numpy(np.array(image))
    return pixels_HWC.permute(2, 0, 1)


def _target(sample: DetectionSample, *, masks: bool) -> dict[str, Tensor]:
    objects = [instance for instance in sample.instances if not instance.crowd]
    boxes_N4 = torch.tensor([instance.box for instance in objects], dtype=torch.float32).reshape(-1, 4)
    boxes_N4[:, 2:] += boxes_N4[:, :2]  # COCO has widths and heights, torchvision right and bottom edges
    target = {
        "boxes": boxes_N4,
        "labels": torch.tensor([instance.label for instance in objects], dtype=torch.int64),
    }
    if masks:
        masks_NHW = np.zeros((len(objects), sample.height, sample.width), np.uint8)
        for position, instance in enumerate(objects):
            assert instance.mask is not None
            masks_NHW[position] = decode_mask(instance.mask, sample.height, sample.width)
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
