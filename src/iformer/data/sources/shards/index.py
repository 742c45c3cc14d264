"""The index of tar shards: for each image its shard, byte range, CRC-32 and label.

A shard holds pairs of members in WebDataset's form: `KEY.jpg` (any image format) and `KEY.cls` (the class index as
text). The index is one file next to the shards. `packing` writes it; for foreign shards (written by other
programs) it is made when they are first used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from iformer.data.sources.layout import SPLIT_NAMES
from iformer.data.sources.shards.stores import FolderStore, ShardStore
from iformer.errors import DataError, listed
from iformer.files import utf8_name, write_bytes, write_text

INDEX = "index.safetensors"
INFO = "_info.json"
"""Name of the file in which timm and other readers of WebDataset look for splits, shards and their lengths."""

UNFINISHED = "PACKING-NOT-FINISHED"
"""Name of the file that exists while the shards of a folder are being written."""

MAX_IMAGE_BYTES = 2**30
"""Largest image file in a shard, in bytes."""

_SPLIT_OF_WORD = {word: split for split, words in SPLIT_NAMES.items() for word in words}
"""Split by the word in a foreign shard's file name that stands for it."""
_CHANGED = f"if the shards have changed, remove {INDEX}: training indexes them anew"
_FORMAT = "iformer-shards-1"
_COLUMNS = {"shard": np.int32, "offset": np.int64, "size": np.int64, "crc32": np.uint32, "label": np.int64}
_HEADER = {"format", "class_names", "parts", "sha256"}


