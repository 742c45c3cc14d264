"""Search for pictures that occur twice, in both splits or with two labels, even if they were saved again."""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from iformer.data.images import THUMBNAIL_SIDE, read_image
from iformer.data.listing import natural_key
from iformer.data.samples import ImageSet
from iformer.errors import DataError, counted, listed

MAX_COMPARED = 500_000
"""Largest number of images that are compared by appearance; beyond it, only equal files are found."""

THUMBNAIL_SHAPE = (16, 16)

_HASH_DISTANCE = 8
"""Largest number of bits in which the perceptual hashes of two copies may differ."""

_MAX_BUCKET = 400
"""Largest group of images, with 16 hash bits in common, whose images are compared with each other. Larger groups
are skipped: their images look alike only because they are plain."""

_MAX_DECODED = 1000
"""Largest number of pairs that are decoded again to compare them."""

_COMPARED_SIDE = 64


class _Image(NamedTuple):
    path: Path
    split: str
    labels: tuple[int, ...]
    row: int


def perceptual_hash(thumbnail: npt.NDArray[np.uint8]) -> int:
    """Return a 64-bit hash of a 32 x 32 thumbnail: which of its 8 x 8 lowest frequencies exceed their median."""
    basis = _cosines()
    frequencies = (basis @ thumbnail.astype(np.float64) @ basis.T).ravel()
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def shrink(thumbnail: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Average a 32 x 32 thumbnail to 16 x 16."""
    means: npt.NDArray[np.float64] = thumbnail.reshape(16, 2, 16, 2).mean((1, 3))
    return means.round().astype(np.uint8)


def find_duplicates(
    train: ImageSet,
    val: ImageSet,
    rows: dict[Path, int],
    hashes: npt.NDArray[np.uint64],
    thumbnails: npt.NDArray[np.uint8],
) -> list[str]:
    """Return warnings about pictures in both splits and about pictures with two labels.

    Args:
        train: training images, all of them files.
        val: validation images, all of them files.
        rows: row of each path in `hashes` and `thumbnails`.
        hashes: perceptual hashes of the images, uint64, shape (N,).
        thumbnails: gray thumbnails, uint8, shape (N, 16, 16). Empty: only the files' contents are compared.
    """
    images = [
        _Image(path, split, labels, rows[path])
        for split, image_set in (("train", train), ("val", val))
        for path, labels in zip(image_set.files, image_set.label_sets, strict=True)
    ]
    pairs = _pairs(images, hashes, thumbnails)
    both_splits = {other.path: one.path for one, other in pairs if one.split != other.split}
    two_labels = {other.path: one.path for one, other in pairs if one.labels != other.labels}
    return [
        f"{counted(len(found), noun)} {text}: {listed(_equations(found), limit=5)}"
        for found, noun, text in (
            (
                both_splits,
                "validation image",
                "also among the training images, so the accuracy on them means little",
            ),
            (two_labels, "image", "also under another label, so one of the labels is wrong"),
        )
        if found
    ]


def find_shared_images(
    train: Sequence[Path],
    val: Sequence[Path],
    rows: dict[Path, int],
    hashes: npt.NDArray[np.uint64],
    thumbnails: npt.NDArray[np.uint8],
) -> list[str]:
    """Return a list with a warning about pictures in both splits; empty if there are none.

    Args:
        train: training image files.
        val: validation image files.
        rows: row of each path in `hashes` and `thumbnails`.
        hashes: perceptual hashes of the images, uint64, shape (N,).
        thumbnails: gray thumbnails, uint8, shape (N, 16, 16). Empty: only the files' contents are compared.
    """
    images = [
        _Image(path, split, (), rows[path]) for split, paths in (("train", train), ("val", val)) for path in paths
    ]
    shared = {other.path: one.path for one, other in _pairs(images, hashes, thumbnails)}
    if not shared:
        return []
    return [
        f"{counted(len(shared), 'validation image')} also among the training images, so metrics on them mean "
        f"little: {listed(_equations(shared), limit=5)}"
    ]


def _pairs(
    images: Sequence[_Image], hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.uint8]
) -> list[tuple[_Image, _Image]]:
    """Return equal pictures that differ in split or label, each pair once."""
    pairs: dict[tuple[Path, Path], tuple[_Image, _Image]] = {}
    for one, other in (*_equal_files(images), *_similar(images, hashes, thumbnails)):
        pairs.setdefault((one.path, other.path), (one, other))
    return list(pairs.values())


def _equations(found: dict[Path, Path]) -> list[str]:
    return sorted((f"{path} = {twin}" for path, twin in found.items()), key=natural_key)


def _equal_files(images: Sequence[_Image]) -> Iterator[tuple[_Image, _Image]]:
    """Yield pairs of files with the same contents. Only files of equal size are read."""
    by_size: dict[int, list[_Image]] = defaultdict(list)
    for image in images:
        by_size[image.path.stat().st_size].append(image)
    for group in by_size.values():
        if _are_comparable(group):
            by_digest: dict[bytes, list[_Image]] = defaultdict(list)
            for image in group:
                by_digest[_digest(image.path)].append(image)
            for copies in by_digest.values():
                yield from _differing(copies)


def _differing(copies: Sequence[_Image]) -> Iterator[tuple[_Image, _Image]]:
    """Yield pairs that differ in split or labels: each image with the first image of every earlier kind."""
    kinds: dict[tuple[str, tuple[int, ...]], _Image] = {}
    for image in copies:
        for (split, labels), first in kinds.items():
            if (split, labels) != (image.split, image.labels):
                yield first, image
        kinds.setdefault((image.split, image.labels), image)


def _are_comparable(images: Sequence[_Image]) -> bool:
    return len({(image.split, image.labels) for image in images}) > 1


def _similar(
    images: Sequence[_Image], hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.uint8]
) -> Iterator[tuple[_Image, _Image]]:
    """Yield pairs that look the same: close hashes, equal thumbnails, and equal pictures when decoded again."""
    if not len(thumbnails):
        return
    decoded = 0
    seen: set[tuple[int, int]] = set()
    for shift in (0, 16, 32, 48):
        buckets: dict[int, list[_Image]] = defaultdict(list)
        for image in images:
            buckets[int(hashes[image.row]) >> shift & 0xFFFF].append(image)
        for bucket in buckets.values():
            if not 1 < len(bucket) <= _MAX_BUCKET or not _are_comparable(bucket):
                continue
            for first, second in _close(hashes[[image.row for image in bucket]]):
                one, other = bucket[first], bucket[second]
                if not _are_comparable((one, other)) or (one.row, other.row) in seen:
                    continue
                seen.add((one.row, other.row))
                if _thumbnails_agree(thumbnails[one.row], thumbnails[other.row]):
                    if decoded == _MAX_DECODED:
                        return
                    decoded += 1
                    if _pictures_agree(one.path, other.path):
                        yield one, other


def _close(hashes: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Return the pairs (i, j), i < j, of hashes that differ in at most `_HASH_DISTANCE` bits."""
    differing = (hashes[:, None] ^ hashes[None, :])[..., None].view(np.uint8)
    distances = np.unpackbits(differing, axis=-1).sum(-1)
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(distances <= _HASH_DISTANCE, 1))]


