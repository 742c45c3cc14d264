"""Load labelled images with classes in the order of a network's outputs, and make tensors of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from iformer.config.metadata import Metadata
from iformer.data.conversion import CARRIERS, ValueRange
from iformer.data.images import read_image
from iformer.data.loader import Batch
from iformer.data.parallel import Progress, map_in_threads
from iformer.data.samples import DataSplits, ImageSet, IndexedSamples, Sample
from iformer.data.sampling import Key, seeded
from iformer.data.sources import load_data
from iformer.data.sources.splitting import DEFAULT_VAL_SPLIT, select_classes, split_fold
from iformer.data.transforms import Transform, TransformSchedule
from iformer.errors import ConfigError, DataError, counted, listed
from iformer.tasks.class_order import class_order, refuse_unknown
from iformer.tasks.interface import Split
from iformer.tasks.trained_split import has_images, has_name, trained_data


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images whose labels are indices into a network's outputs."""

    images: ImageSet
    split: Split
    """Name of the split that `images` holds."""
    train: ImageSet
    """The training split; equal to `images` if `split` is "train"."""
    notes: tuple[str, ...]
    """Notes on an evaluation, one line each: skipped files, the evaluated share, images seen in training."""


def find_labelled(
    metadata: Metadata,
    num_classes: int,
    data: str,
    *,
    split: Split | None = None,
    val_split: float | None = None,
    strict: bool = False,
    for_training: bool = False,
) -> LabelledImages:
    """Load a data set, with labels that are indices into a network's outputs.

    Args:
        metadata: class names of the network and the data it was trained on.
        num_classes: number of outputs of the network.
        data: name of the data, such as a folder or `elpv`; see `iformer.data.sources.load_data`.
        split: "val", "train" or "all". None: "val", but "all" if the data is not split, the network was not
            trained on it, and neither `val_split` nor `for_training` is given.
        val_split: share of each class for validation if the data is not split. None: the share used in the
            network's training if known, else `DEFAULT_VAL_SPLIT`.
        strict: an unreadable image is an error instead of being skipped.
        for_training: require images of every class in both splits. False: take any labelled images of the
            network's classes.

    Raises:
        DataError: the data cannot be read, its classes do not fit the network, or the split is empty.
        ConfigError: `val_split` is not between 0 and 1, or is given for data that is split.
    """
    trained_on = trained_data(metadata)
    share = float(trained_on.get("val_split", DEFAULT_VAL_SPLIT)) if val_split is None else val_split
    splits = load_data(
        data,
        val_split=share,
        strict=strict,
        for_training=for_training and "fold" not in trained_on,  # what makes folds may have no other split
        multi_label=metadata.multi_label,
    )
    splits, has_trained_images = _as_in_training(splits, trained_on, data)
    refuse_val_split(val_split, splits, data)
    class_names = metadata.class_names or splits.val.class_names
    if len(class_names) != num_classes:
        raise DataError(
            f"{data} has {counted(len(class_names), 'class')}, the network has {counted(num_classes, 'output')}"
        )
    known = has_trained_images or has_name(trained_on, data)
    chosen = split is not None
    if split is None:
        split = "all" if splits.split_off and val_split is None and not (known or for_training) else "val"
    own = split == "val" and has_images(trained_on, "val", splits.val)
    images = with_class_order(_select(splits, split), class_names)
    if not len(images):
        hint = "" if split == "all" else "; --split all takes the images of both"
        raise DataError(f"{data}: no image in the {split} split{hint}")
    return LabelledImages(
        images=images,
        split=split,
        train=with_class_order(splits.train, class_names),
        notes=(
            *splits.warnings,
            *_share(splits, images, share, own=own, explained=for_training or (own and chosen)),
            *_seen_in_training(split, known=known, has_trained_images=has_trained_images),
        ),
    )


