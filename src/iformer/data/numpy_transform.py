"""The evaluation transform with NumPy and Pillow only, for programs that run an exported file without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def input_pixels(image: Image.Image, preprocessing: Mapping[str, Any]) -> np.ndarray:
    """Return an artifact's input pixels, bit for bit equal to those of `iformer.data.transforms.eval_transform`.

    The code needs nothing else of the package and may be copied. Images of detectors and segmenters are
    letterboxed instead; see `docs/how-to/export-detectors.md`.

    Args:
        image: an image with 8 bits per channel.
        preprocessing: the field `preprocessing` of the artifact's record or metadata.

    Returns:
        uint8, height x width x 3 (for networks with one channel height x width x 1), values 0..255.
    """
    (height, width), crop_pct = preprocessing["size"], preprocessing["crop_pct"]
    image = image.convert("L" if len(preprocessing["mean"]) == 1 else "RGB")
    # the ends of an extremely long image are cut off, because its resized form would be enormous
    longest = int(min(image.size) * max(64, 4 * max(height, width) / min(height, width)))
    left, top = (max(0, (side - longest) // 2) for side in image.size)
    image = image.crop((left, top, image.width - left, image.height - top))
    tall, wide = math.floor(height / crop_pct), math.floor(width / crop_pct)
    if tall == wide:  # the shorter side gets the resized length
        resized = [int(tall * side / min(image.size)) for side in image.size]
    else:  # the image just covers both sides
        ratio = min(image.height / tall, image.width / wide)
        resized = [round(side / ratio) for side in image.size]
    image = image.resize((resized[0], resized[1]), FILTERS[preprocessing["interpolation"]])
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    image = image.crop((left, top, left + width, top + height))
    return np.asarray(image).reshape(height, width, -1)
