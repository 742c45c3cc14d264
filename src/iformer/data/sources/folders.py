"""Image folders for classification, one sub-folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from iformer.data.images import has_image_extension
from iformer.data.listing import entries, files_below, is_output, leads_back, natural_key, natural_order
from iformer.data.parallel import Progress
from iformer.data.samples import DataSplits, FileSample, ImageSet
from iformer.data.sources.checks import CheckedImages, check_images, refuse_warnings
from iformer.data.sources.duplicates import find_duplicates
from iformer.data.sources.layout import (
    SplitName,
    display_name,
    explain_unicode,
    parse_split,
    require_folder,
    writable,
)
from iformer.data.sources.splitting import split_stratified
from iformer.errors import ConfigError, DataError, counted, listed

_LAYOUT = (
    "expected one sub-folder per class (DIR/cat/1.jpg, DIR/dog/2.jpg), or train/ and val/ made of such folders"
)
_IMAGE_FOLDERS = frozenset(("image", "images", "img", "imgs", "jpegimages"))
_LABEL_FOLDERS = frozenset(
    (
        *("mask", "masks", "label", "labels", "annotation", "annotations"),
        *("segmentationclass", "segmentationobject", "imagesets"),
    )
)
"""Names of folders, in lower case, that hold the images and the annotations of other tasks."""


def load_folder(
    folder: str | os.PathLike[str],
    *,
    val_split: float = 0.2,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
) -> DataSplits:
    """Read images from one sub-folder per class, at any depth below it.

    `folder` holds `train/` and `val/` (also valid, test, training_set, seg_test …), only `train/`, or the class
    folders themselves. Without a validation split, one is made: stratified by class, with at least one image of
    each class in both splits. The result does not depend on the order of the file system or the folder's location.
    Classes are in natural order (2 before 10). Hidden and system folders and this package's runs are ignored.

    The arguments are those of `iformer.data.sources.load_data`.

    Raises:
        DataError: the data cannot be trained on; the message says what is wrong and what is expected.
        ConfigError: `val_split` is not between 0 and 1.
    """
    if not 0.0 < val_split < 1.0:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    root = require_folder(folder, "give a folder of images or 'elpv'")
    notes: list[str] = []
    try:
        scans = {split: _scan(path, notes) for split, path in _find_splits(root, notes).items()}
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read ({error.strerror or error})") from None
    if for_training and "train" not in scans:
        raise DataError(f"{root}: has {scans['val'].folder.name}/ but no train/; {_LAYOUT}")
    class_names = _check_classes(scans, for_training=for_training)

    paths = [path for scan in scans.values() for paths in scan.classes.values() for path in paths]
    checked = check_images(paths, workers=workers, progress=progress)
    sets = {split: _image_set(scan, root, split, class_names, checked) for split, scan in scans.items()}
    warnings = [warning for image_set in sets.values() for warning in image_set.warnings]
    refuse_warnings(warnings, strict=strict)
    for split, image_set in sets.items():
        _check_readable(scans[split], image_set, checked, for_training=for_training)
    if "train" not in sets:
        sets["train"] = replace(sets["val"], name=display_name(root, "train"), samples=(), warnings=())
    split_off = "val" not in sets
    if split_off:
        sets["train"], sets["val"] = _split_by_class(sets["train"], val_split, seed, for_training=for_training)
    warnings += notes
    warnings += checked.notes
    warnings += find_duplicates(sets["train"], sets["val"], checked.rows, checked.hashes, checked.thumbnails)
    return DataSplits(train=sets["train"], val=sets["val"], warnings=tuple(warnings), split_off=split_off)


@dataclass
class _Scan:
    """Files below the class folders of one split."""

    folder: Path
    classes: dict[str, list[Path]] = field(default_factory=dict)
    """Class name -> images, both in natural order."""
    loose_images: list[Path] = field(default_factory=list)
    """Images that are in no class folder."""
    warnings: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------- splits


def _find_splits(root: Path, notes: list[str]) -> dict[str, Path]:
    """Return the folders of `train` and `val`; only `train` if validation is to be split off, or only `val`."""
    folders = _sub_folders(root)
    named = {path: name for path in folders if (name := parse_split(path.name)) is not None}

    def partners(train: Path) -> list[Path]:
        return [path for path, name in named.items() if (name.split, name.rest) == ("val", named[train].rest)]

    trains = [path for path, name in named.items() if name.split == "train" and _sub_folders(path)]
    # A class may be called "train", like "car" and "bus": a "train" without a "val" must hold only folders.
    trains = [path for path in trains if partners(path)] or list(filter(_holds_only_folders, trains))
    if len(trains) > 1:
        raise DataError(f"{root}: {_names(trains)} all look like the training split; leave one")
    if trains:
        return {"train": _descend(trains[0])} | _validation(partners(trains[0]), named, notes)
    vals = [path for path, name in named.items() if name.split == "val" and _holds_only_folders(path)]
    if vals and len(named) == len(folders):
        return _validation(vals, named, notes)
    _refuse_splits(root, folders, named)
    return {"train": root}


def _validation(folders: list[Path], named: Mapping[Path, SplitName], notes: list[str]) -> dict[str, Path]:
    """Choose the validation split: the best name among the folders that hold class folders."""
    usable = list(filter(_sub_folders, folders))
    if not usable and all(named[path].is_test for path in folders):
        notes += [f"{path}: holds no class folders, so it is not used" for path in folders]
        return {}
    return {"val": _descend(min(usable or folders, key=lambda path: (named[path].rank, path.name)))}


def _descend(folder: Path) -> Path:
    """Return the inner folder where an archive repeats a split's folder, as in seg_train/seg_train/cat."""
    inner = _sub_folders(folder)
    if len(inner) == 1 and _holds_only_folders(inner[0]):
        outer_name, inner_name = parse_split(folder.name), parse_split(inner[0].name)
        if inner_name is not None and outer_name is not None and inner_name.split == outer_name.split:
            return _descend(inner[0])
    return folder


