"""Where labelled images come from: folders with one sub-folder a class, and the ELPV photographs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from iformer.data.images import check_image, has_image_extension
from iformer.data.samples import DataSplits, ImageSet, Sample
from iformer.data.sources.huggingface import HUB_PREFIX, load_hub_data
from iformer.data.sources.shards.index import holds_shards, load_shards
from iformer.data.sources.shards.stores import is_url
from iformer.dependencies import require
from iformer.errors import ConfigError, DataError

Progress = Callable[[int, int], None]
"""Called with (images done, images in all), from one thread."""

ELPV = "elpv"
"""The data set's name where a folder may stand too."""

ELPV_CLASSES = ("functional", "defective")
ELPV_VAL_SPLIT = 0.25

_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation", "test")
_SYSTEM_NAMES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_LAYOUT = "expected one sub-folder a class (DIR/cat/1.jpg, DIR/dog/2.jpg), or train/ and val/ made of such folders"
_LISTED = 20


def load_data(
    spec: str | os.PathLike[str],
    *,
    val_split: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataSplits:
    """Find a data set's images and labels, decode each once to see that it can be, and split it.

    Args:
        spec: "elpv", a folder (write "./elpv" for a folder of that name), a folder of tar shards or its URL,
            or "hfds/NAME", a data set of Hugging Face: `load_elpv`, `load_folder`,
            `iformer.data.sources.shards.index.load_shards`, `iformer.data.sources.huggingface.load_hub_data`.
        val_split: share of each class that becomes validation data where a folder has no part for it.
        seed: chooses which images these are. It is no training seed: runs that are to be compared share it.
        strict: a file that cannot be used is an error instead of a problem.
        workers: threads that decode; nothing: one a core, at most 16.
        progress: told how many images were checked.

    Raises:
        DataError: the data cannot be trained on; the message says what is wrong and what is expected.
        ConfigError: `val_split` is not between 0 and 1.
        MissingDependencyError: "elpv" without the elpv-dataset package.
    """
    if os.fspath(spec) == ELPV:
        return load_elpv(strict=strict, workers=workers, progress=progress)
    if os.fspath(spec).startswith(HUB_PREFIX):
        return load_hub_data(os.fspath(spec))
    if is_url(spec) or (Path(spec).is_dir() and holds_shards(Path(spec))):
        return load_shards(spec)
    return load_folder(spec, val_split=val_split, seed=seed, strict=strict, workers=workers, progress=progress)


def load_folder(
    folder: str | os.PathLike[str],
    *,
    val_split: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataSplits:
    """Images in one sub-folder a class, at any depth below it.

    `folder` holds `train/` and `val/` (or valid, validation, test), or a `train/` alone, or the class folders
    themselves; where there is no validation part it is split off: by class, at least one image on either
    side, the same images whatever the order of the file system and wherever the folder lies. Classes are in
    natural order (2 before 10). Hidden files and folders are passed over.

    Raises:
        DataError, ConfigError: as `load_data`.
    """
    if not 0.0 < val_split < 1.0:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            f"{root}: {'not a folder' if root.exists() else 'no such folder'}; give a folder of images or '{ELPV}'"
        )
    try:
        parts = _find_parts(root)
        scans = {name: _scan_classes(part) for name, part in parts.items()}
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None
    _check_classes(scans, parts)

    warnings = [problem for scan in scans.values() for problem in scan.warnings]
    paths = [path for scan in scans.values() for paths in scan.classes.values() for path in paths]
    broken = find_broken(paths, workers=workers, progress=progress)
    warnings += broken.values()
    if strict and warnings:
        raise DataError(f"{_count(warnings, 'file')} cannot be used: {_some(warnings, separator='; ')}")

    class_names = tuple(next(iter(scans.values())).classes)
    sets: dict[str, ImageSet] = {}
    for name, scan in scans.items():
        samples = tuple(
            Sample(path, label)
            for label, class_paths in enumerate(scan.classes.values())
            for path in class_paths
            if path not in broken
        )
        own = [*scan.warnings, *(broken[path] for ps in scan.classes.values() for path in ps if path in broken)]
        sets[name] = ImageSet(
            name=f"{root.name or root.resolve().name} {name}",
            class_names=class_names,
            samples=samples,
            root=root,
            warnings=tuple(own),
        )
        lost = [label for label, count in sets[name].class_counts.items() if count == 0]
        if lost:
            raise DataError(
                f"{parts[name]}: no image can be read in the class {_folders(lost)} "
                f"({_some([broken[scan.classes[label][0]] for label in lost], separator='; ')})"
            )
    if "val" not in sets:
        sets["train"], sets["val"] = _split_by_class(sets["train"], val_split, seed)
    warnings += find_duplicates(sets["train"], sets["val"])
    return DataSplits(train=sets["train"], val=sets["val"], warnings=tuple(warnings))


def load_elpv(*, strict: bool = False, workers: int | None = None, progress: Progress | None = None) -> DataSplits:
    """The 2,624 photographs of solar cells of the elpv-dataset package, read from its installed files.

    A cell is functional where the probability of a defect that its annotators gave is below 0.5 (0 or 1/3),
    else defective (2/3 or 1). 75 % train, 25 % validation, stratified by probability and module type; the
    split is always the same.

    Raises:
        MissingDependencyError: the package is not installed.
        DataError: its files are damaged, or with `strict` any of them is.
    """
    package = require("elpv_dataset", extra="elpv")
    root = Path(package.__file__).parent / "data"
    samples: list[Sample] = []
    strata: list[tuple[float, str]] = []
    labels_file = root / "labels.csv"
    try:
        lines = labels_file.read_text(encoding="utf-8").split("\n")
        for line in filter(str.strip, lines):
            name, probability, module = line.split()
            samples.append(Sample(root / name, int(float(probability) >= 0.5)))
            strata.append((float(probability), module))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{labels_file}: damaged ({error}); run: pip install --force-reinstall elpv-dataset"
        ) from None
    broken = find_broken([sample.file for sample in samples], workers=workers, progress=progress)
    warnings = tuple(broken.values())
    if len(broken) == len(samples) or (strict and warnings):
        raise DataError(f"{_count(warnings, 'file')} cannot be used: {_some(warnings, separator='; ')}")
    whole = ImageSet(name=ELPV, class_names=ELPV_CLASSES, samples=tuple(samples), root=root, warnings=warnings)
    train, val = split_stratified(
        [whole.relative_path(sample) for sample in samples], strata, val_share=ELPV_VAL_SPLIT, seed=0
    )
    # Broken files go after the split, so that losing one moves no other image to the other side.
    sides = {
        name: replace(
            whole.subset([index for index in side if samples[index].file not in broken]),
            name=f"{ELPV} {name}",
            warnings=tuple(broken[samples[i].file] for i in side if samples[i].file in broken),
        )
        for name, side in (("train", train), ("val", val))
    }
    return DataSplits(**sides, warnings=warnings)