def _thumbnails_agree(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> bool:
    contrast = float(one.std())
    if contrast < 2:  # nothing to compare on a plain area
        return False
    return bool(np.abs(one.astype(np.int16) - other).mean() <= 2 + 0.03 * contrast)


def _pictures_agree(one: Path, other: Path) -> bool:
    try:
        (gray_one, colour_one), (gray_other, colour_other) = _small(one), _small(other)
    except DataError:
        return False
    # Photographs saved as JPEG with quality 50 or more, or at half the size, stay below; neighbouring solar cells
    # of one wafer are above. Colours are coarser, as JPEG stores them at half the resolution.
    allowed = max(1.0, 0.04 * float(gray_one.std()))
    return bool(
        np.abs(gray_one - gray_other).mean() <= allowed
        and np.abs(colour_one - colour_other).mean() <= 2 + 3 * allowed
    )


def _small(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return an image, resized to 64 x 64 pixels, in gray and in colour."""
    image = read_image(path)
    size = (_COMPARED_SIDE, _COMPARED_SIDE)
    gray, colour = (kind.resize(size, Image.Resampling.BILINEAR) for kind in (image.convert("L"), image))
    return np.asarray(gray, np.float32), np.asarray(colour, np.float32)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@functools.cache
def _cosines() -> npt.NDArray[np.float64]:
    """Return the first 8 rows of the discrete cosine transform of length 32."""
    positions = (np.arange(THUMBNAIL_SIDE) + 0.5) * np.pi / THUMBNAIL_SIDE
    basis: npt.NDArray[np.float64] = np.cos(np.outer(np.arange(8), positions))
    return basis