@dataclass(frozen=True, kw_only=True)
class SplitIndex:
    """The images of one split: columns of equal length, one row per image."""

    shards: tuple[str, ...]
    """File names in the data set's folder."""
    shard: npt.NDArray[np.int32]
    """Indices into `shards`."""
    offset: npt.NDArray[np.int64]
    """Position of the image's first byte in its shard."""
    size: npt.NDArray[np.int64]
    """Number of bytes of the image."""
    crc32: npt.NDArray[np.uint32]
    label: npt.NDArray[np.int64]
    names: npt.NDArray[np.uint8]
    """Names of the tar members, joined by line breaks, in UTF-8."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def member_names(self) -> list[str]:
        """The name of each image's tar member."""
        text = self.names.tobytes().decode("utf-8", "surrogateescape")
        return text.split("\n") if len(self) else []

    def lengths(self) -> list[int]:
        """Return the number of images in each shard."""
        return [int(count) for count in np.bincount(self.shard, minlength=len(self.shards))]

    def contents(self) -> str:
        """Return the SHA-256 (hex) of the images' order, sizes, checksums and labels."""
        digest = hashlib.sha256()
        for column in (self.size, self.crc32, self.label):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A folder of shards: its classes and its splits."""

    class_names: tuple[str, ...]
    splits: dict[str, SplitIndex]
    """Splits by name: `train`, `val`."""


def read_index(store: ShardStore) -> ShardIndex:
    """Read an index and check that each shard exists and is long enough.

    Raises:
        DataError: the index or a shard is missing or damaged, or a folder has shards that are not in the index.
    """
    path = store.path(INDEX)
    try:
        with store.local(INDEX) as local:
            index = _parse(local)
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: damaged ({' '.join(str(error).split())}); "
            f"{'remove it to make it again' if isinstance(store, FolderStore) else 'upload it again'}"
        ) from None
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; `iformer convert` writes it with the shards, and for shards of other programs "
            "the first training on their folder does"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    for split in index.splits.values():
        _check_shards(store, split)
    if isinstance(store, FolderStore):
        _check_no_others(store.folder, index)
    return index


def write_index(root: Path, index: ShardIndex) -> None:
    """Write an index and, for other readers, `_info.json`.

    Raises:
        OutputError: one of the files cannot be written.
    """
    columns: dict[str, npt.NDArray[Any]] = {}
    for name, split in index.splits.items():
        columns[f"{name}/names"] = split.names
        columns |= {f"{name}/{column}": getattr(split, column) for column in _COLUMNS}
    header = {
        "format": _FORMAT,
        "class_names": json.dumps(index.class_names),
        "parts": json.dumps({name: split.shards for name, split in index.splits.items()}),
    }
    header["sha256"] = _checksum(header, columns)
    info = {
        "name": root.name,
        "splits": {
            {"val": "validation"}.get(name, name): {
                "name": name,
                "num_samples": len(split),
                "filenames": split.shards,
                "shard_lengths": split.lengths(),
            }
            for name, split in index.splits.items()
        },
        "class_names": index.class_names,
    }
    write_text(root / INFO, json.dumps(info, indent=1))
    write_bytes(root / INDEX, serialize(columns, header))


def _parse(local: Path) -> ShardIndex:
    """Read an index file; raise a `ValueError` that says what is wrong with the file."""
    with utf8_name(local) as name, safe_open(name, framework="numpy") as file:
        header = file.metadata() or {}
        if header.get("format") != _FORMAT:
            raise ValueError("not an index of shards")
        if unknown := header.keys() - _HEADER:
            raise ValueError(f"unknown field {min(unknown)}")
        class_names, shards = json.loads(header["class_names"]), json.loads(header["parts"])
        columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    # index files of early versions have no checksum
    if header.get("sha256", checksum := _checksum(header, columns)) != checksum:
        raise ValueError("its checksum does not match")
    if not _distinct_names(class_names) or not isinstance(shards, dict) or not shards.keys() <= {"train", "val"}:
        raise ValueError("bad class names or splits")
    splits = {name: _split(name, names, columns, len(class_names)) for name, names in shards.items()}
    return ShardIndex(class_names=tuple(class_names), splits=splits)


def _split(name: str, shards: Any, columns: dict[str, npt.NDArray[Any]], classes: int) -> SplitIndex:
    if not _distinct_names(shards) or any(os.path.basename(shard) != shard for shard in shards):
        raise ValueError(f"bad names of {name} shards")
    split = SplitIndex(
        shards=tuple(shards),
        names=_column(columns, f"{name}/names", np.uint8),
        **{column: _column(columns, f"{name}/{column}", dtype) for column, dtype in _COLUMNS.items()},
    )
    rows = len(split)
    if any(len(getattr(split, column)) != rows for column in _COLUMNS) or len(split.member_names) != rows:
        raise ValueError(f"the columns of {name} differ in length")
    for column, limit in (
        ("shard", len(shards)),
        ("label", classes),
        ("offset", 2**62),
        ("size", MAX_IMAGE_BYTES + 1),
    ):
        values = getattr(split, column)
        if rows and not 0 <= int(values.min()) <= int(values.max()) < limit:
            raise ValueError(f"{name}: a {column} is out of range")
    return split


def _column(columns: dict[str, npt.NDArray[Any]], name: str, dtype: Any) -> npt.NDArray[Any]:
    values = columns[name]
    if values.dtype != dtype or values.ndim != 1:
        raise ValueError(f"{name} is {values.dtype} with {values.ndim} dimensions")
    return values


def _distinct_names(names: Any) -> bool:
    return (
        isinstance(names, list) and all(isinstance(n, str) and n for n in names) and len(set(names)) == len(names)
    )


def _checksum(header: dict[str, str], columns: dict[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256(f"{header['class_names']}\0{header['parts']}\0".encode())
    for name in sorted(columns):
        digest.update(f"{name}\0{columns[name].dtype}\0{columns[name].shape}\0".encode())
        digest.update(np.ascontiguousarray(columns[name]).tobytes())
    return digest.hexdigest()


def _check_shards(store: ShardStore, split: SplitIndex) -> None:
    ends = np.zeros(len(split.shards), dtype=np.int64)
    np.maximum.at(ends, split.shard, split.offset + split.size)
    sizes = store.sizes(split.shards)
    for shard, end in zip(split.shards, ends, strict=True):
        path = store.path(shard)
        try:
            size = next(sizes)
        except OSError as error:
            raise DataError(
                f"{path}: {error.strerror or error}, but {INDEX} names it; copy it again, or {_CHANGED}"
            ) from None
        if size is not None and size < end:
            raise DataError(f"{path}: {size:,} bytes, but its index needs {int(end):,}; copy it again")


def _check_no_others(folder: Path, index: ShardIndex) -> None:
    """Refuse shards that were added after the index was written: they would be ignored without a warning."""
    known = {name for split in index.splits.values() for name in split.shards}
    others = [path.name for path in shards_in(folder) if path.name not in known and split_of(path.name)]
    if others:
        raise DataError(f"{folder}: {INDEX} does not name {listed(others, limit=3)}; {_CHANGED}")


def shards_in(folder: Path) -> list[Path]:
    """Return the tar files of a folder, without the hidden files that macOS writes next to them."""
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def split_of(name: str) -> str | None:
    """Return the split that a word in the file name of a foreign shard means; None if there is no such word."""
    return next((split for word, split in _SPLIT_OF_WORD.items() if word in name.lower()), None)


def class_names_of(root: Path, labels: Sequence[npt.NDArray[np.int64]]) -> tuple[str, ...]:
    """Return the class names of foreign shards: the lines of `classes.txt` if it exists, else the class numbers.

    Raises:
        DataError: the labels do not fit the names; or, without names, a label below the highest has no image.
    """
    found = np.unique(np.concatenate([np.unique(column) for column in labels]))
    highest = int(found[-1]) if len(found) else -1
    path = root / "classes.txt"
    if path.is_file():
        try:
            names = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError):
            raise DataError(f"{path}: cannot be read as UTF-8 text; expected one class name per line") from None
        if len(names) <= highest or len(set(names)) != len(names):
            raise DataError(
                f"{path}: has {len(names):,} names; the labels go up to {highest:,}; expected one distinct name "
                "per label, from 0"
            )
        return names
    if highest + 1 != len(found):
        missing = int(np.flatnonzero(found != np.arange(len(found)))[0])
        raise DataError(
            f"{root}: the labels go up to {highest:,}, but no image has the label {missing:,}; number the classes "
            "without gaps, or give classes.txt with one name per label"
        )
    return tuple(str(number) for number in range(len(found)))
