"""Random canvases of a fixed size for the light detector: scale jitter with crop, and mosaics of four images.

A canvas is built by pasting resized images. Boxes are cut to the part that shows, and dropped where too little of
the object shows. All randomness comes from Python's generator, which the data set seeds.

A mosaic (Bochkovskiy et al. 2020, arXiv 2004.10934, section 3.3) joins four images at a random point.

Shape letters: N objects, H and W the canvas' sides.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_VISIBLE = 0.25
"""Smallest visible share of an object's area; an object that shows less is dropped."""
_SMALLEST_SIDE = 2.0
"""Smallest side, in pixels of the canvas, of a box that is kept."""

Item = tuple[Tensor, dict[str, Tensor]]
"""An image, uint8 3 x h x w, and its target: `boxes` (float N x 4, left, top, right, bottom) and `labels` (N)."""


@dataclass(frozen=True)
class Canvas:
    """Builder of training images of one size."""

    size: tuple[int, int]
    """Height and width in pixels."""
    scale: tuple[float, float]
    """Smallest and largest random scale of an image; at 1 the image just fits the canvas."""
    fill: tuple[int, ...]
    """Colour (red, green, blue, 0 to 255) of the pixels that no image covers."""

    def single(self, item: Item) -> Item:
        """Return one image, resized by a random factor and placed or cropped at random."""
        return self._build([(item, (0, 0, self.size[1], self.size[0]))])

    def mosaic(self, items: Sequence[Item]) -> Item:
        """Return a mosaic of four images that meet at a random point in the middle half of the canvas."""
        height, width = self.size
        x, y = round(width * random.uniform(0.25, 0.75)), round(height * random.uniform(0.25, 0.75))
        windows = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        return self._build(list(zip(items, windows, strict=True)))

    def _build(self, parts: Sequence[tuple[Item, tuple[int, int, int, int]]]) -> Item:
        image = torch.tensor(self.fill, dtype=torch.uint8).view(3, 1, 1).repeat(1, *self.size)
        boxes, labels = [], []
        for item, window in parts:
            kept_boxes, kept_labels = self._paste(image, item, window)
            boxes.append(kept_boxes)
            labels.append(kept_labels)
        return image, {"boxes": torch.cat(boxes), "labels": torch.cat(labels)}

    def _paste(self, canvas: Tensor, item: Item, window: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
        """Draw an image into a window of the canvas; return boxes and labels of the objects that show."""
        image, target = item
        left, top, right, bottom = window
        fit = min(self.size[0] / image.shape[1], self.size[1] / image.shape[2])
        factor = fit * random.uniform(*self.scale)
        height, width = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[2] * factor))
        # anywhere inside the window, or, where the image is larger, any part of it
        x = left + round((right - left - width) * random.random())
        y = top + round((bottom - top - height) * random.random())
        x0, y0, x1, y1 = max(x, left), max(y, top), min(x + width, right), min(y + height, bottom)
        resized = F.resize(image, [height, width], antialias=True)
        canvas[:, y0:y1, x0:x1] = resized[:, y0 - y : y1 - y, x0 - x : x1 - x]
        boxes = target["boxes"] * target["boxes"].new_tensor(
            (width / image.shape[2], height / image.shape[1]) * 2
        ) + target["boxes"].new_tensor((x, y, x, y))
        shown = boxes.clone()
        shown[:, 0::2].clamp_(x0, x1)
        shown[:, 1::2].clamp_(y0, y1)
        sides = shown[:, 2:] - shown[:, :2]
        visible = sides.prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-6)
        keep = (visible >= _VISIBLE) & (sides >= _SMALLEST_SIDE).all(1)
        return shown[keep], target["labels"][keep]