def _as_in_training(splits: DataSplits, trained_on: dict[str, Any], data: str) -> tuple[DataSplits, bool]:
    """Return the classes and the fold that the network was trained on, if this is the data of its training.

    Returns:
        The splits, and whether their training images are those of the training.
    """

    def selected() -> DataSplits:
        classes, fold = trained_on.get("classes"), trained_on.get("fold")
        chosen = splits if classes is None else select_classes(splits, classes)
        return chosen if fold is None else split_fold(chosen, *fold)

    is_named = has_name(trained_on, data)
    try:
        chosen = selected()
    except (ConfigError, DataError):
        if is_named:
            raise
        chosen = splits  # other data, without these classes or with fewer images
    is_same = has_images(trained_on, "train", chosen.train)
    if is_same or is_named or chosen is splits:
        return chosen, is_same
    return splits, has_images(trained_on, "train", splits.train)


def refuse_val_split(val_split: float | None, splits: DataSplits, data: str) -> None:
    """Raise an error if `val_split` is given for data that is split already.

    Raises:
        ConfigError: the message names the data.
    """
    if val_split is not None and not splits.split_off:
        raise ConfigError(f"val_split is {val_split:g}, and {data} is split; leave it out")


def with_class_order(image_set: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Return an image set whose labels are indices into `class_names`, which may have more classes than the set.

    Raises:
        DataError: the set has a class that is not in `class_names`; the message names the differences.
    """
    refuse_unknown(class_names, image_set.class_names)
    labels = [label for label in class_order(class_names, image_set.class_names) if label is not None]
    samples = tuple(
        replace(sample, label=labels[sample.label])
        if sample.labels is None
        else replace(
            sample,
            label=labels[sample.label] if sample.labels else -1,
            labels=tuple(sorted(labels[label] for label in sample.labels)),
        )
        for sample in image_set.samples
    )
    return replace(image_set, class_names=tuple(class_names), samples=samples)


def _select(splits: DataSplits, split: Split) -> ImageSet:
    if split == "all":
        name = splits.val.name.removesuffix(" val")
        return replace(splits.val, name=name, samples=(*splits.train.samples, *splits.val.samples))
    return splits.val if split == "val" else splits.train


def _share(splits: DataSplits, images: ImageSet, share: float, *, own: bool, explained: bool) -> list[str]:
    """Return notes if `images` lack a part of unsplit data, or lack some of the network's classes.

    Args:
        own: whether the images are the validation images of the network's training.
        explained: whether the user knows already which part of the data it is.
    """
    notes = []
    total = len(splits.train) + len(splits.val)
    if not explained and splits.split_off and len(images) < total:
        whose = ", the validation images of the network's training" if own else ""
        notes.append(
            f"evaluated {len(images)} of {total} images: the data is not split, and val is "
            f"{100 * share:g} % of each class{whose}; --split all evaluates all"
        )
    missing = [name for name, count in images.class_counts.items() if not count]
    if missing:
        shown = listed(missing)
        notes.append(f"no image of {len(missing)} of the network's {len(images.class_names)} classes: {shown}")
    return notes


def _seen_in_training(split: Split, *, known: bool, has_trained_images: bool) -> list[str]:
    """Return a warning if the network was, or may have been, trained on images of the split."""
    if has_trained_images:
        return [] if split == "val" else ["the network was trained on some of these images"]
    if known:
        return [
            "the files are not split as they were when this network was trained: it may have been trained on "
            "some of these images"
        ]
    return []


class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """Data set of the transformed images of an `ImageSet`. A key is (epoch, index), or an index for epoch 0.

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
            transform: function from a decoded image to uint8 (C, H, W), or a schedule of such functions by epoch.
            seed: seed of the augmentation.
            cache: "ram" keeps the decoded images (gray ones with one channel); workers share them.
            cache_side: cached images whose shorter side has more pixels are reduced to this side, which changes
                the training images. None: keep the size.
            channels: see `iformer.data.images.read_image`.
            value_range: see `iformer.data.images.read_image`.
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
        """Return a transformed image, uint8 (C, H, W), with its label and its index.

        Raises:
            DataError: the file cannot be read.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self._transformed(self.image(index), epoch, index)

    def batch(self, keys: Sequence[Key]) -> Batch:
        """Return a batch of transformed images, which must have one size.

        Returns:
            `images`: uint8 (B, C, H, W); `labels`: int64 (B), or float32 (B, K) with `multi_label`; `indices`:
            int64 (B).

        Raises:
            DataError: a file cannot be read.
        """
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
        """Yield the decoded images; those of a remote store are fetched ahead in threads."""
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
