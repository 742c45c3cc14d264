"""The transform without torch gives the pixels of the evaluation transform."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from iformer.config.preprocessing import Preprocessing
from iformer.data.numpy_transform import input_pixels
from iformer.data.transforms import eval_transform

SIZES = ((90, 70), (64, 64), (33, 201), (20, 20), (300, 4), (641, 480), (2, 700))
"""Widths and heights of images."""


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_the_evaluation_transform(interpolation: str, channels: int) -> None:
    generator = np.random.default_rng(0)
    for size, crop_pct in itertools.product([(64, 64), (96, 64), (33, 160)], [1.0, 0.875, 0.9]):
        preprocessing = Preprocessing(
            size=size,
            crop_pct=crop_pct,
            interpolation=interpolation,  # type: ignore[arg-type]
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
        )
        for width, height in SIZES:
            image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
            found = input_pixels(image, preprocessing.to_plain())
            expected = eval_transform(preprocessing)(image if channels == 3 else image.convert("L"))
            np.testing.assert_array_equal(found, expected.permute(1, 2, 0).numpy())


def test_gray_images_become_rgb() -> None:
    image = Image.fromarray(np.arange(64 * 80, dtype=np.uint16).reshape(64, 80).astype(np.uint8))
    preprocessing = Preprocessing(size=(32, 32))
    found = input_pixels(image, preprocessing.to_plain())
    np.testing.assert_array_equal(found, eval_transform(preprocessing)(image).permute(1, 2, 0).numpy())


def test_neither_torch_nor_anything_else_is_needed() -> None:
    imported = "import sys, iformer.data.numpy_transform"
    code = f"{imported}; assert not {{'torch', 'torchvision', 'timm'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