def _refuse_splits(root: Path, folders: list[Path], named: Mapping[Path, SplitName]) -> None:
    """Raise a `DataError` for folders that would be read as classes but are splits, domains or folds."""
    if len(folders) < 2 or (root / "classes.txt").is_file():
        return
    splits, rests = {name.split for name in named.values()}, {name.rest for name in named.values()}
    if len(named) == len(folders) and len(splits) == 2 and len(rests) == 1:
        raise DataError(f"{root}: {_names(folders)} look like splits, but hold no class folders; {_LAYOUT}")
    if all(map(_holds_only_folders, folders)):
        inner = [{path.name for path in _sub_folders(folder)} for folder in folders]
        shared = sorted(set.intersection(*inner), key=natural_key)
        if len(shared) > 1:
            raise DataError(
                f"{root}: {_names(folders)} contain the same sub-folders ({listed(shared, limit=5)}). "
                "If they are splits, name them train and val; if they are classes, list them in "
                f"{root / 'classes.txt'}, one per line"
            )


def _sub_folders(folder: Path) -> list[Path]:
    return natural_order(Path(entry.path) for entry in entries(folder) if entry.is_dir())


def _holds_only_folders(folder: Path) -> bool:
    holds_folders = False
    for entry in entries(folder):
        if entry.is_dir():
            holds_folders = True
        elif has_image_extension(entry.name):
            return False
    return holds_folders


# ------------------------------------------------------------------------------------------------ classes


def _scan(folder: Path, notes: list[str]) -> _Scan:
    scan = _Scan(folder)
    base = os.path.realpath(folder)
    for entry in sorted(entries(folder), key=lambda entry: natural_key(entry.name)):
        path = Path(entry.path)
        if not entry.is_dir():
            if has_image_extension(entry.name):
                scan.loose_images.append(path)
                scan.warnings.append(f"{path}: is outside the class folders")
        elif leads_back(path, base):
            notes.append(f"{path}: a link back into the data, so it is not read as a class")
        elif is_output(path):
            notes.append(f"{path}: holds a run or other output of this package, so it is not read as a class")
        else:
            _scan_class(scan, path, notes)
    return scan


def _scan_class(scan: _Scan, folder: Path, notes: list[str]) -> None:
    images: list[Path] = []
    others: list[Path] = []
    for path in natural_order(files_below(folder, scan.folder)):
        (images if has_image_extension(path) else others).append(path)
    if not images and not others and any(map(is_output, _folders_below(folder))):
        notes.append(f"{folder}: holds runs of this package, so it is not read as a class")
        return
    scan.classes[writable(folder.name)] = images
    scan.warnings += [f"{path}: not the extension of an image file" for path in others]


