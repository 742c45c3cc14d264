"""An `ImageSet` as a data set of transformed images, decoded each time or once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from iformer.data.images import read_image
from iformer.data.samples import ImageSet, StoredSamples
from iformer.data.sampling import Key, seeded
from iformer.data.sources.folders import Progress, available_cores
from iformer.data.transforms import Transform, TransformSchedule
from iformer.errors import DataError

Batch = dict[str, Any]
"""images: uint8 (B, C, H, W) in channels-last memory; labels and indices: int64 (B)."""


class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """The images of an `ImageSet` after a transform; a key is (epoch, index), or an index for epoch 0.

    While an image is transformed, the global generators of `random`, `numpy.random` and torch (CPU) are
    seeded with (seed, epoch, index); afterwards they are as they were.
    """

    def __init__(
        self,
        image_set: ImageSet,
        transform: Transform | TransformSchedule,
        *,
        seed: int = 0,
        cache: Literal["none", "ram"] = "none",
        cache_side: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Make the data set; with `cache="ram"` this decodes every image once.

        Args:
            image_set: the images.
            transform: PIL image -> uint8 (C, H, W), for all epochs or by epoch.
            seed: of the augmentations.
            cache: "ram" keeps the decoded images (gray ones as one channel), which workers then share.
            cache_side: cached images whose shorter side is longer than this are kept reduced to it. They are
                then no longer the same images; by default they are.
            progress: told how many images are cached.

        Raises:
            DataError: an image cannot be read, or the decoded images do not fit into the free memory.
        """
        self.image_set = image_set
        self.transform = transform
        self.seed = seed
        self._cache = _DecodedImages(image_set, cache_side, progress) if cache == "ram" else None

    def __len__(self) -> int:
        return len(self.image_set)

    def image(self, index: int) -> Image.Image:
        """The decoded image in mode RGB or L, before any transform.

        Raises:
            DataError: the file cannot be read.
        """
        if self._cache is not None:
            return self._cache.image(index)
        return read_image(self.image_set.samples[index].path, keep_gray=True)

    def __getitem__(self, key: Key | int) -> tuple[Tensor, int, int]:
        """uint8 (C, H, W), the label and the index.

        Raises:
            DataError: the file cannot be read.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self._transformed(self.image(index), epoch, index)

    def _transformed(self, image: Image.Image, epoch: int, index: int) -> tuple[Tensor, int, int]:
        transform = self.transform
        if isinstance(transform, TransformSchedule):
            transform = transform.at(epoch)
        with seeded(self.seed, epoch, index):
            pixels_CHW = transform(image)
        return pixels_CHW, self.image_set.samples[index].label, index

    def _images(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """The decoded images; from a store that is far away some are fetched while others are used."""
        samples = self.image_set.samples
        readers = samples.readers if isinstance(samples, StoredSamples) and self._cache is None else 1
        if readers == 1:
            yield from map(self.image, indices)
            return
        # a pool of this call's own: threads would not be there in workers that are forked later
        pool = ThreadPoolExecutor(readers, thread_name_prefix="fetch")
        running: deque[Future[Image.Image]] = deque()
        try:
            for index in indices:
                if len(running) == readers:
                    yield running.popleft().result()
                running.append(pool.submit(self.image, index))
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def batch(self, keys: Sequence[Key]) -> Batch:
        """The images of `keys`, all of one size, as a batch."""
        images = self._images([index for _, index in keys])
        items = [self._transformed(image, *key) for image, key in zip(images, keys, strict=True)]
        # Stacked as B, H, W, C, the transforms' own layout: plain copies, and what channels-last means.
        images_BHWC = torch.stack([pixels_CHW.permute(1, 2, 0) for pixels_CHW, _, _ in items])
        return {
            "images": images_BHWC.permute(0, 3, 1, 2),
            "labels": torch.tensor([label for _, label, _ in items], dtype=torch.int64),
            "indices": torch.tensor([index for _, _, index in items], dtype=torch.int64),
        }


class _DecodedImages:
    """All images of a set, decoded once, in one buffer: forked workers share its pages.

    One object an image would be copied to each worker bit by bit, as reference counts are written.
    """

    def __init__(self, image_set: ImageSet, side: int | None, progress: Progress | None) -> None:
        paths = [sample.path for sample in image_set.samples]

        def decode(path: os.PathLike[str]) -> np.ndarray:
            return np.asarray(_reduce(read_image(path, keep_gray=True), side))

        arrays: list[np.ndarray] = []
        with ThreadPoolExecutor(min(16, available_cores()), thread_name_prefix="decode") as pool:
            # A bounded window: map over everything would decode past the memory check below.
            window = 64
            for start in range(0, len(paths), window):
                arrays += pool.map(decode, paths[start : start + window])
                needed = sum(array.nbytes for array in arrays) * len(paths) // len(arrays)
                if start == 0:
                    _check_memory(needed, len(paths))
                if progress is not None:
                    progress(len(arrays), len(paths))
        self._shapes = np.array([(*a.shape, 1)[:3] for a in arrays], dtype=np.int64).reshape(-1, 3)
        ends = np.cumsum([array.nbytes for array in arrays])
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._pixels = np.empty(int(self._starts[-1]), dtype=np.uint8)
        # From the last to the first, giving up each array: never twice the memory at once.
        for index in range(len(arrays) - 1, -1, -1):
            array = arrays.pop()
            self._pixels[self._starts[index] : self._starts[index + 1]] = array.reshape(-1)

    def image(self, index: int) -> Image.Image:
        height, width, channels = (int(size) for size in self._shapes[index])
        pixels = self._pixels[self._starts[index] : self._starts[index + 1]]
        mode = "L" if channels == 1 else "RGB"
        # A copy: an image in mode L would otherwise be a window on the cache.
        return Image.frombytes(mode, (width, height), pixels.data)


def _reduce(image: Image.Image, side: int | None) -> Image.Image:
    shorter = min(image.size)
    if side is None or shorter <= side:
        return image
    width, height = (max(1, round(length * side / shorter)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _check_memory(needed: int, count: int) -> None:
    free = _free_memory()
    if free is not None and needed > 0.7 * free:
        raise DataError(
            f"cache=ram needs about {needed / 2**30:.1f} GiB for {count:,} decoded images, "
            f"{free / 2**30:.1f} GiB are free; use cache=none"
        )


def _free_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
