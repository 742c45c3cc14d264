"""Image folders to tar shards, and the proof that what was packed is what was there."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iformer.data.images import StoredImage, check_image
from iformer.data.samples import DataSplits, ImageSet
from iformer.data.sources.shards.index import (
    INDEX,
    INFO,
    PartIndex,
    Progress,
    ShardIndex,
    read_index,
    scan_shards,
    write_index,
)
from iformer.data.sources.shards.stores import FolderStore, ShardStore, shard_store
from iformer.errors import DataError, UserError

SHARD_BYTES = 128 * 2**20
"""Bytes of images after which a shard ends: some thousand photographs."""

_MEMBER_OVERHEAD = 3 * 512 + 512
"""Bytes of a tar for an image beside the image: two headers, the label, and filling up on average."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What is in a folder of shards."""

    folder: str
    """Its path or URL."""
    images: dict[str, int]
    """By part."""
    shards: dict[str, int]
    classes: int
    bytes: int
    """Of all shards."""


def pack(
    data: DataSplits,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Packed:
    """Write a data set as tar shards, `OUT/train-00000.tar` …, with their index, and verify them.

    Training images are shuffled once, so that readers that stream see them mixed. Image files are stored byte
    for byte. The index is written last: a folder whose packing was stopped is no data set.

    Args:
        data: where the images are; `iformer.data.sources.folders.load_data` has decoded each of them.
        out: a new or empty folder.
        shard_bytes: see `SHARD_BYTES`.
        seed: of the order of the training images.
        progress: told how many shards were written and read again, of how many.

    Raises:
        UserError: the folder holds something, or its disk is too full.
        DataError: an image cannot be read, or what was written is not what was read.
        OSError: the shards cannot be written.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; give another one for the shards")
    _check_disk(folder, data)
    folder.mkdir(parents=True, exist_ok=True)
    store = FolderStore(folder)
    written: list[Path] = []
    try:
        parts = {}
        for name, image_set in (("train", data.train), ("val", data.val)):
            order = list(range(len(image_set)))
            if name == "train":
                random.Random(seed).shuffle(order)
            parts[name] = _pack_part(store, name, image_set, order, shard_bytes, written, progress)
        index = ShardIndex(class_names=data.train.class_names, parts=parts)
        write_index(folder, index)
    except BaseException:
        for path in [*written, folder / INDEX, folder / INFO]:
            path.unlink(missing_ok=True)
        raise
    return _describe(store, index)


def describe(where: str | os.PathLike[str]) -> Packed:
    """What the index of a folder of shards, or of its URL, says.

    Raises:
        DataError: there is none, it is damaged, or a shard is missing or cut short.
    """
    return _describe(*_open(where))


def verify(where: str | os.PathLike[str], *, decode: bool = False, progress: Progress | None = None) -> Packed:
    """Read every shard from end to end and compare counts, labels and checksums with the index.

    Args:
        where: the shards' folder or URL.
        decode: decode every image too.
        progress: told how many shards were read, of how many.

    Raises:
        DataError: something differs; the message names the first image that does.
    """
    store, index = _open(where)
    broken: list[str] = []

    def look(path: str, contents: bytes) -> None:
        try:
            check_image(contents)
        except DataError as error:
            broken.append(f"{path}: {str(error).removeprefix('image: ')}")

    for part in index.parts.values():
        _compare(store, part, scan_shards(store, part.shards, progress, look=look if decode else None))
    if broken:
        raise DataError(f"{broken[0]} ({len(broken):,} images cannot be decoded)")
    return _describe(store, index)


def _open(where: str | os.PathLike[str]) -> tuple[ShardStore, ShardIndex]:
    store = shard_store(where)
    if isinstance(store, FolderStore) and not (store.folder / INDEX).is_file():
        raise DataError(
            f"{store.place}: holds no tar shards with an index; training on shards of others makes one"
        )
    return store, read_index(store)


def _pack_part(
    store: FolderStore,
    name: str,
    image_set: ImageSet,
    order: Sequence[int],
    shard_bytes: int,
    written: list[Path],
    progress: Progress | None,
) -> PartIndex:
    """Write the shards of one part and index them by reading them."""
    checksums, labels = [], []
    shards: list[str] = []
    for numbers in _shares(image_set, order, shard_bytes):
        path = store.folder / f"{name}-{len(shards):05d}.tar"
        written.append(path)
        with path.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for number, position in numbers:
                    sample = image_set.samples[position]
                    contents = _read(sample.path)
                    key, extension = _member_name(number, sample.path)
                    _add(tar, f"{key}.{extension}", contents)
                    _add(tar, f"{key}.cls", str(sample.label).encode())
                    checksums.append(zlib.crc32(contents))
                    labels.append(sample.label)
            file.flush()
            os.fsync(file.fileno())
        shards.append(path.name)
    part = scan_shards(store, shards, progress)
    if part.label.tolist() != labels or part.crc32.tolist() != checksums:
        raise DataError(
            f"{store.place}: the {name} shards do not hold what was written to them; is the disk sound?"
        )
    return part


def _shares(image_set: ImageSet, order: Sequence[int], shard_bytes: int) -> Iterator[list[tuple[int, int]]]:
    """(number, position in the set) of the images of each shard."""
    share: list[tuple[int, int]] = []
    filled = 0
    for number, position in enumerate(order):
        share.append((number, position))
        filled += _size(image_set.samples[position].path)
        if filled >= shard_bytes:
            yield share
            share, filled = [], 0
    if share:
        yield share


def _member_name(number: int, path: Path | StoredImage) -> tuple[str, str]:
    """The key, which says what the file was called, and the extension that other readers look for."""
    stem, _, extension = os.path.basename(os.fspath(path)).rpartition(".")
    extension = extension.lower()
    kept = re.sub(r"[^\w-]", "_", stem)[:60]
    return f"{number:08d}-{kept}", {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg"}.get(extension, extension)


def _add(tar: tarfile.TarFile, name: str, contents: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    tar.addfile(member, io.BytesIO(contents))
    tar.members = []  # type: ignore[attr-defined]  # else it keeps a record of every member


def _read(path: Path | StoredImage) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _size(path: Path | StoredImage) -> int:
    return path.stat().st_size if isinstance(path, Path) else len(path.read_bytes())


def _check_disk(folder: Path, data: DataSplits) -> None:
    needed = sum(
        _size(sample.path) + _MEMBER_OVERHEAD
        for image_set in (data.train, data.val)
        for sample in image_set.samples
    )
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(
            f"{folder}: the shards need about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free there"
        )


def _compare(store: ShardStore, expected: PartIndex, found: PartIndex) -> None:
    if len(found) != len(expected):
        short = [
            f"{shard} has {now} images, not {before}"
            for shard, before, now in zip(expected.shards, expected.lengths(), found.lengths(), strict=True)
            if before != now
        ]
        raise DataError(f"{store.place}: {'; '.join(short[:3])}")
    for column, what in (("label", "label"), ("size", "size"), ("crc32", "contents"), ("offset", "place")):
        differs = np.flatnonzero(getattr(expected, column) != getattr(found, column))
        if len(differs):
            position = int(differs[0])
            raise DataError(
                f"{store.path(expected.shards[expected.shard[position]])}: the {what} of "
                f"{expected.member_names[position]} is not what the index says ({len(differs):,} images differ)"
            )


def _describe(store: ShardStore, index: ShardIndex) -> Packed:
    sizes = [size for part in index.parts.values() for size in store.sizes(part.shards)]
    return Packed(
        folder=store.place,
        images={name: len(part) for name, part in index.parts.items()},
        shards={name: len(part.shards) for name, part in index.parts.items()},
        classes=len(index.class_names),
        bytes=sum(size or 0 for size in sizes),
    )
