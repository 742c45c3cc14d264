"""Batches of images with masks: square crops of resized images for training, whole images for evaluation.

All randomness is a function of (seed, epoch, index of the image), as in `iformer.data.sampling`.

Shape letters: B batch, C channels, H and W an image's sides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from iformer.config.preprocessing import Preprocessing
from iformer.config.segmenter import IGNORED
from iformer.data.conversion import ValueRange
from iformer.data.images import read_image
from iformer.data.sampling import Key, seeded
from iformer.data.segmentation import SemanticSet
from iformer.data.transforms import Transform, eval_transform
from iformer.tasks.class_order import class_order
from iformer.tasks.segmentation.config import SegmentationRecipe

_MAX_CLASS_SHARE = 0.75
"""Largest share of a crop's labelled pixels that one class may cover; otherwise another crop is tried."""
_CROP_TRIES = 10
"""Largest number of crops that are tried for one image; the last one is used in any case."""


def with_class_order(image_set: SemanticSet, class_names: Sequence[str]) -> SemanticSet:
    """Return an image set whose masks have the class indices of a network's outputs.

    Pixels of other classes are ignored. `class_names` may have more classes than the data. If empty, the data
    keeps its own classes.

    Raises:
        DataError: the data has none of the classes.
    """
    order = class_order(class_names, image_set.class_names)
    if not class_names or order == tuple(range(len(class_names))):
        return image_set
    classes = tuple(IGNORED if label is None else label for label in order)
    return replace(image_set, class_names=tuple(class_names), classes_of_masks=classes, palette=())


