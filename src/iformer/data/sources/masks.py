"""Images with a class for each pixel, as folders of images and of index masks, checked before training."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from iformer.config.dense import IGNORED
from iformer.data.images import has_image_extension, image_size
from iformer.data.sources.folders import Progress, available_cores, files_below, find_broken, natural_key
from iformer.errors import DataError

_PART_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
_IMAGES, _MASKS = ("images", "img", "JPEGImages"), ("annotations", "masks", "labels")
_CLASSES = "classes.txt"
_ADE20K_CLASSES = "objectInfo150.txt"
_LAYOUT = (
    "expected DIR/images/train/1.jpg with DIR/masks/train/1.png, or DIR/train/images/1.jpg with "
    f"DIR/train/masks/1.png, the same for val, and DIR/{_CLASSES} with one name a line; or ADE20K's folder"
)


class SemanticSample(NamedTuple):
    """An image and its mask, of the same size."""

    path: Path
    mask: Path


@dataclass(frozen=True, kw_only=True)
class SemanticSet:
    """The images of one part (training or validation) of a data set with masks.

    A mask is a PNG of indices: class k as k, `IGNORED` for no class. With `zero_is_ignored` (ADE20K) it is
    class k as k + 1, and 0 for no class.
    """

    name: str
    class_names: tuple[str, ...]
    samples: tuple[SemanticSample, ...]
    root: Path
    zero_is_ignored: bool = False
    palette: tuple[tuple[int, int, int], ...] = ()
    """The colours of the masks' classes, where the files have any."""
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the class names, and of each file's relative path and size in bytes."""
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


