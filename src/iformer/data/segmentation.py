"""Sets of images with one class per pixel, for semantic segmentation.

Shape letters: H and W are an image's height and width.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from iformer.config.segmenter import IGNORED
from iformer.data.images import open_image
from iformer.errors import DataError


class SemanticSample(NamedTuple):
    """An image and its mask, of the same size."""

    path: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class SemanticSet:
    """The images of one split (training or validation) of a data set with masks.

    A mask is an image of indices: k for class k, `IGNORED` for no class. With `zero_is_ignored` (ADE20K) it is
    k + 1 for class k, and 0 for no class.
    """

    name: str
    class_names: tuple[str, ...]
    samples: tuple[SemanticSample, ...]
    root: Path
    zero_is_ignored: bool = False
    palette: tuple[tuple[int, int, int], ...] = ()
    """The classes' colours, if the mask files have a palette."""
    warnings: tuple[str, ...] = ()
    classes_of_masks: tuple[int, ...] = ()
    """For masks of another list of classes: the class of each of their indices, `IGNORED` if it has none. Empty:
    the index is the class."""

    def __len__(self) -> int:
        return len(self.samples)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the class names and of each file's relative path and size in bytes."""
        digest = hashlib.sha256("\0".join((*self.class_names, str(self.zero_is_ignored))).encode())
        for sample in self.samples:
            for path in sample:
                line = f"{os.path.relpath(path, self.root)}\0{path.stat().st_size}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class SemanticSplits:
    """Training and validation images of the same classes."""

    train: SemanticSet
    val: SemanticSet
    warnings: tuple[str, ...] = ()


def read_mask(path: Path, *, zero_is_ignored: bool = False) -> npt.NDArray[np.uint8]:
    """Read a mask as uint8 H x W: k for class k, `IGNORED` elsewhere.

    Raises:
        DataError: the file is not an image of indices.
    """
    indices = read_indices(path)
    if not zero_is_ignored:
        return indices
    # 0 becomes 255, which is `IGNORED`
    result: npt.NDArray[np.uint8] = indices - np.uint8(1)
    result[indices == IGNORED] = IGNORED
    return result


def read_indices(path: Path) -> npt.NDArray[np.uint8]:
    """Read a mask's values as they are stored, uint8 H x W.

    Raises:
        DataError: the file is not an image of indices from 0 to 255.
    """
    with open_image(path) as image:
        if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
            kind = {"F": "of floats", "LA": "with transparency", "PA": "with transparency"}.get(
                image.mode, "in colours"
            )
            raise DataError(
                f"{path}: a mask {kind} (mode {image.mode}); expected a PNG whose values are class indices"
            )
        values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > IGNORED):
        raise DataError(f"{path}: has the index {int(values.max())}; expected 0 to {IGNORED}")
    return values.astype(np.uint8)
