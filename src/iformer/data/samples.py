"""Sets of labelled images for classification."""

from __future__ import annotations

import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from iformer.errors import DataError, printable


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(ABC):
    """One encoded image and the index of its class. `str()` gives its location, for messages."""

    label: int
    labels: tuple[int, ...] | None = None
    """Indices of the image's classes in a multi-label data set, possibly empty; `label` is then the first of them,
    or -1. None: the data set has one label per image."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Indices of the classes of the image."""
        return (self.label,) if self.labels is None else self.labels

    @property
    @abstractmethod
    def name(self) -> str:
        """The file's name, for captions."""

    @abstractmethod
    def relative_path(self, root: Path) -> str:
        """Return the image's path below the data set's folder, with forward slashes on every system."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the image file's contents.

        Raises:
            DataError: the contents cannot be read.
        """

    @abstractmethod
    def size(self) -> int:
        """Return the number of bytes of the image file.

        Raises:
            OSError: the file no longer exists.
        """


@dataclass(frozen=True, slots=True)
class FileSample(Sample, os.PathLike[str]):
    """A sample that is an image file of its own."""

    path: Path
    group: str = field(default="", kw_only=True)
    """Name of the image's group, such as a patient. A group stays in one split. Empty: no group."""

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    @property
    def name(self) -> str:
        return self.path.name

    def relative_path(self, root: Path) -> str:
        return (self.path.relative_to(root) if self.path.is_relative_to(root) else self.path).as_posix()

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from None

    def size(self) -> int:
        return self.path.stat().st_size


class IndexedSamples(Sequence[Sample], ABC):
    """Samples of a store with an index. Each sample is created when it is accessed."""

    readers: int = 1
    """Number of images to read at the same time; more than 1 where each read has a high latency."""

    @abstractmethod
    def sample(self, position: int) -> Sample:
        """Return the sample at a position, 0 <= position < len."""

    @property
    @abstractmethod
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, shape (N,)."""

    @property
    @abstractmethod
    def contents(self) -> str:
        """A string that identifies the samples, their labels and their contents, such as a hash."""

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, position: int) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Sample]: ...
    def __getitem__(self, position: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(position, slice):
            return tuple(self.sample(place) for place in range(*position.indices(len(self))))
        return self.sample(range(len(self))[position])


_MAX_NAME, _MAX_NAMES = 1_000, 2_000_000
"""Largest number of characters in one class name, and in all names together. Every checkpoint stores them."""


def check_class_names(names: Sequence[str], data: str) -> None:
    """Check that class names fit into checkpoints, before anything is trained with them.

    Raises:
        DataError: a name or all names together are too long.
    """
    longest = max(names, key=len, default="")
    if len(longest) > _MAX_NAME:
        raise DataError(
            f"{data}: the class name {printable(longest, limit=40)} has {len(longest):,} characters; expected at "
            f"most {_MAX_NAME:,}"
        )
    if (total := sum(map(len, names))) > _MAX_NAMES:
        raise DataError(f"{data}: its class names have {total:,} characters; expected at most {_MAX_NAMES:,}")


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of one split (training or validation) of a data set."""

    name: str
    """A name for messages: "elpv train"."""
    class_names: tuple[str, ...]
    """Names of the classes; a sample's `label` is an index into them."""
    samples: Sequence[Sample] = field(repr=False)
    root: Path
    """The data set's folder."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """Files of this split that were left out and why, one line each."""

    def __post_init__(self) -> None:
        check_class_names(self.class_names, self.name)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class indices, int64, shape (N,): the first class of each image, or -1 for an image without labels."""
        if isinstance(self.samples, IndexedSamples):
            return self.samples.labels
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    @property
    def label_sets(self) -> list[tuple[int, ...]]:
        """Class indices of each image, in rising order."""
        if isinstance(self.samples, IndexedSamples):
            return [(label,) for label in self.samples.labels.tolist()]
        return [sample.classes for sample in self.samples]

    def multi_hot(self, index: int) -> npt.NDArray[np.float32]:
        """Return a vector, shape (K,), of 1 for each class that an image has and 0 for the others."""
        target_K = np.zeros(len(self.class_names), np.float32)
        target_K[list(self.samples[index].classes)] = 1
        return target_K

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of `class_names`."""
        if isinstance(self.samples, IndexedSamples):
            labels = self.samples.labels
        else:
            labels = np.fromiter(itertools.chain.from_iterable(self.label_sets), np.int64)
        counts = np.bincount(labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    @property
    def files(self) -> list[Path]:
        """Paths of the image files.

        Raises:
            DataError: the images are stored inside other files.
        """
        for sample in self.samples:
            if not isinstance(sample, FileSample):
                raise DataError(f"{sample}: is stored inside another file; give a folder of image files here")
        return [sample.path for sample in self.samples if isinstance(sample, FileSample)]

    def relative_path(self, sample: Sample) -> str:
        """Return the sample's path below `root`, with forward slashes on every system."""
        return sample.relative_path(self.root)

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """Return the samples at `indices`, in that order, with the same classes."""
        return ImageSet(
            name=self.name,
            class_names=self.class_names,
            samples=tuple(self.samples[index] for index in indices),
            root=self.root,
            warnings=self.warnings,
        )

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the class names and of each file's relative path, label and size.

        Contents are not read. Copies of a data set in different folders have the same fingerprint. For a store
        with an index (`IndexedSamples`), the hash covers the class names and `IndexedSamples.contents`.

        Raises:
            OSError: a file no longer exists.
        """
        digest = hashlib.sha256()
        for name in self.class_names:
            digest.update(f"class\0{name}\n".encode("utf-8", "surrogateescape"))
        if isinstance(self.samples, IndexedSamples):
            digest.update(self.samples.contents.encode())
            return digest.hexdigest()
        for sample in self.samples:
            label = ",".join(map(str, sample.classes))
            line = f"{self.relative_path(sample)}\0{label}\0{sample.size()}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """A data set's training and validation images; both have the same `class_names`."""

    train: ImageSet
    val: ImageSet
    warnings: tuple[str, ...] = ()
    """Warnings for the user, one line each: files that are left out and why, images in both splits."""
    split_off: bool = False
    """Whether `val` was split off from the training images, because the data has no validation images."""