def load_semantic(
    folder: str | os.PathLike[str],
    *,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> SemanticSplits:
    """Find a data set's images and masks, and decode each of them once.

    An image that is damaged or has no mask is a problem and left out. A mask that is no index image, is of
    another size than its image, or has an index that is no class, is an error.

    Args:
        folder: see `_LAYOUT`.
        strict: a problem is an error.

    Raises:
        DataError: the data cannot be used; one line names the file, what is wrong and what is expected.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; {_LAYOUT}")
    class_names, zero_is_ignored = _class_names(root)
    sets = {}
    for part in ("train", "val"):
        samples, warnings = _pairs(*_folders(root, part))
        broken = find_broken([sample.path for sample in samples], workers=workers, progress=progress)
        kept = tuple(sample for sample in samples if sample.path not in broken)
        warnings += broken.values()
        if not kept:
            raise DataError(f"{root}: no image with a mask for {part} ({'; '.join(warnings[:3]) or 'none found'})")
        _check_masks(kept, len(class_names), zero_is_ignored=zero_is_ignored, workers=workers)
        sets[part] = SemanticSet(
            name=f"{root.name or root.resolve().name} {part}",
            class_names=class_names,
            samples=kept,
            root=root,
            zero_is_ignored=zero_is_ignored,
            palette=_palette(kept[0].mask, len(class_names), zero_is_ignored=zero_is_ignored),
            warnings=tuple(warnings),
        )
    found = (*sets["train"].warnings, *sets["val"].warnings)
    if strict and found:
        raise DataError(f"{len(found)} warnings with the data: {'; '.join(found[:5])}")
    return SemanticSplits(train=sets["train"], val=sets["val"], warnings=found)


def read_mask(path: Path, *, zero_is_ignored: bool = False) -> npt.NDArray[np.uint8]:
    """A mask as uint8 H x W: class k as k, `IGNORED` elsewhere.

    Raises:
        DataError: the file is no image of indices.
    """
    indices = _read_indices(path)
    if not zero_is_ignored:
        return indices
    # 0 becomes 255, which is `IGNORED`
    result: npt.NDArray[np.uint8] = indices - np.uint8(1)
    result[indices == IGNORED] = IGNORED
    return result


def _read_indices(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("L", "P", "1", "I;16", "I"):
                raise DataError(
                    f"{path}: a mask in colours (mode {image.mode}); expected a PNG whose values are class indices"
                )
            values = np.asarray(image)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path}: damaged mask ({' '.join(str(error).split()) or type(error).__name__})") from None
    if values.size and (values.min() < 0 or values.max() > IGNORED):
        raise DataError(f"{path}: has the index {int(values.max())}; expected 0 to {IGNORED}")
    return values.astype(np.uint8)


def _class_names(root: Path) -> tuple[tuple[str, ...], bool]:
    """Names in the order of their indices, and whether the index 0 means no class."""
    plain, ade20k = root / _CLASSES, root / _ADE20K_CLASSES
    path = plain if plain.is_file() else ade20k
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{root}: has no {_CLASSES} that can be read; {_LAYOUT}") from None
    if path is ade20k:  # a table with a header; the last column holds the names, the first of them is meant
        lines = [line.split("\t")[-1].split(",")[0].strip() for line in lines[1:]]
    names = tuple(lines)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if path is ade20k:  # two of ADE20K's names occur twice
        names = tuple(f"{name} {index}" if name in repeated else name for index, name in enumerate(names, start=1))
    elif repeated:
        raise DataError(f"{path}: names {', '.join(repeated)} twice")
    if not 2 <= len(names) < IGNORED:
        raise DataError(f"{path}: names {len(names)} classes; expected 2 to {IGNORED - 1}")
    return names, path is ade20k


def _folders(root: Path, part: str) -> tuple[Path, Path]:
    """The folder of a part's images and that of its masks."""
    for name in _PART_NAMES[part]:
        for images in _IMAGES:
            for masks in _MASKS:
                for pair in (
                    (root / images / name, root / masks / name),
                    (root / name / images, root / name / masks),
                ):
                    if pair[0].is_dir() and pair[1].is_dir():
                        return pair
    raise DataError(f"{root}: no folders of images and masks for {part}; {_LAYOUT}")


def _pairs(images: Path, masks: Path) -> tuple[list[SemanticSample], list[str]]:
    """Images and the masks of the same name below their folders; and the images that have none."""
    by_stem = {_stem(path, masks): path for path in files_below(masks) if has_image_extension(path)}
    samples, warnings = [], []
    paths: Iterable[Path] = filter(has_image_extension, files_below(images))
    for path in sorted(paths, key=lambda path: natural_key(str(path))):
        mask = by_stem.get(_stem(path, images))
        if mask is None:
            warnings.append(f"{path}: has no mask in {masks}")
        else:
            samples.append(SemanticSample(path, mask))
    return samples, warnings


def _stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _check_masks(
    samples: tuple[SemanticSample, ...], num_classes: int, *, zero_is_ignored: bool, workers: int | None
) -> None:
    def check(sample: SemanticSample) -> None:
        indices = _read_indices(sample.mask)
        width, height = image_size(sample.path)
        if indices.shape != (height, width):
            raise DataError(
                f"{sample.mask}: is {indices.shape[1]} x {indices.shape[0]} pixels, its image {width} x {height}"
            )
        known = indices[indices != IGNORED]
        highest = num_classes if zero_is_ignored else num_classes - 1
        if known.size and known.max() > highest:
            raise DataError(
                f"{sample.mask}: has the index {int(known.max())}; with {num_classes} classes it may be "
                f"0 to {highest}, or {IGNORED} for no class"
            )

    with ThreadPoolExecutor(workers or min(16, available_cores()), thread_name_prefix="check") as pool:
        try:
            for _ in pool.map(check, samples):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _palette(path: Path, num_classes: int, *, zero_is_ignored: bool) -> tuple[tuple[int, int, int], ...]:
    with Image.open(path) as image:
        values = image.getpalette("RGB") if image.mode == "P" else None
    first = 3 if zero_is_ignored else 0
    if values is None or len(values) < first + 3 * num_classes:
        return ()
    colours = [values[first + 3 * k : first + 3 * k + 3] for k in range(num_classes)]
    # a palette that is a ramp of grays colours nothing
    if all(red == green == blue for red, green, blue in colours):
        return ()
    return tuple((red, green, blue) for red, green, blue in colours)
