"""Tar shards as a data set with random access: runs on them can be resumed exactly, as on files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iformer.data.parallel import Progress
from iformer.data.samples import DataSplits, ImageSet, IndexedSamples, Sample
from iformer.data.sources.layout import display_name
from iformer.data.sources.shards.index import INDEX, UNFINISHED, SplitIndex, read_index
from iformer.data.sources.shards.scan import index_foreign
from iformer.data.sources.shards.stores import FolderStore, ShardStore, shard_store
from iformer.errors import DataError


@dataclass(frozen=True, slots=True)
class ShardSample(Sample):
    """One image of a shard."""

    samples: ShardSamples
    position: int

    def __str__(self) -> str:
        return self.samples.store.path(self.name)

    @property
    def name(self) -> str:
        columns = self.samples.columns
        return f"{columns.shards[columns.shard[self.position]]}/{self.samples.member_name(self.position)}"

    def relative_path(self, root: Path) -> str:
        return self.name

    def read(self) -> bytes:
        columns, position = self.samples.columns, self.position
        return self.samples.store.read(
            columns.shards[columns.shard[position]],
            int(columns.offset[position]),
            int(columns.size[position]),
            int(columns.crc32[position]),
        )

    def size(self) -> int:
        return int(self.samples.columns.size[self.position])


class ShardSamples(IndexedSamples):
    """The images of one split of a data set in tar shards."""

    def __init__(self, store: ShardStore, columns: SplitIndex) -> None:
        self.store, self.columns = store, columns
        self.readers = store.readers
        self._names: list[str] | None = None

    def sample(self, position: int) -> Sample:
        return ShardSample(self, position, label=int(self.columns.label[position]))

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.columns.label

    @property
    def contents(self) -> str:
        return self.columns.contents()

    def member_name(self, position: int) -> str:
        """Return the name of an image's tar member. The first call decodes all names."""
        if self._names is None:
            self._names = self.columns.member_names
        return self._names[position]


def holds_shards(folder: Path) -> bool:
    """Return whether a folder holds tar files, an index of shards, or the mark of unfinished packing."""
    return any((folder / name).is_file() for name in (INDEX, UNFINISHED)) or any(
        path.is_file() for path in folder.glob("*.tar")
    )


def load_shards(
    where: str | os.PathLike[str], *, progress: Progress | None = None, for_training: bool = True
) -> DataSplits:
    """Open the training and validation images of a folder of shards. No image is decoded.

    Foreign shards (written by other programs) have no index; in a local folder, `index_foreign` makes it first.

    Args:
        where: the folder, or its URL, which must have an index.
        progress: called with the number of shards indexed and their total.
        for_training: require both splits; else one of them may be empty.

    Raises:
        DataError: a split, a shard or a URL's index is missing, a shard is truncated, or the index is damaged.
    """
    store = shard_store(where)
    if isinstance(store, FolderStore) and not os.path.isfile(store.folder / INDEX):
        index = index_foreign(store, progress)
    else:
        index = read_index(store)
    missing = [name for name in ("train", "val") if name not in index.splits or not len(index.splits[name])]
    if missing and (for_training or len(missing) == 2):
        raise DataError(
            f"{store.location}: no shard of the {missing[0]} split; "
            "expected files such as train-00000.tar and val-00000.tar"
        )
    root = Path(where)
    sets = {
        name: ImageSet(
            name=display_name(root, name),
            class_names=index.class_names,
            samples=ShardSamples(store, index.splits[name]) if name in index.splits else (),
            root=root,
        )
        for name in ("train", "val")
    }
    return DataSplits(train=sets["train"], val=sets["val"])