def split_stratified(
    names: Sequence[str], strata: Sequence[Hashable], *, val_share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split items into two parts, each stratum by itself.

    `round(len(names) * val_share)` items go to the second part: from each of the strata its share, rounded up
    where most is lost by rounding down; but at least 1 and at most all but 1 of a stratum (of a single item:
    none). Which items of a stratum they are depends on nothing but `seed` and each item's name.

    Args:
        names: what identifies an item, such as its path below the data set's folder.
        strata: the stratum of each item.

    Returns:
        Indices of the first and of the second part, each rising.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)

    def rank(index: int) -> tuple[bytes, int]:
        text = f"{seed}\0{names[index]}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest(), index

    counts = {}
    for stratum, indices in members.items():
        counts[stratum] = min(max(1, int(len(indices) * val_share)), len(indices) - 1)
    missing = round(len(names) * val_share) - sum(counts.values())
    # Sorting keeps the order of the strata where their remainders are equal.
    for stratum in sorted(members, key=lambda key: -(len(members[key]) * val_share % 1))[: max(0, missing)]:
        counts[stratum] = min(counts[stratum] + 1, max(0, len(members[stratum]) - 1))
    second: set[int] = set()
    for stratum, indices in members.items():
        second.update(sorted(indices, key=rank)[: counts[stratum]])
    return [i for i in range(len(names)) if i not in second], sorted(second)


def find_broken(
    paths: Sequence[Path], *, workers: int | None = None, progress: Progress | None = None
) -> dict[Path, str]:
    """Decode every image once, in threads.

    Returns:
        The paths that cannot be read, in the order given, with a line `path: reason` for each.
    """

    def reason(path: Path) -> str | None:
        try:
            check_image(path)
        except DataError as error:
            return str(error)
        return None

    broken: dict[Path, str] = {}
    with ThreadPoolExecutor(workers or min(16, available_cores()), thread_name_prefix="check") as pool:
        try:
            for done, (path, problem) in enumerate(zip(paths, pool.map(reason, paths), strict=True), start=1):
                if problem is not None:
                    broken[path] = problem
                if progress is not None:
                    progress(done, len(paths))
        except BaseException:  # on Ctrl-C the rest of the queue must not be waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return broken


def find_duplicates(train: ImageSet, val: ImageSet) -> list[str]:
    """A warning line if images of `val` are byte for byte in `train` too: their accuracy says nothing.

    Only files whose sizes meet are read.
    """
    sizes: dict[str, dict[int, list[Path]]] = {}
    for name, part in (("train", train), ("val", val)):
        by_size: dict[int, list[Path]] = defaultdict(list)
        for sample in part.samples:
            by_size[sample.file.stat().st_size].append(sample.file)
        sizes[name] = by_size
    pairs: list[str] = []
    for size in sizes["train"].keys() & sizes["val"].keys():
        seen = {_digest(path): path for path in sizes["train"][size]}
        for path in sizes["val"][size]:
            twin = seen.get(_digest(path))
            if twin is not None:
                pairs.append(f"{path} = {twin}")
    if not pairs:
        return []
    pairs.sort(key=natural_key)
    return [
        f"{_count(pairs, 'validation image')} also among the training images, so the accuracy on them means "
        f"little: {_some(pairs, limit=5)}"
    ]


