"""An `ImageSet` as a dataset of transformed images, decoded at each access or once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from iformer.data.conversion import CARRIERS, ValueRange
from iformer.data.images import read_image
from iformer.data.parallel import Progress, map_in_threads
from iformer.data.samples import ImageSet, IndexedSamples, Sample
from iformer.data.sampling import Key, seeded
from iformer.data.transforms import Transform, TransformSchedule
from iformer.errors import DataError

Batch = dict[str, Any]
"""images: uint8 (B, C, H, W) in channels-last memory; labels and indices: int64 (B), or labels: float32 (B, K) if
an image may have several."""


class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """The images of an `ImageSet` after a transform. A key is (epoch, index), or an index for epoch 0.

    While an image is transformed, the global generators of `random`, `numpy.random` and torch (CPU) are seeded
    with (seed, epoch, index); afterwards their states are restored.
    """

    def __init__(
        self,
        image_set: ImageSet,
        transform: Transform | TransformSchedule,
        *,
        seed: int = 0,
        cache: Literal["none", "ram"] = "none",
        cache_side: int | None = None,
        channels: int = 3,
        value_range: ValueRange | None = None,
        multi_label: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Create the dataset; with `cache="ram"` every image is decoded now.

        Args:
            image_set: the images.
            transform: decoded image -> uint8 (C, H, W), for all epochs or by epoch.
            seed: seed of the augmentation.
            cache: "ram" keeps the decoded images (gray ones with one channel); workers share them.
            cache_side: cached images with a longer shorter side are reduced to it, which changes them. None
                means keep them as they are.
            channels: see `iformer.data.images.read_image`.
            value_range: likewise.
            multi_label: labels of a batch are float32 B x K, 1 for each class of an image.
            progress: called with the number of images cached and their total.

        Raises:
            DataError: an image cannot be read, or the decoded images do not fit into the free memory.
        """
        self.image_set = image_set
        self.transform = transform
        self.seed = seed
        self.multi_label = multi_label
        self._read = partial(read_image, keep_gray=True, channels=channels, value_range=value_range)
        self._cache = _DecodedImages(image_set, cache_side, self._read, progress) if cache == "ram" else None

    def __len__(self) -> int:
        return len(self.image_set)

    def image(self, index: int) -> Image.Image:
        """Return the decoded image, before any transform; gray images have one channel.

        Raises:
            DataError: the file cannot be read.
        """
        if self._cache is not None:
            return self._cache.image(index)
        return self._read(self.image_set.samples[index])

    def __getitem__(self, key: Key | int) -> tuple[Tensor, int, int]:
        """Return the image, uint8 (C, H, W), its label and its index.

        Raises:
            DataError: the file cannot be read.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self._transformed(self.image(index), epoch, index)

    def batch(self, keys: Sequence[Key]) -> Batch:
        """Return the images of `keys`, all of one size, as a batch."""
        images = self._images([index for _, index in keys])
        items = [self._transformed(image, *key) for image, key in zip(images, keys, strict=True)]
        # The transforms' memory layout is H, W, C; stacking it gives channels-last without a conversion.
        images_BHWC = torch.stack([pixels_CHW.permute(1, 2, 0) for pixels_CHW, _, _ in items])
        return {
            "images": images_BHWC.permute(0, 3, 1, 2),
            "labels": self._labels([index for _, _, index in items]),
            "indices": torch.tensor([index for _, _, index in items], dtype=torch.int64),
        }

    def _labels(self, indices: Sequence[int]) -> Tensor:
        if self.multi_label:
            return torch.from_numpy(np.stack([self.image_set.multi_hot(index) for index in indices]))
        return torch.tensor([self.image_set.samples[index].label for index in indices], dtype=torch.int64)

    def _transformed(self, image: Image.Image, epoch: int, index: int) -> tuple[Tensor, int, int]:
        transform = self.transform
        if isinstance(transform, TransformSchedule):
            transform = transform.at(epoch)
        with seeded(self.seed, epoch, index):
            pixels_CHW = transform(image)
        return pixels_CHW, self.image_set.samples[index].label, index

    def _images(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """Yield the decoded images; from a remote store, some are fetched while others are used."""
        samples = self.image_set.samples
        readers = samples.readers if isinstance(samples, IndexedSamples) and self._cache is None else 1
        if readers == 1:
            return map(self.image, indices)
        return map_in_threads(self.image, indices, workers=readers, ahead=readers)


class _DecodedImages:
    """All images of a set, decoded once into one buffer, so that forked workers share its pages.

    With one object per image, reference counts would be written and the pages copied to each worker.
    """

    def __init__(
        self,
        image_set: ImageSet,
        side: int | None,
        read: Callable[[Sample], Image.Image],
        progress: Progress | None,
    ) -> None:
        def decode(sample: Sample) -> np.ndarray:
            return np.asarray(_reduce(read(sample), side))

        total = len(image_set)
        arrays: list[np.ndarray] = []
        needed = 0
        for array in map_in_threads(decode, image_set.samples):
            arrays.append(array)
            needed += array.nbytes
            if len(arrays) == min(64, total):
                _check_memory(needed * total // len(arrays), total)
            if progress is not None:
                progress(len(arrays), total)
        self._shapes = np.array([(*array.shape, 1)[:3] for array in arrays], dtype=np.int64).reshape(-1, 3)
        ends = np.cumsum([array.nbytes for array in arrays])
        self._starts = np.concatenate([[0], ends]).astype(np.int64)
        self._pixels = np.empty(int(self._starts[-1]), dtype=np.uint8)
        # From last to first, releasing each array: never twice the memory at once.
        for index in range(total - 1, -1, -1):
            array = arrays.pop()
            self._pixels[self._starts[index] : self._starts[index + 1]] = array.reshape(-1)

    def image(self, index: int) -> Image.Image:
        height, width, channels = (int(size) for size in self._shapes[index])
        pixels = self._pixels[self._starts[index] : self._starts[index + 1]]
        # frombytes copies; an image in mode L made by frombuffer would be a view of the cache
        return Image.frombytes(CARRIERS[channels], (width, height), pixels.data)


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