class PhotometricDistortion(v2.RandomPhotometricDistort):  # type: ignore[misc]  # torchvision has no types
    """torchvision's photometric distortion without the exchange of colour channels, as MMSegmentation has it.

    Colours tell many classes apart. With exchanged channels half of all skies would not be blue.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


class SemanticImages:
    """The images of a `SemanticSet`: cropped squares for training, whole images for evaluation."""

    def __init__(
        self,
        image_set: SemanticSet,
        recipe: SegmentationRecipe | None = None,
        *,
        size: int,
        max_size: int,
        fill: tuple[float, float, float],
        value_range: ValueRange | None = None,
        transform: Transform | None = None,
    ) -> None:
        """Create the data set.

        Args:
            image_set: image files and their masks.
            recipe: recipe with the random changes of training. None: evaluation, in which images are only resized
                and masks keep their own size.
            size: shorter side of a resized image, and side of a crop, in pixels.
            max_size: limit of the longer side of a resized image in pixels; the shorter side may then be smaller.
            fill: RGB colour, 0 to 1, of the part of a crop that lies outside the image.
            value_range: see `iformer.data.images.read_image`.
            transform: maps an image to pixels for evaluation. None: resize to `fitted`.
        """
        self.image_set, self.value_range = image_set, value_range
        self.recipe, self.size, self.max_size = recipe, size, max_size
        self._classes: npt.NDArray[np.uint8] | None = None
        if image_set.classes_of_masks:
            self._classes = np.full(256, IGNORED, np.uint8)
            self._classes[: len(image_set.classes_of_masks)] = image_set.classes_of_masks
        self._transform = transform or _Fitted(size, max_size)
        self._fill = tuple(round(255 * value) for value in fill)
        photometric = recipe is not None and recipe.augment.photometric
        self._distort = PhotometricDistortion(hue=(-0.1, 0.1)) if photometric else None

    def __len__(self) -> int:
        return len(self.image_set)

    def batch(self, keys: Sequence[Key]) -> dict[str, Any]:
        """Read the images of `keys` with their masks.

        Returns:
            `images`, `masks` and `indices` (int64, B). Training: uint8 B x C x s x s and int64 B x s x s, where s
            is `size`, or the side that the recipe's `size_schedule` gives the epoch. Evaluation: lists of uint8
            C x h x w and int64 H x W, and `left_out`, the number of pixels of classes that the network does not
            know (see `with_class_order`).

        Raises:
            DataError: a file cannot be read.
        """
        items = [self._item(*key) for key in keys]
        images, masks = [image for image, _, _ in items], [mask for _, mask, _ in items]
        indices = torch.tensor([index for _, index in keys], dtype=torch.int64)
        if self.recipe is None:
            left_out = sum(pixels for _, _, pixels in items)
            return {"images": images, "masks": masks, "indices": indices, "left_out": left_out}
        return {"images": torch.stack(images), "masks": torch.stack(masks), "indices": indices}

    def _item(self, epoch: int, index: int) -> tuple[Tensor, Tensor, int]:
        sample = self.image_set.samples[index]
        image = read_image(sample.path, value_range=self.value_range)
        mask_HW = self.image_set.read_mask(sample)
        left_out = 0
        if self._classes is not None:
            labelled = int((mask_HW != IGNORED).sum())
            mask_HW = self._classes[mask_HW]
            left_out = labelled - int((mask_HW != IGNORED).sum())
        if self.recipe is None:
            return self._transform(image), torch.from_numpy(mask_HW).long(), left_out
        with seeded(self.recipe.seed, epoch, index):
            return *self._augmented(image, mask_HW, self.recipe, side=self.recipe.train_size(epoch)), left_out

    def _augmented(
        self, image: Image.Image, mask_HW: np.ndarray, recipe: SegmentationRecipe, *, side: int
    ) -> tuple[Tensor, Tensor]:
        factor = random.uniform(*recipe.augment.resize) * side / self.size
        width, height = fitted(image.size, round(self.size * factor), round(self.max_size * factor))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        mask = Image.fromarray(mask_HW).resize((width, height), Image.Resampling.NEAREST)
        for _ in range(_CROP_TRIES):
            left, top = random.randint(0, max(0, width - side)), random.randint(0, max(0, height - side))
            window = (left, top, min(left + side, width), min(top + side, height))
            cropped = np.asarray(mask.crop(window))
            counts = np.bincount(cropped[cropped != IGNORED].ravel(), minlength=1)
            if counts.sum() > 0 and counts.max() < _MAX_CLASS_SHARE * counts.sum():
                break
        square = Image.new("RGB", (side, side), self._fill)
        square.paste(image.crop(window))
        pixels_CHW = pil_to_tensor(square)
        mask_square = np.full((side, side), IGNORED, np.uint8)
        mask_square[: cropped.shape[0], : cropped.shape[1]] = cropped
        if self._distort is not None:
            pixels_CHW = self._distort(pixels_CHW)
        target_HW = torch.from_numpy(mask_square).long()
        if random.random() < recipe.augment.hflip:
            pixels_CHW, target_HW = pixels_CHW.flip(2), target_HW.flip(1)
        return pixels_CHW, target_HW


def evaluation_transform(preprocessing: Preprocessing) -> Transform:
    """Return the transform from an image to a segmenter's input: a letterbox, or a resize of the whole image.

    Without a letterbox, `preprocessing.size` holds the limits of the shorter and of the longer side; see `fitted`.
    """
    return _Fitted(*preprocessing.size) if preprocessing.letterbox is None else eval_transform(preprocessing)


@dataclass(frozen=True)
class _Fitted:
    shorter: int
    longest: int

    def __call__(self, image: Image.Image) -> Tensor:
        size = fitted(image.size, self.shorter, self.longest)
        pixels: Tensor = pil_to_tensor(image.resize(size, Image.Resampling.BILINEAR))
        return pixels


def fitted(size: tuple[int, int], shorter: int, longest: int) -> tuple[int, int]:
    """Return the (width, height) to which an image of `size` is resized, keeping its aspect ratio.

    The shorter side becomes `shorter` pixels, or less if the longer side would exceed `longest`.
    """
    width, height = size
    scale = min(shorter / min(width, height), longest / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