class _Scan:
    """The files below the class folders of one part: class name -> image paths, in natural order."""

    def __init__(self) -> None:
        self.classes: dict[str, list[Path]] = {}
        self.warnings: list[str] = []
        self.loose_images: list[Path] = []


def _find_parts(root: Path) -> dict[str, Path]:
    """`{"train": …, "val": …}`, or `{"train": …}` alone where the validation part is to be split off."""
    folders = {entry.name.lower(): Path(entry.path) for entry in _entries(root) if entry.is_dir()}
    train = next((folders[name] for name in _TRAIN_NAMES if name in folders), None)
    val = next((folders[name] for name in _VAL_NAMES if name in folders), None)
    if train is not None and val is not None:
        return {"train": train, "val": val}
    # A class may be called "train" (beside "car" and "bus"); a part holds folders and no images.
    if train is not None and _holds_only_folders(train):
        return {"train": train}
    if val is not None and _holds_only_folders(val):
        raise DataError(f"{root}: has {val.name}/ but no train/; {_LAYOUT}")
    return {"train": root}


def _holds_only_folders(folder: Path) -> bool:
    entries = list(_entries(folder))
    return any(entry.is_dir() for entry in entries) and not any(
        has_image_extension(entry.name) for entry in entries if not entry.is_dir()
    )


def _scan_classes(part: Path) -> _Scan:
    scan = _Scan()
    entries = sorted(_entries(part), key=lambda entry: natural_key(entry.name))
    for entry in entries:
        if entry.is_dir():
            images = scan.classes[entry.name] = []
            for path in sorted(files_below(Path(entry.path)), key=lambda path: natural_key(str(path))):
                if has_image_extension(path):
                    images.append(path)
                else:
                    scan.warnings.append(f"{path}: no extension of an image")
        elif has_image_extension(entry.name):
            scan.loose_images.append(Path(entry.path))
            scan.warnings.append(f"{entry.path}: lies outside of the class folders")
    return scan


def _check_classes(scans: dict[str, _Scan], parts: dict[str, Path]) -> None:
    """Everything about the class folders that makes training pointless, before any image is decoded."""
    for name, scan in scans.items():
        if not scan.classes:
            found = f"{_count(scan.loose_images, 'image')} but no class folder" if scan.loose_images else "empty"
            raise DataError(f"{parts[name]}: {found}; {_LAYOUT}")
    if "val" in scans:
        train, val = set(scans["train"].classes), set(scans["val"].classes)
        differences = [
            f"only in {parts[part].name}/: {_some(sorted(names, key=natural_key))}"
            for part, names in (("train", train - val), ("val", val - train))
            if names
        ]
        if differences:
            raise DataError(
                f"{parts['train'].parent}: the classes of {parts['train'].name}/ and {parts['val'].name}/ "
                f"differ ({'; '.join(differences)})"
            )
    for name, scan in scans.items():
        empty = [label for label, images in scan.classes.items() if not images]
        if len(empty) == len(scan.classes):
            raise DataError(f"{parts[name]}: none of its folders ({_some(empty)}) holds an image; {_LAYOUT}")
        if empty:
            raise DataError(f"{parts[name]}: no image in the class {_folders(empty)}")
    classes = list(scans["train"].classes)
    if len(classes) == 1:
        raise DataError(
            f"{parts['train']}: only one class ({classes[0]}); a classifier needs two or more; {_LAYOUT}"
        )


def _split_by_class(whole: ImageSet, val_split: float, seed: int) -> tuple[ImageSet, ImageSet]:
    single = [name for name, count in whole.class_counts.items() if count == 1]
    if single:
        raise DataError(
            f"{whole.root}: one readable image only in the class {_folders(single)}; "
            "training and validation need one each"
        )
    train, val = split_stratified(
        [whole.relative_path(sample) for sample in whole.samples],
        [sample.label for sample in whole.samples],
        val_share=val_split,
        seed=seed,
    )
    return whole.subset(train), replace(
        whole.subset(val), name=whole.name.removesuffix("train") + "val", warnings=()
    )


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder, without hidden files and what operating systems leave behind."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM_NAMES:
                yield entry


def files_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Files at any depth, links followed; a link back to a folder above ends there."""
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from files_below(Path(entry.path), above | {identity})
        else:
            yield Path(entry.path)


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sorts digits by their value, img2 before img10, and letters whatever their case."""
    pieces = re.split(r"([0-9]+)", text)  # words and numbers in turn, so that like meets like
    return [int(piece) if place % 2 else piece.lower() for place, piece in enumerate(pieces)], text


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def available_cores() -> int:
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items):,} {noun}{'' if len(items) == 1 else 's'}"


def _folders(names: Sequence[str]) -> str:
    return f"{'folder' if len(names) == 1 else 'folders'} {_some(names)}"


def _some(items: Sequence[str], *, limit: int = _LISTED, separator: str = ", ") -> str:
    shown = separator.join(items[:limit])
    return shown if len(items) <= limit else f"{shown}{separator}and {len(items) - limit:,} more"
