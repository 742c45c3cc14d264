"""The letterbox: the rule by which an image of any size becomes a network's input of a fixed size.

The image is resized by one factor (Pillow's bilinear filter) so that it just fits, placed at the top left, and the
rest is filled with one colour. Evaluation, prediction, artifacts and the snippets of the docs use this
function; training places images by `iformer.tasks.detection.augment` and `iformer.tasks.segmentation.dataset`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Letterboxed:
    """A letterboxed image and how it was placed."""

    image: Tensor
    """The image after letterboxing, uint8 3 x H x W."""
    original: tuple[int, int]
    """Height and width of the image before letterboxing, in pixels."""
    content: tuple[int, int]
    """Height and width of the part of the input that shows the image, in pixels."""

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the input for one pixel of the image, along x and y."""
        return self.content[1] / self.original[1], self.content[0] / self.original[0]

    def restore(self, boxes: Tensor) -> Tensor:
        """Convert boxes, N x 4, from pixels of the input to pixels of the image, clipped to the image."""
        height, width = self.original
        limits = boxes.new_tensor((width, height, width, height))
        return (boxes / boxes.new_tensor(self.scale * 2)).clamp(min=0).minimum(limits)


def content_size(original: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of an image's content in a letterbox; `original` and `size` are (height, width)."""
    factor = min(size[0] / original[0], size[1] / original[1])
    height, width = (max(1, min(limit, round(side * factor))) for side, limit in zip(original, size, strict=True))
    return height, width


def letterbox(image: Tensor, size: tuple[int, int], *, fill: tuple[int, ...] = (0, 0, 0)) -> Letterboxed:
    """Fit an image, uint8 3 x h x w, into a given height and width.

    Args:
        image: uint8 3 x h x w.
        size: height and width of the result in pixels.
        fill: colour (0 to 255) to the right of and below the content.
    """
    original = (image.shape[1], image.shape[2])
    content = content_size(original, size)
    # by Pillow, so that a program without PyTorch gets the same pixels from the same file
    pixels_HWC = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
    resized_HWC = pixels_HWC.resize(content[::-1], Image.Resampling.BILINEAR)
    canvas = image.new_tensor(fill).view(-1, 1, 1).repeat(1, *size)
    canvas[:, : content[0], : content[1]] = torch.from_numpy(np.array(resized_HWC)).permute(2, 0, 1)
    return Letterboxed(canvas, original, content)
