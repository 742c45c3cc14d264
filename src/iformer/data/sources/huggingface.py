"""Data sets of Hugging Face through timm's reader, at random access: exact epochs, resumable like files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iformer.data.images import StoredImage
from iformer.data.samples import DataSplits, ImageSet, StoredSamples
from iformer.dependencies import require
from iformer.errors import DataError

HUB_PREFIX = "hfds/"
"""What names of such data sets begin with, as in timm."""

_VAL_SPLITS = ("validation", "valid", "val", "test")


class HubImage(StoredImage):
    """One image of a split."""

    def __init__(self, samples: HubSamples, position: int) -> None:
        self._samples, self._position = samples, position

    @property
    def name(self) -> str:
        return f"{self._samples.split}/{self._position}"

    def read_bytes(self) -> bytes:
        file, _ = self._samples.reader[self._position]
        with file:
            return bytes(file.read())

    def __fspath__(self) -> str:
        return f"{HUB_PREFIX}{self._samples.dataset}/{self.name}"


class HubSamples(StoredSamples):
    """The images of one split, in the order of its table."""

    def __init__(self, dataset: str, split: str, reader: Any) -> None:
        """`reader` is timm's."""
        self.dataset, self.split, self.reader = dataset, split, reader
        self._labels = np.array(list(reader.iter_targets()), dtype=np.int64)

    def image(self, position: int) -> StoredImage:
        return HubImage(self, position)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    @property
    def contents(self) -> str:
        fingerprint = self.reader.dataset._fingerprint  # the library's own, of the table and what was done to it
        return hashlib.sha256(f"{self.split}\0{len(self)}\0{fingerprint}".encode()).hexdigest()


def load_hub_data(spec: str) -> DataSplits:
    """The splits `train` and `validation` (or valid, val, test) of a data set with `image` and `label` columns.

    Args:
        spec: "hfds/" and the name of a repository, or the path of a folder that the library reads.

    Raises:
        MissingDependencyError: the datasets package is not installed.
        DataError: the data set cannot be fetched or read, or has no such splits or columns.
    """
    require("datasets", extra="data")
    from timm.data.readers.reader_factory import create_reader

    dataset = spec.removeprefix(HUB_PREFIX)

    def samples(split: str) -> tuple[HubSamples, tuple[str, ...]]:
        reader: Any = create_reader(spec, split=split)
        names = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
        return HubSamples(dataset, split, reader), tuple(names)

    try:
        import datasets

        splits = datasets.get_dataset_split_names(dataset)
        val = next((name for name in _VAL_SPLITS if name in splits), None)
        if "train" not in splits or val is None:
            raise DataError(f"{spec}: has the splits {', '.join(splits)}; expected train and validation")
        train_samples, class_names = samples("train")
        val_samples, _ = samples(val)
    except DataError:
        raise
    except Exception as error:  # the library and the hub's client raise of every kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{spec}: cannot be read ({reason})") from None
    if not class_names:
        class_names = tuple(str(number) for number in range(int(train_samples.labels.max()) + 1))
    root = Path(os.path.expanduser(dataset))
    return DataSplits(
        train=ImageSet(name=f"{dataset} train", class_names=class_names, samples=train_samples, root=root),
        val=ImageSet(name=f"{dataset} val", class_names=class_names, samples=val_samples, root=root),
    )
