"""Stand-ins for the pictures from which `examples/composed` makes its data set."""

from __future__ import annotations

from pathlib import Path

import compose
import numpy as np
from PIL import Image


def make_pictures(root: Path) -> Path:
    """Write what the packages hold, in small: five cut-outs per class and twelve backgrounds of noise."""
    generator = np.random.default_rng(0)
    for label, patterns in enumerate(compose.CLASSES.values()):
        for number in range(5):
            path = root / compose.STAMPS / patterns[number % len(patterns)].replace("*", f"cut{number}")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((40, 30, 4), np.uint8)
            pixels[5:35, 4:26] = (10 * label, 250 - 12 * label, 40 * number, 255)
            Image.fromarray(pixels).save(path)
    for number in range(12):
        path = root / compose.BACKGROUNDS[1] / f"paper{number}" / "contents" / "images" / "160x120.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(generator.integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(path)
    return root