def _folders_below(folder: Path, depth: int = 3) -> Iterable[Path]:
    for path in _sub_folders(folder):
        yield path
        if depth > 1:
            yield from _folders_below(path, depth - 1)


def _check_classes(scans: Mapping[str, _Scan], *, for_training: bool) -> tuple[str, ...]:
    """Return the class names; raise a `DataError` for class folders that cannot be used."""
    for scan in scans.values():
        if not scan.classes:
            found = "empty"
            if scan.loose_images:
                found = f"{counted(len(scan.loose_images), 'image')} but no class folder"
            raise DataError(f"{scan.folder}: {found}; {_LAYOUT}")
        _refuse_other_tasks(scan)
    first = next(iter(scans.values()))
    names = sorted({name for scan in scans.values() for name in scan.classes}, key=natural_key)
    if for_training and "val" in scans:
        _check_same_classes(scans["train"], scans["val"])
    if alike := explain_unicode(names):
        raise DataError(f"{first.folder}: two classes of the same name; {alike}")
    for scan in scans.values():
        empty = [name for name, images in scan.classes.items() if not images]
        if len(empty) == len(scan.classes):
            raise DataError(f"{scan.folder}: none of its folders ({listed(empty)}) holds an image; {_LAYOUT}")
        if empty and for_training:
            raise DataError(f"{scan.folder}: no image in the class {_folders(empty)}")
    if len(names) == 1 and for_training:
        raise DataError(f"{first.folder}: only one class ({names[0]}); a classifier needs at least two; {_LAYOUT}")
    return tuple(names)


def _refuse_other_tasks(scan: _Scan) -> None:
    """Raise a `DataError` for a folder of images and a folder of their masks or labels, which are no classes."""
    found = {name.lower() for name in scan.classes}
    if found <= _IMAGE_FOLDERS | _LABEL_FOLDERS and found & _IMAGE_FOLDERS and found & _LABEL_FOLDERS:
        folders = listed([f"{name}/" for name in scan.classes])
        raise DataError(
            f"{scan.folder}: {folders} look like images and their annotations, which are no classes; give --task "
            "segment for masks, --task detect for boxes; a classifier's folders have the names of its classes"
        )


def _check_same_classes(train: _Scan, val: _Scan) -> None:
    differences = [
        f"only in {scan.folder.name}/: {listed(names)}"
        for scan, other in ((train, val), (val, train))
        if (names := [name for name in scan.classes if name not in other.classes])
    ]
    if differences:
        alike = explain_unicode([*train.classes, *val.classes])
        raise DataError(
            f"{train.folder.parent}: the classes of {train.folder.name}/ and {val.folder.name}/ differ "
            f"({'; '.join(differences)})" + (f"; {alike}" if alike else "")
        )


# ------------------------------------------------------------------------------------------------- images


def _image_set(
    scan: _Scan, root: Path, split: str, class_names: tuple[str, ...], checked: CheckedImages
) -> ImageSet:
    broken = checked.broken
    paths = [path for images in scan.classes.values() for path in images]
    return ImageSet(
        name=display_name(root, split),
        class_names=class_names,
        samples=tuple(
            FileSample(path, label=label)
            for label, name in enumerate(class_names)
            for path in scan.classes.get(name, ())
            if path not in broken
        ),
        root=root,
        warnings=(*scan.warnings, *(broken[path] for path in paths if path in broken)),
    )


def _check_readable(scan: _Scan, image_set: ImageSet, checked: CheckedImages, *, for_training: bool) -> None:
    lost = [name for name, count in image_set.class_counts.items() if count == 0 and scan.classes.get(name)]
    if lost and (for_training or not len(image_set)):
        reasons = [checked.broken[scan.classes[name][0]] for name in lost]
        raise DataError(
            f"{scan.folder}: no image can be read in the class {_folders(lost)} "
            f"({listed(reasons, separator='; ')})"
        )


def _split_by_class(
    whole: ImageSet, val_split: float, seed: int, *, for_training: bool
) -> tuple[ImageSet, ImageSet]:
    single = [name for name, count in whole.class_counts.items() if count == 1]
    if single and for_training:
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


def _names(folders: Iterable[Path]) -> str:
    return listed([f"{path.name}/" for path in folders], limit=6)
