"""Image folders for classification, one sub-folder per class."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from iformer.data.images import has_image_extension
from iformer.data.listing import entries, files_below, natural_key
from iformer.data.parallel import Progress
from iformer.data.samples import DataSplits, FileSample, ImageSet
from iformer.data.sources.checks import find_broken, find_duplicates, refuse_warnings
from iformer.data.sources.layout import SPLIT_NAMES, display_name, require_folder
from iformer.data.sources.splitting import split_stratified
from iformer.errors import ConfigError, DataError, counted, listed

_LAYOUT = (
    "expected one sub-folder per class (DIR/cat/1.jpg, DIR/dog/2.jpg), or train/ and val/ made of such folders"
)


def load_folder(
    folder: str | os.PathLike[str],
    *,
    val_split: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> DataSplits:
    """Read images from one sub-folder per class, at any depth below it.

    `folder` holds `train/` and `val/` (or valid, validation, test), only `train/`, or the class folders
    themselves. Without a validation split, one is made: stratified by class, at least one image of each class
    on either side, the same images whatever the order of the file system and the location of the folder.
    Classes are in natural order (2 before 10). Hidden files and folders are ignored.

    Raises:
        DataError, ConfigError: see `iformer.data.sources.load_data`.
    """
    if not 0.0 < val_split < 1.0:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    root = require_folder(folder, "give a folder of images or 'elpv'")
    try:
        scans = {split: _scan_classes(path) for split, path in _find_splits(root).items()}
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None
    _check_classes(scans)

    broken = find_broken(
        [path for scan in scans.values() for paths in scan.classes.values() for path in paths],
        workers=workers,
        progress=progress,
    )
    sets = {split: _image_set(scan, root, split, broken) for split, scan in scans.items()}
    warnings = [warning for image_set in sets.values() for warning in image_set.warnings]
    refuse_warnings(warnings, strict=strict)
    for split, image_set in sets.items():
        lost = [name for name, count in image_set.class_counts.items() if count == 0]
        if lost:
            reasons = [broken[scans[split].classes[name][0]] for name in lost]
            raise DataError(
                f"{scans[split].folder}: no image can be read in the class {_folders(lost)} "
                f"({listed(reasons, separator='; ')})"
            )
    if "val" not in sets:
        sets["train"], sets["val"] = _split_by_class(sets["train"], val_split, seed)
    warnings += find_duplicates(sets["train"], sets["val"])
    return DataSplits(train=sets["train"], val=sets["val"], warnings=tuple(warnings))


@dataclass
class _Scan:
    """Files below the class folders of one split."""

    folder: Path
    classes: dict[str, list[Path]] = field(default_factory=dict)
    """Class name -> images, both in natural order."""
    loose_images: list[Path] = field(default_factory=list)
    """Images that are in no class folder."""
    warnings: list[str] = field(default_factory=list)


def _find_splits(root: Path) -> dict[str, Path]:
    """Return the folders of `train` and `val`, or of `train` alone if validation is to be split off."""
    folders = {entry.name.lower(): Path(entry.path) for entry in entries(root) if entry.is_dir()}
    train, val = (
        next((folders[name] for name in SPLIT_NAMES[split] if name in folders), None) for split in ("train", "val")
    )
    if train is not None and val is not None:
        return {"train": train, "val": val}
    # A class may be called "train" (beside "car" and "bus"); a split's folder holds folders and no images.
    if train is not None and _holds_only_folders(train):
        return {"train": train}
    if val is not None and _holds_only_folders(val):
        raise DataError(f"{root}: has {val.name}/ but no train/; {_LAYOUT}")
    return {"train": root}


def _holds_only_folders(folder: Path) -> bool:
    found = list(entries(folder))
    return any(entry.is_dir() for entry in found) and not any(
        has_image_extension(entry.name) for entry in found if not entry.is_dir()
    )


def _scan_classes(folder: Path) -> _Scan:
    scan = _Scan(folder)
    for entry in sorted(entries(folder), key=lambda entry: natural_key(entry.name)):
        if entry.is_dir():
            images = scan.classes[entry.name] = []
            for path in sorted(files_below(Path(entry.path)), key=lambda path: natural_key(str(path))):
                if has_image_extension(path):
                    images.append(path)
                else:
                    scan.warnings.append(f"{path}: not the extension of an image file")
        elif has_image_extension(entry.name):
            scan.loose_images.append(Path(entry.path))
            scan.warnings.append(f"{entry.path}: is outside the class folders")
    return scan


def _check_classes(scans: dict[str, _Scan]) -> None:
    """Raise a `DataError` for class folders that cannot be trained on, before any image is decoded."""
    for scan in scans.values():
        if not scan.classes:
            found = "empty"
            if scan.loose_images:
                found = f"{counted(len(scan.loose_images), 'image')} but no class folder"
            raise DataError(f"{scan.folder}: {found}; {_LAYOUT}")
    train = scans["train"]
    if "val" in scans:
        val = scans["val"]
        differences = [
            f"only in {scan.folder.name}/: {listed(names)}"
            for scan, other in ((train, val), (val, train))
            if (names := [name for name in scan.classes if name not in other.classes])
        ]
        if differences:
            raise DataError(
                f"{train.folder.parent}: the classes of {train.folder.name}/ and {val.folder.name}/ differ "
                f"({'; '.join(differences)})"
            )
    for scan in scans.values():
        empty = [name for name, images in scan.classes.items() if not images]
        if len(empty) == len(scan.classes):
            raise DataError(f"{scan.folder}: none of its folders ({listed(empty)}) holds an image; {_LAYOUT}")
        if empty:
            raise DataError(f"{scan.folder}: no image in the class {_folders(empty)}")
    if len(train.classes) == 1:
        name = next(iter(train.classes))
        raise DataError(f"{train.folder}: only one class ({name}); a classifier needs at least two; {_LAYOUT}")


def _image_set(scan: _Scan, root: Path, split: str, broken: dict[Path, str]) -> ImageSet:
    paths = [path for images in scan.classes.values() for path in images]
    return ImageSet(
        name=display_name(root, split),
        class_names=tuple(scan.classes),
        samples=tuple(
            FileSample(path, label=label)
            for label, images in enumerate(scan.classes.values())
            for path in images
            if path not in broken
        ),
        root=root,
        warnings=(*scan.warnings, *(broken[path] for path in paths if path in broken)),
    )


def _split_by_class(whole: ImageSet, val_split: float, seed: int) -> tuple[ImageSet, ImageSet]:
    single = [name for name, count in whole.class_counts.items() if count == 1]
    if single:
        raise DataError(
            f"{whole.root}: only one readable image in the class {_folders(single)}; "
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


def _folders(names: list[str]) -> str:
    return f"{'folder' if len(names) == 1 else 'folders'} {listed(names)}"
