"""Packing of image folders into tar shards, and verification of shards."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iformer.data.images import check_image
from iformer.data.parallel import Progress, map_in_threads
from iformer.data.samples import DataSplits, ImageSet, Sample
from iformer.data.sources.shards.index import (
    INDEX,
    INFO,
    UNFINISHED,
    ShardIndex,
    SplitIndex,
    read_index,
    write_index,
)
from iformer.data.sources.shards.scan import scan_shards
from iformer.data.sources.shards.stores import FolderStore, ShardStore, shard_store
from iformer.errors import DataError, UserError, counted
from iformer.files import removed_if_empty, size_text

SHARD_BYTES = 128 * 2**20
"""Bytes of images after which a shard ends: about a thousand photographs."""

_MEMBER_OVERHEAD = 3 * 512 + 512
"""Bytes of a tar file per image in addition to the image: two headers, the label, and average padding."""


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """Summary of a folder of shards."""

    folder: str
    """Path or URL of the folder."""
    images: dict[str, int]
    """Number of images by split."""
    shards: dict[str, int]
    """Number of shards by split."""
    classes: int
    bytes: int
    """Total size of all shards."""


def check_empty(folder: Path) -> None:
    """Check that `pack` may write to a folder.

    Raises:
        UserError: the folder is not empty, or a file.
    """
    if os.path.exists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise _not_empty(folder)


def _not_empty(folder: Path) -> UserError:
    return UserError(f"{folder} is not an empty folder; give another one for the shards")


def pack(
    data: DataSplits,
    out: str | os.PathLike[str],
    *,
    shard_bytes: int = SHARD_BYTES,
    seed: int = 0,
    progress: Progress | None = None,
) -> ShardSummary:
    """Write a data set as tar shards, `OUT/train-00000.tar` …, with their index, and verify them.

    Training images are shuffled once, so that streaming readers see them mixed. Image files are stored byte for
    byte, and decoded once more: they may have changed since `data` was read. The index is written last, and the
    file `UNFINISHED` exists until then: a folder whose packing was killed is refused as a data set.

    Args:
        data: the images.
        out: a new or empty folder.
        shard_bytes: bytes of images after which a shard ends.
        seed: selects the order of the training images.
        progress: called with the number of shards written and read back, and their total.

    Raises:
        UserError: the folder is not empty, or its disk is too full.
        DataError: an image cannot be read, or the shards do not hold what was written to them.
        OSError: the shards cannot be written.
        OutputError: the index cannot be written.
    """
    folder = Path(out)
    is_new = not folder.exists()
    check_empty(folder)
    _check_disk(folder, data)
    try:
        with removed_if_empty(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # only one of two processes that pack into it makes the file
            with (folder / UNFINISHED).open("x") as file:
                file.write("Packing was stopped. Remove this folder and pack again.\n")
    except FileExistsError:
        raise _not_empty(folder) from None
    store = FolderStore(folder)
    written = [folder / name for name in (UNFINISHED, INDEX, INFO)]
    try:
        splits = {}
        for name, image_set in (("train", data.train), ("val", data.val)):
            order = list(range(len(image_set)))
            if name == "train":
                random.Random(seed).shuffle(order)
            splits[name] = _pack_split(store, name, image_set, order, shard_bytes, written, progress)
        index = ShardIndex(class_names=data.train.class_names, splits=splits)
        write_index(folder, index)
        (folder / UNFINISHED).unlink()
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise
    return _summary(store, index)


def describe(where: str | os.PathLike[str]) -> ShardSummary:
    """Return the numbers of images, shards, classes and bytes of a folder of shards.

    Args:
        where: the shards' folder or URL.

    Raises:
        DataError: there is no index, it is damaged, or a shard is missing or truncated.
    """
    return _summary(*_open(where))


def verify(
    where: str | os.PathLike[str], *, decode: bool = False, progress: Progress | None = None
) -> ShardSummary:
    """Read every shard from end to end and compare names, labels, sizes and checksums with the index.

    Args:
        where: the shards' folder or URL.
        decode: also decode every image.
        progress: called with the number of shards read and their total.

    Raises:
        DataError: a shard differs from the index, or an image cannot be decoded; the message names the first one.
    """
    store, index = _open(where)
    broken: list[str] = []

    def inspect(path: str, contents: bytes) -> None:
        try:
            check_image(contents)
        except DataError as error:
            broken.append(f"{path}: {str(error).removeprefix('image: ')}")

    for split in index.splits.values():
        _compare(store, split, scan_shards(store, split.shards, progress, inspect=inspect if decode else None))
    if broken:
        raise DataError(f"{broken[0]} ({counted(len(broken), 'image')} cannot be decoded)")
    return _summary(store, index)


def _open(where: str | os.PathLike[str]) -> tuple[ShardStore, ShardIndex]:
    store = shard_store(where)
    if isinstance(store, FolderStore) and not (store.folder / INDEX).is_file():
        raise DataError(
            f"{store.location} holds no tar shards with an index; training on foreign shards writes one"
        )
    return store, read_index(store)


def _pack_split(
    store: FolderStore,
    name: str,
    image_set: ImageSet,
    order: Sequence[int],
    shard_bytes: int,
    written: list[Path],
    progress: Progress | None,
) -> SplitIndex:
    """Write the shards of one split and index them by reading them back."""
    checksums, labels = [], []
    shards: list[str] = []
    for members in _by_shard(image_set, order, shard_bytes):
        path = store.folder / f"{name}-{len(shards):05d}.tar"
        written.append(path)
        with path.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                samples = [image_set.samples[position] for _, position in members]
                pairs = zip(members, samples, map_in_threads(_checked_contents, samples), strict=True)
                for (number, _), sample, contents in pairs:
                    key, extension = _member_name(number, sample.name)
                    _add(tar, f"{key}.{extension}", contents)
                    _add(tar, f"{key}.cls", str(sample.label).encode())
                    checksums.append(zlib.crc32(contents))
                    labels.append(sample.label)
            file.flush()
            os.fsync(file.fileno())
        shards.append(path.name)
    split = scan_shards(store, shards, progress)
    if split.label.tolist() != labels or split.crc32.tolist() != checksums:
        raise DataError(f"{store.location}: the {name} shards differ from what was written; check the disk")
    return split


def _checked_contents(sample: Sample) -> bytes:
    """Return an image file's contents, decoded once more: the file may have changed since the data was read."""
    contents = sample.read()
    try:
        check_image(contents)
    except DataError as error:
        reason = str(error).removeprefix("image: ")
        raise DataError(f"{sample}: changed since the data was read: {reason}; pack again") from None
    return contents


