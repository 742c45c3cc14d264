"""Hugging Face data sets through timm's reader, with random access: runs on them can be resumed exactly."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iformer.data.samples import DataSplits, ImageSet, IndexedSamples, Sample
from iformer.data.sources.layout import SPLIT_NAMES
from iformer.dependencies import require
from iformer.errors import DataError, counted, one_line, printable

HUB_PREFIX = "hfds/"
"""Prefix of the names of Hugging Face data sets, as in timm."""

_MAX_CLASSES = 1_000_000


@dataclass(frozen=True, slots=True)
class HubSample(Sample):
    """One image of a Hugging Face data set."""

    samples: HubSamples
    position: int

    def __str__(self) -> str:
        return f"{HUB_PREFIX}{self.samples.dataset}/{self.name}"

    @property
    def name(self) -> str:
        return f"{self.samples.split}/{self.position}"

    def relative_path(self, root: Path) -> str:
        return self.name

    def read(self) -> bytes:
        try:
            file, _ = self.samples.reader[self.position]
            with file:
                return bytes(file.read())
        except AssertionError:
            raise DataError(f"{self}: has neither bytes nor a path") from None
        except OSError as error:
            raise DataError(f"{self}: cannot be read ({error.strerror or error})") from None

    def size(self) -> int:
        return len(self.read())


class HubSamples(IndexedSamples):
    """The images of one split of a Hugging Face data set, in the order of the split's table."""

    def __init__(self, dataset: str, split: str, reader: Any) -> None:
        """Wrap `reader`, timm's reader of the split."""
        self.dataset, self.split, self.reader = dataset, split, reader
        _check_columns(reader.dataset, f"{HUB_PREFIX}{dataset}")
        labels = list(reader.iter_targets())
        for row, label in enumerate(labels):
            if not isinstance(label, int | float) or label % 1 != 0:
                raise DataError(
                    f"{HUB_PREFIX}{dataset}: row {row} of {split} has the label {printable(str(label), limit=80)}"
                    "; expected whole numbers or classes (class_encode_column of the datasets library makes them)"
                )
        self._labels = np.array(labels, dtype=np.int64)

    def sample(self, position: int) -> Sample:
        return HubSample(self, position, label=int(self._labels[position]))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self._labels

    @property
    def contents(self) -> str:
        # private, but the only fingerprint of a table and of the operations applied to it
        fingerprint = self.reader.dataset._fingerprint
        return hashlib.sha256(f"{self.split}\0{len(self)}\0{fingerprint}".encode()).hexdigest()


def _check_columns(table: Any, data: str) -> None:
    """Check that a split's table has images and labels; timm's reader makes an empty column of a missing one."""
    missing = table.data.column("image").null_count
    names = [name for name in table.column_names if name != "image" or missing < len(table)]
    if len(table) and not {"image", "label"} <= {*names}:
        raise DataError(
            f"{data}: has the columns {', '.join(map(printable, names))}; expected image and label (rename_column "
            "of the datasets library renames one)"
        )
    if missing:
        raise DataError(f"{data}: {counted(missing, 'row')} of {len(table):,} without an image; leave them out")


def load_hub_data(spec: str, *, for_training: bool = True) -> DataSplits:
    """Open the splits `train` and `validation` (or valid, val, test) of a data set of images and labels.

    Args:
        spec: "hfds/" and a repository's name, or the path of a folder that the datasets library reads. The
            columns must be `image` and `label`.
        for_training: require both splits; else one of them may be empty.

    Raises:
        MissingDependencyError: the datasets package is not installed.
        DataError: the data set cannot be fetched or read, or has no such splits or columns.
    """
    if spec == HUB_PREFIX:
        raise DataError(f"{spec}: names no data set; give {HUB_PREFIX}NAME")
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
        found = {
            split: samples(name)
            for split, names in SPLIT_NAMES.items()
            if (name := next((name for name in names if name in splits), None)) is not None
        }
        if len(found) < (2 if for_training else 1):
            raise DataError(f"{spec}: has the splits {', '.join(splits)}; expected train and validation")
    except DataError:
        raise
    except Exception as error:  # the library and the hub's client raise errors of many types
        raise DataError(f"{spec}: cannot be read ({one_line(error)})") from None
    class_names = next(names for _, names in found.values())
    labels = np.concatenate([samples.labels for samples, _ in found.values()])
    most = len(class_names) or _MAX_CLASSES
    if len(labels) and not 0 <= labels.min() <= labels.max() < most:
        raise DataError(
            f"{spec}: has labels from {labels.min()} to {labels.max()}; expected 0 to {most - 1} (images without "
            "a label often have -1)"
        )
    if not class_names:
        highest = int(labels.max(initial=0))
        class_names = tuple(str(number) for number in range(highest + 1))
    root = Path(os.path.expanduser(dataset))
    sets = {
        split: ImageSet(
            name=f"{dataset} {split}",
            class_names=class_names,
            samples=found[split][0] if split in found else (),
            root=root,
        )
        for split in ("train", "val")
    }
    return DataSplits(train=sets["train"], val=sets["val"])
