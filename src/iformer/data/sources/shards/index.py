"""Tar shards in WebDataset's form, read at random through an index: exact epochs, resumable like files.

A shard holds pairs of members, `KEY.jpg` (any image) and `KEY.cls` (the class index as text). The index says for
each image which shard it is in, where its bytes begin, how long they are, their CRC-32 and the label; it is one
file beside the shards. `iformer.data.sources.shards.packing` writes it; for shards from elsewhere it is written on
their first use. `iformer.data.sources.shards.stores` reads shards from a folder or a URL.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from iformer.data.images import StoredImage, has_image_extension
from iformer.data.samples import DataSplits, ImageSet, StoredSamples
from iformer.data.sources.shards.stores import FolderStore, ShardStore, shard_store
from iformer.errors import DataError
from iformer.files import write_bytes, write_text

INDEX = "index.safetensors"
INFO = "_info.json"
"""What timm's and other readers of WebDataset look for: parts, shards and their lengths."""

FORMAT = "iformer-shards-1"
PARTS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "val"}
"""Words in a shard's name, and the part that they mean."""

_COLUMNS = ("shard", "offset", "size", "crc32", "label")

Progress = Callable[[int, int], None]
"""Called with (shards done, shards in all)."""


@dataclass(frozen=True, kw_only=True)
class PartIndex:
    """Where the images of one part are: columns of one length, a row an image."""

    shards: tuple[str, ...]
    """File names below the data set's folder."""
    shard: npt.NDArray[np.int32]
    """Positions in `shards`."""
    offset: npt.NDArray[np.int64]
    """First byte of the image in its shard."""
    size: npt.NDArray[np.int64]
    """Bytes."""
    crc32: npt.NDArray[np.uint32]
    label: npt.NDArray[np.int64]
    names: npt.NDArray[np.uint8]
    """Names of the members, joined by line breaks, UTF-8."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def member_names(self) -> list[str]:
        """Name of each image's member."""
        text = self.names.tobytes().decode("utf-8", "surrogateescape")
        return text.split("\n") if len(self) else []

    def lengths(self) -> list[int]:
        """Number of images in each shard."""
        return [int(count) for count in np.bincount(self.shard, minlength=len(self.shards))]

    def contents(self) -> str:
        """SHA-256 (hex) of what the images are: their order, sizes, checksums and labels."""
        digest = hashlib.sha256()
        for column in (self.size, self.crc32, self.label):
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """A folder of shards: its classes and parts."""

    class_names: tuple[str, ...]
    parts: dict[str, PartIndex]
    """By `train` and `val`."""


class ShardImage(StoredImage):
    """One image in a shard, by its position in a part."""

    def __init__(self, samples: ShardSamples, position: int) -> None:
        self._samples, self._position = samples, position

    @property
    def name(self) -> str:
        columns = self._samples.columns
        return f"{columns.shards[columns.shard[self._position]]}/{self._samples.member_name(self._position)}"

    def read_bytes(self) -> bytes:
        columns, position = self._samples.columns, self._position
        return self._samples.store.read(
            columns.shards[columns.shard[position]],
            int(columns.offset[position]),
            int(columns.size[position]),
            int(columns.crc32[position]),
        )

    def __fspath__(self) -> str:
        return self._samples.store.path(self.name)


class ShardSamples(StoredSamples):
    """The images of one part; each sample is made when it is asked for."""

    def __init__(self, store: ShardStore, columns: PartIndex) -> None:
        self.store, self.columns = store, columns
        self.readers = store.readers
        self._names: list[str] | None = None

    def image(self, position: int) -> StoredImage:
        return ShardImage(self, position)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.columns.label

    @property
    def contents(self) -> str:
        return self.columns.contents()

    def member_name(self, position: int) -> str:
        """The name of an image's member; the names are unpacked when one is asked for."""
        if self._names is None:
            self._names = self.columns.member_names
        return self._names[position]


def holds_shards(folder: Path) -> bool:
    """Whether a folder is a data set of tar shards."""
    return (folder / INDEX).is_file() or any(folder.glob("*.tar"))


