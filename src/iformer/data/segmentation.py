"""Sets of images with one class per pixel, for semantic segmentation.

Shape letters: H and W are an image's height and width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from iformer.config.segmenter import IGNORED
from iformer.data.images import open_image, orientation, stored_mode
from iformer.data.samples import check_class_names
from iformer.errors import DataError

_VOID = (224, 224, 192)
"""Colour of pixels without a class in Pascal VOC's masks: index 255 of their palette."""
_SCALED = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow scales the values of gray PNGs of 2 and 4 bits to the range 0 to 255."""


class SemanticSample(NamedTuple):
    """An image and its mask, of the same size."""

    path: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class SemanticSet:
    """The images of one split (training or validation) of a data set with masks.

    A mask is an image of indices: k for class k, `IGNORED` for no class. With `zero_is_ignored` (ADE20K) the
    index is k + 1 for class k, and 0 for no class.
    """

    name: str
    class_names: tuple[str, ...]
    samples: tuple[SemanticSample, ...] = field(repr=False)
    root: Path
    zero_is_ignored: bool = False
    palette: tuple[tuple[int, int, int], ...] = ()
    """The classes' colours, if the mask files have a palette or a colour table."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """The classes' colours, if the masks store colours. Empty: the masks store indices."""
    warnings: tuple[str, ...] = ()
    classes_of_masks: tuple[int, ...] = ()
    """The class of each index in the masks, `IGNORED` for none, if the masks use another list of classes. Empty:
    the index is the class."""

    def __post_init__(self) -> None:
        check_class_names(self.class_names, self.name)

    def __len__(self) -> int:
        return len(self.samples)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of classes, mask encoding, and each file's relative path and size in bytes.

        Raises:
            OSError: a file no longer exists.
        """
        digest = hashlib.sha256("\0".join((*self.class_names, str(self.zero_is_ignored))).encode())
        if self.colours:
            digest.update(str(self.colours).encode())
        for sample in self.samples:
            for path in sample:
                line = f"{os.path.relpath(path, self.root)}\0{path.stat().st_size}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def read_mask(self, sample: SemanticSample) -> npt.NDArray[np.uint8]:
        """Read a sample's mask, uint8 H x W, with the function `read_mask`; `classes_of_masks` is not applied."""
        return read_mask(sample.mask, zero_is_ignored=self.zero_is_ignored, colours=self.colours)


@dataclass(frozen=True, kw_only=True)
class SemanticSplits:
    """Training and validation images of the same classes."""

    train: SemanticSet
    val: SemanticSet
    warnings: tuple[str, ...] = ()
    split_off: bool = False
    """Whether the validation images were split off from the training images, because the data has none."""


def read_mask(
    path: Path, *, zero_is_ignored: bool = False, colours: Sequence[tuple[int, int, int]] = ()
) -> npt.NDArray[np.uint8]:
    """Read a mask as uint8 H x W: k for class k, `IGNORED` elsewhere.

    Args:
        zero_is_ignored: the file stores k + 1 for class k, and 0 for no class.
        colours: the colour of each class, if the mask stores colours; empty: the mask stores indices.

    Raises:
        DataError: the file is not an image of indices, or has a colour without a class.
    """
    indices = read_indices(path, colours)
    if not zero_is_ignored:
        return indices
    # 0 becomes 255, which is `IGNORED`
    result: npt.NDArray[np.uint8] = indices - np.uint8(1)
    result[indices == IGNORED] = IGNORED
    return result


def read_indices(path: Path, colours: Sequence[tuple[int, int, int]] = ()) -> npt.NDArray[np.uint8]:
    """Read a mask's stored values as uint8 H x W.

    With `colours`, each colour becomes its position in `colours`; Pascal VOC's void colour becomes `IGNORED`.

    Raises:
        DataError: the file is not an image of indices from 0 to 255, or has a colour that is not in `colours`.
    """
    with open_image(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise DataError(f"{path}: a mask in JPEG, which changes values; save masks as PNG")
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise DataError(f"{path}: a mask of {frames} pictures; expected one")
        # first: reading the orientation makes Pillow decode PNGs
        step = _SCALED.get(stored_mode(image), 1) if image.format == "PNG" else 1
        if orientation(image) != 1:
            raise DataError(
                f"{path}: a mask with an EXIF orientation, which other programs ignore; save it upright"
            )
        if colours:
            return _indices_of_colours(np.asarray(image.convert("RGB")), colours, path)
        if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
            kind = {"F": "of floats", "LA": "with transparency", "PA": "with transparency"}.get(
                image.mode, "in colours"
            )
            raise DataError(
                f"{path}: a mask {kind} (mode {image.mode}); its values have to be class indices; save it as a "
                "gray or palette PNG, or list the colour of each class in labelmap.txt or class_dict.csv"
            )
        values = np.asarray(image)
    if step > 1 and not np.isin(values, (0, 255)).all():
        values = values // step
    if values.size and (values.min() < 0 or values.max() > IGNORED):
        index = values.min() if values.min() < 0 else values.max()
        raise DataError(f"{path}: has the index {int(index)}; expected 0 to {IGNORED}")
    return values.astype(np.uint8)


def _indices_of_colours(
    pixels_HWC: npt.NDArray[np.uint8], colours: Sequence[tuple[int, int, int]], path: Path
) -> npt.NDArray[np.uint8]:
    """Return the position of each pixel's colour in `colours`; `IGNORED` for Pascal VOC's void colour."""
    table = {_packed(np.array(colour)).item(): index for index, colour in enumerate(colours)}
    table.setdefault(_packed(np.array(_VOID)).item(), IGNORED)
    keys = np.array(sorted(table))
    packed_HW = _packed(pixels_HWC)
    positions = np.searchsorted(keys, packed_HW).clip(max=len(keys) - 1)
    unknown = keys[positions] != packed_HW
    if unknown.any():
        row, column = np.argwhere(unknown)[0].tolist()
        red, green, blue = pixels_HWC[row, column].tolist()
        raise DataError(
            f"{path}: has the colour {red}, {green}, {blue} at column {column}, row {row}, which is no class"
        )
    indices: npt.NDArray[np.uint8] = np.array([table[key] for key in keys.tolist()], np.uint8)[positions]
    return indices


def _packed(colours: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return each colour, (... x 3) of red, green and blue, as one number."""
    parts = colours.astype(np.int32)
    packed: npt.NDArray[np.int32] = parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]
    return packed