def _by_shard(image_set: ImageSet, order: Sequence[int], shard_bytes: int) -> Iterator[list[tuple[int, int]]]:
    """Yield (number, position in the set) of the images of each shard."""
    members: list[tuple[int, int]] = []
    filled = 0
    for number, position in enumerate(order):
        members.append((number, position))
        filled += image_set.samples[position].size()
        if filled >= shard_bytes:
            yield members
            members, filled = [], 0
    if members:
        yield members


def _member_name(number: int, file_name: str) -> tuple[str, str]:
    """Return the key, which contains the original file name, and the extension that other readers expect."""
    stem, _, extension = os.path.basename(file_name).rpartition(".")
    extension = extension.lower()
    kept = re.sub(r"[^\w-]", "_", stem)[:60]
    return f"{number:08d}-{kept}", {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg"}.get(extension, extension)


def _add(tar: tarfile.TarFile, name: str, contents: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    tar.addfile(member, io.BytesIO(contents))
    tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps every member


def _check_disk(folder: Path, data: DataSplits) -> None:
    needed = sum(
        sample.size() + _MEMBER_OVERHEAD for image_set in (data.train, data.val) for sample in image_set.samples
    )
    existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.exists(parent))
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UserError(f"{folder}: the shards need about {size_text(needed)}, {size_text(free)} are free there")


def _compare(store: ShardStore, expected: SplitIndex, found: SplitIndex) -> None:
    if len(found) != len(expected):
        short = [
            f"{shard} has {counted(now, 'image')}, not {before}"
            for shard, before, now in zip(expected.shards, expected.lengths(), found.lengths(), strict=True)
            if before != now
        ]
        raise DataError(f"{store.location}: {'; '.join(short[:3])}")
    for column, label in (
        ("label", "label"),
        ("size", "size"),
        ("crc32", "contents"),
        ("offset", "position"),
        ("member_names", "name"),
    ):
        differs = np.flatnonzero(np.asarray(getattr(expected, column)) != np.asarray(getattr(found, column)))
        if len(differs):
            position = int(differs[0])
            raise DataError(
                f"{store.path(expected.shards[expected.shard[position]])}: the {label} of "
                f"{found.member_names[position]} differs from the index ({counted(len(differs), 'image')})"
            )


def _summary(store: ShardStore, index: ShardIndex) -> ShardSummary:
    sizes = [size for split in index.splits.values() for size in store.sizes(split.shards)]
    return ShardSummary(
        folder=store.location,
        images={name: len(split) for name, split in index.splits.items()},
        shards={name: len(split.shards) for name, split in index.splits.items()},
        classes=len(index.class_names),
        bytes=sum(size or 0 for size in sizes),
    )