def load_shards(where: str | os.PathLike[str], *, progress: Progress | None = None) -> DataSplits:
    """The training and validation images of a folder of shards. No image is decoded: packing did.

    Shards without an index, which others made, get one here; it is kept beside them where that can be written.

    Args:
        where: the folder, or its URL; there the index has to be.
        progress: told how many shards without an index were read, of how many.

    Raises:
        DataError: a part is missing, a shard is, or one has another size than when it was indexed.
    """
    store = shard_store(where)
    if isinstance(store, FolderStore) and not (store.folder / INDEX).is_file():
        index = _index_foreign(store, progress)
    else:
        index = read_index(store)
    missing = [part for part in ("train", "val") if part not in index.parts or not len(index.parts[part])]
    if missing:
        raise DataError(
            f"{store.place}: no shard of the {missing[0]} part; "
            "expected files such as train-00000.tar and val-00000.tar"
        )
    root = Path(where)
    name = root.name or root.resolve().name
    sets = {
        part: ImageSet(
            name=f"{name} {part}",
            class_names=index.class_names,
            samples=ShardSamples(store, columns),
            root=root,
        )
        for part, columns in index.parts.items()
    }
    return DataSplits(train=sets["train"], val=sets["val"])


def read_index(store: ShardStore) -> ShardIndex:
    """Read an index and see that each shard is there and long enough.

    Raises:
        DataError: the index is missing or damaged, or a shard is missing or cut short.
    """
    path = store.path(INDEX)
    try:
        with store.local(INDEX) as local:
            index = _parse_index(local, path)
    except DataError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: damaged ({' '.join(str(error).split())}); "
            f"{'remove it, and it is made again' if isinstance(store, FolderStore) else 'copy it there again'}"
        ) from None
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; `iformer convert` writes it beside the shards, "
            "and training on a local folder of shards made by others does"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    for part in index.parts.values():
        _check_shards(store, part)
    return index


def _parse_index(local: Path, path: str) -> ShardIndex:
    with safe_open(os.fspath(local), framework="numpy") as file:
        header = file.metadata() or {}
        if header.get("format") != FORMAT:
            raise DataError(f"{path}: not an index of shards; remove it, and it is made again")
        described = json.loads(header["parts"])
        parts = {
            part: PartIndex(
                shards=tuple(shards),
                names=file.get_tensor(f"{part}/names"),
                **{column: file.get_tensor(f"{part}/{column}") for column in _COLUMNS},
            )
            for part, shards in described.items()
        }
    return ShardIndex(class_names=tuple(json.loads(header["class_names"])), parts=parts)


def write_index(root: Path, index: ShardIndex) -> None:
    """Write an index and, for other readers, `_info.json`.

    Raises:
        OutputError: one of them cannot be written.
    """
    columns: dict[str, Any] = {}
    for name, part in index.parts.items():
        columns[f"{name}/names"] = part.names
        columns |= {f"{name}/{column}": getattr(part, column) for column in _COLUMNS}
    header = {
        "format": FORMAT,
        "class_names": json.dumps(index.class_names),
        "parts": json.dumps({name: part.shards for name, part in index.parts.items()}),
    }
    splits = {
        {"val": "validation"}.get(name, name): {
            "name": name,
            "num_samples": len(part),
            "filenames": part.shards,
            "shard_lengths": part.lengths(),
        }
        for name, part in index.parts.items()
    }
    info = {"name": root.name, "splits": splits, "class_names": index.class_names}
    write_text(root / INFO, json.dumps(info, indent=1))
    write_bytes(root / INDEX, serialize(columns, header))


