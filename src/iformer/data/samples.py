"""A set of labelled images: which files there are and what is in them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from iformer.data.images import StoredImage
from iformer.errors import DataError


class Sample(NamedTuple):
    """One image file and the index of its class."""

    path: Path | StoredImage
    label: int

    @property
    def file(self) -> Path:
        """The image's own file.

        Raises:
            DataError: it has none, but lies inside of another.
        """
        if isinstance(self.path, StoredImage):
            raise DataError(f"{self.path}: lies inside of another file; give a folder of image files for this")
        return self.path


class StoredSamples(Sequence[Sample], ABC):
    """Samples that lie in a store with an index: each is made when it is asked for."""

    readers: int = 1
    """How many images are best read at a time: many where each answer is a while on its way."""

    @abstractmethod
    def image(self, position: int) -> StoredImage:
        """The image at a position."""

    @property
    @abstractmethod
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) class indices."""

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, position: int) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Sample]: ...
    def __getitem__(self, position: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(position, slice):
            return tuple(self[place] for place in range(*position.indices(len(self))))
        return Sample(self.image(int(position)), int(self.labels[position]))

    @property
    @abstractmethod
    def contents(self) -> str:
        """What identifies the samples, their labels and their contents, such as a hash."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """The images of one part (training or validation) of a data set.

    `labels` of the samples are indices into `class_names`.
    """

    name: str
    """What it is, for people: "elpv train"."""
    class_names: tuple[str, ...]
    samples: Sequence[Sample]
    root: Path
    """The folder that the samples' paths are relative to in `relative_path`."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """Files of this part that were skipped and why, one line each."""

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """int64 array (N,) of class indices."""
        if isinstance(self.samples, StoredSamples):
            return self.samples.labels
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    @property
    def class_counts(self) -> dict[str, int]:
        """Number of images of each class, in the order of `class_names`."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    def relative_path(self, sample: Sample) -> str:
        """The sample's path below `root`, with forward slashes on every system."""
        if isinstance(sample.path, StoredImage):
            return sample.path.name
        if sample.path.is_relative_to(self.root):
            return sample.path.relative_to(self.root).as_posix()
        return sample.path.as_posix()

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The samples at `indices`, in that order, with the same classes."""
        return ImageSet(
            name=self.name,
            class_names=self.class_names,
            samples=tuple(self.samples[index] for index in indices),
            root=self.root,
            warnings=self.warnings,
        )

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the class names and of each file's relative path, label and size in bytes.

        The contents are not read. Two copies of a data set in different folders have the same fingerprint.
        Of a store (shards) it is the hash of the class names and of its index, checksums included.

        Raises:
            OSError: a file has gone since the set was made.
        """
        digest = hashlib.sha256()
        for name in self.class_names:
            digest.update(f"class\0{name}\n".encode("utf-8", "surrogateescape"))
        if isinstance(self.samples, StoredSamples):
            digest.update(self.samples.contents.encode())
            return digest.hexdigest()
        for sample in self.samples:
            line = f"{self.relative_path(sample)}\0{sample.label}\0{sample.file.stat().st_size}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class DataSplits:
    """A data set's training and validation images; both have the same `class_names`."""

    train: ImageSet
    val: ImageSet
    warnings: tuple[str, ...] = ()
    """Everything that a user should know, one line each: files skipped and why, images in both parts."""
