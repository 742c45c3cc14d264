"""Reading of tar shards from end to end, to index or verify them."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from iformer.data.images import has_image_extension
from iformer.data.parallel import Progress
from iformer.data.sources.shards.index import (
    MAX_IMAGE_BYTES,
    UNFINISHED,
    ShardIndex,
    SplitIndex,
    class_names_of,
    shards_in,
    split_of,
    write_index,
)
from iformer.data.sources.shards.stores import FolderStore, ShardStore
from iformer.errors import DataError

_MAX_LABEL_BYTES = 32


def scan_shards(
    store: ShardStore,
    shards: Sequence[str],
    progress: Progress | None = None,
    *,
    inspect: Callable[[str, bytes], None] | None = None,
) -> SplitIndex:
    """Read shards from end to end and index their images.

    Args:
        store: where the shards are.
        shards: their file names.
        progress: called with the number of shards read and their total.
        inspect: called with each image's path (for messages) and contents.

    Raises:
        DataError: a shard is damaged, an image has no label, or a label has no image.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    names: list[str] = []
    for number, shard in enumerate(shards):
        for member, offset, size, crc32, label in _read_shard(store, shard, inspect):
            rows.append((number, offset, size, crc32, label))
            names.append(member)
        if progress is not None:
            progress(number + 1, len(shards))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return SplitIndex(
        shards=tuple(shards),
        shard=columns[:, 0].astype(np.int32),
        offset=columns[:, 1].copy(),
        size=columns[:, 2].copy(),
        crc32=columns[:, 3].astype(np.uint32),
        label=columns[:, 4].copy(),
        names=np.frombuffer("\n".join(names).encode("utf-8", "surrogateescape"), dtype=np.uint8),
    )


def index_foreign(store: FolderStore, progress: Progress | None = None) -> ShardIndex:
    """Index the shards of a folder that has no index, and write the index if the folder is writable.

    Raises:
        DataError: a shard is damaged, its name contains no split, its labels do not fit the classes, or packing
            into the folder was stopped.
        OutputError: the index cannot be written.
    """
    root = store.folder
    if (root / UNFINISHED).exists():
        raise DataError(f"{root}: packing was stopped before it was complete; remove this folder and pack again")
    shards: dict[str, list[str]] = {}
    for path in shards_in(root):
        split = split_of(path.name)
        if split is None:
            raise DataError(f"{path}: expected train or val in its name")
        shards.setdefault(split, []).append(path.name)
    splits = {split: scan_shards(store, names, progress) for split, names in shards.items()}
    class_names = class_names_of(root, [split.label for split in splits.values()])
    index = ShardIndex(class_names=class_names, splits=splits)
    if os.access(root, os.W_OK):
        write_index(root, index)
    return index


def _read_shard(
    store: ShardStore, shard: str, inspect: Callable[[str, bytes], None] | None
) -> Iterator[tuple[str, int, int, int, int]]:
    """Yield (member, offset, size, CRC-32, label) of each image, in file order."""
    path = store.path(shard)
    images: dict[str, tuple[str, int, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with store.open(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, extension = _split_name(member.name)
                is_label = extension == "cls"
                if member.size < 0:  # tarfile would read the same header for ever
                    raise DataError(f"{path}: damaged shard ({member.name!r} has a negative size)")
                if not member.isfile() or not (is_label or has_image_extension(member.name)):
                    continue
                if "\n" in member.name:
                    raise DataError(f"{path}: the name {member.name!r} contains a line break")
                where = f"{path}/{member.name}"
                if member.issparse() or not 0 <= member.size <= MAX_IMAGE_BYTES:
                    raise DataError(
                        f"{where}: {member.size:,} bytes; expected a plain file of at most "
                        f"{MAX_IMAGE_BYTES:,} bytes, not sparse"
                    )
                if key in (labels if is_label else images):
                    raise DataError(f"{path}: two {'labels' if is_label else 'images'} named {key}")
                opened = tar.extractfile(member)
                assert opened is not None
                data = opened.read()
                if len(data) != member.size:
                    raise DataError(f"{path}: truncated in {member.name}")
                if is_label:
                    labels[key] = _label(where, data)
                else:
                    if inspect is not None:
                        inspect(where, data)
                    images[key] = (member.name, member.offset_data, member.size, zlib.crc32(data))
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every member
            # tarfile takes the end of the file for the end of the archive
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(f"{path}: damaged shard (its end is missing; it was cut off or is being written)")
    except DataError:
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: damaged shard ({' '.join(str(error).split())})") from None
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        raise DataError(f"{path}: {alone[0]} has no {'label (.cls)' if alone[0] in images else 'image'}")
    for key, (name, offset, size, crc32) in images.items():
        yield name, offset, size, crc32, labels[key]


def _label(where: str, text: bytes) -> int:
    if len(text) > _MAX_LABEL_BYTES or not re.fullmatch(rb"\s*[0-9]{1,9}\s*", text):
        raise DataError(f"{where}: the label is {text[:_MAX_LABEL_BYTES]!r}; expected a class index, 0 or more")
    return int(text)


def _split_name(name: str) -> tuple[str, str]:
    """Return WebDataset's key, which ends at the first dot of the last path component, and the extension."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()