def scan_shards(
    store: ShardStore,
    shards: Sequence[str],
    progress: Progress | None = None,
    *,
    look: Callable[[str, bytes], None] | None = None,
) -> PartIndex:
    """Read shards from end to end and index what is in them.

    Args:
        store: where they are.
        shards: their names.
        progress: told how many were read, of how many.
        look: given each image's path, for people, and contents.

    Raises:
        DataError: one is damaged, or an image has no label or a label no image.
    """
    rows: list[tuple[int, int, int, int, int]] = []
    names: list[str] = []
    for number, shard in enumerate(shards):
        for member, offset, size, crc32, label in _read_shard(store, shard, look):
            rows.append((number, offset, size, crc32, label))
            names.append(member)
        if progress is not None:
            progress(number + 1, len(shards))
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(_COLUMNS))
    return PartIndex(
        shards=tuple(shards),
        shard=columns[:, 0].astype(np.int32),
        offset=columns[:, 1].copy(),
        size=columns[:, 2].copy(),
        crc32=columns[:, 3].astype(np.uint32),
        label=columns[:, 4].copy(),
        names=np.frombuffer("\n".join(names).encode("utf-8", "surrogateescape"), dtype=np.uint8),
    )


def _read_shard(
    store: ShardStore, shard: str, look: Callable[[str, bytes], None] | None
) -> Iterator[tuple[str, int, int, int, int]]:
    """(member, offset, size, CRC-32, label) of each image, in their order."""
    path = store.path(shard)
    images: OrderedDict[str, tuple[str, int, int, int]] = OrderedDict()
    labels: dict[str, int] = {}
    try:
        with store.open(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, _, extension = _split_name(member.name)
                if extension != "cls" and not has_image_extension(member.name):
                    continue
                opened = tar.extractfile(member)
                assert opened is not None
                data = opened.read()
                if len(data) != member.size:
                    raise DataError(f"{path}: cut short in {member.name}")
                if extension == "cls":
                    labels[key] = int(data)
                else:
                    if look is not None:
                        look(f"{path}/{member.name}", data)
                    images[key] = (member.name, member.offset_data, member.size, zlib.crc32(data))
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every member it has passed
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: damaged shard ({' '.join(str(error).split())})") from None
    alone = sorted(images.keys() ^ labels.keys())
    if alone:
        raise DataError(f"{path}: {alone[0]} has no {'label (.cls)' if alone[0] in images else 'image'}")
    for key, (name, offset, size, crc32) in images.items():
        yield name, offset, size, crc32, labels[key]


def _split_name(name: str) -> tuple[str, str, str]:
    """WebDataset's key, which ends at the first dot of the last part of the path, and the extension."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folder}{slash}{stem}", dot, extension.lower()


def _index_foreign(store: FolderStore, progress: Progress | None) -> ShardIndex:
    root = store.folder
    shards: dict[str, list[str]] = {}
    for path in sorted(root.glob("*.tar")):
        words = [word for word in PARTS if word in path.name.lower()]
        if not words:
            raise DataError(f"{path}: its name says neither train nor val")
        shards.setdefault(PARTS[words[0]], []).append(path.name)
    parts = {part: scan_shards(store, names, progress) for part, names in shards.items()}
    classes = 1 + max((int(part.label.max()) for part in parts.values() if len(part)), default=0)
    index = ShardIndex(class_names=_class_names(root, classes), parts=parts)
    if os.access(root, os.W_OK):
        write_index(root, index)
    return index


def _class_names(root: Path, classes: int) -> tuple[str, ...]:
    """The lines of `classes.txt`, where there is one, else the numbers."""
    path = root / "classes.txt"
    if not path.is_file():
        return tuple(str(number) for number in range(classes))
    names = tuple(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) < classes or len(set(names)) != len(names):
        raise DataError(f"{path}: {len(names)} names (each once) for {classes} classes")
    return names


def _check_shards(store: ShardStore, part: PartIndex) -> None:
    ends = np.zeros(len(part.shards), dtype=np.int64)
    np.maximum.at(ends, part.shard, part.offset + part.size)
    sizes = store.sizes(part.shards)
    for shard, end in zip(part.shards, ends, strict=True):
        path = store.path(shard)
        try:
            size = next(sizes)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}, but {INDEX} names it") from None
        if size is not None and size < end:
            raise DataError(f"{path}: {size:,} bytes, but its index needs {int(end):,}; copy it again")
