"""Reader of data sets with annotated objects in any known format, with the same checks for all formats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from iformer.data.detection import DetectionSample, DetectionSet, DetectionSplits
from iformer.data.images import open_image, orientation
from iformer.data.parallel import Progress
from iformer.data.sources.annotations.coco import find_coco, find_one_coco, read_coco
from iformer.data.sources.annotations.labelme import find_labelme, read_labelme
from iformer.data.sources.annotations.objects import ObjectReader
from iformer.data.sources.annotations.split import AnnotatedSplit
from iformer.data.sources.annotations.voc import find_voc, read_voc
from iformer.data.sources.annotations.yolo import find_yolo, has_yolo_labels, read_yolo
from iformer.data.sources.checks import CheckedImages, check_images, refuse_warnings
from iformer.data.sources.duplicates import find_shared_images
from iformer.data.sources.layout import display_name, explain_unicode, require_folder
from iformer.data.sources.splitting import DEFAULT_VAL_SPLIT, split_objects
from iformer.errors import ConfigError, DataError, counted, listed, printable

_LAYOUT = (
    "expected COCO (DIR/annotations/instances_train*.json and instances_val*.json, DIR/train.json and "
    "DIR/val.json, DIR/train/_annotations.coco.json and DIR/valid/…, or one file), YOLO (DIR/data.yaml), "
    "Pascal VOC (DIR/Annotations/1.xml) or LabelMe (DIR/1.json)"
)
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


@dataclass(frozen=True, kw_only=True)
class DetectionSource:
    """A checked data set, and its annotations as they were read."""

    splits: DetectionSplits
    entries: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]]
    """Annotations in COCO's terms by split and image id, in the order of `DetectionSample.instances`."""


def load_detection(
    data: str | os.PathLike[str],
    *,
    val_split: float | None = None,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
) -> DetectionSplits:
    """Find a data set's annotations, check each of them, and decode each image once.

    A fault that makes a whole file unusable is an error: an invalid format, an unknown image or category id, a
    mask or an image of another size than stated. A fault of one object or image is a warning, and the object or
    image is left out: a missing or damaged image file, a box without area or outside its image. Boxes that extend
    beyond the image are clipped. Images without objects are kept. A warning names images that are in both splits.

    Args:
        data: a folder or a file of annotations, in the format of COCO, YOLO, Pascal VOC or LabelMe; see `_LAYOUT`.
        val_split: share of the images that becomes validation data where the data has none. None: 0.2 if the data
            is not split at all, else validation images are required.
        seed: selects the validation images. It is not the training seed.
        strict: raise an error instead of a warning.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.
        for_training: require both splits with the same classes, and objects in both; else one of them may be
            missing, and is then empty, or have no objects.

    Raises:
        DataError: the data cannot be used; one line names the files, what is wrong and what is expected.
        ConfigError: `val_split` is not between 0 and 1, or is given for data with validation images.
        MissingDependencyError: faster-coco-eval is not installed.
    """
    return read_detection(
        data,
        val_split=val_split,
        seed=seed,
        strict=strict,
        workers=workers,
        progress=progress,
        for_training=for_training,
    ).splits


def read_detection(
    data: str | os.PathLike[str],
    *,
    val_split: float | None = None,
    seed: int = 0,
    strict: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    for_training: bool = True,
    same_classes: bool = False,
) -> DetectionSource:
    """Load a data set, and also return its annotations as they were read.

    The other arguments and errors are those of `load_detection`.

    Args:
        same_classes: require both splits to have the same classes, as `for_training` does.
    """
    if val_split is not None and not 0 < val_split < 1:
        raise ConfigError(f"val_split is {val_split!r}; expected a number between 0 and 1")
    root, found, notes = _read(Path(data))
    _check_splits(root, found, val_split, for_training=for_training)
    sets: dict[str, DetectionSet] = {}
    entries: dict[str, dict[int, list[Any]]] = {}
    errors: list[str] = []
    for split, annotated in found.items():
        sets[split], entries[split] = _image_set(annotated, root, split, errors)
    _raise(errors)
    differ = len(sets) == 2 and sets["train"].class_names != sets["val"].class_names
    if differ and (for_training or same_classes):
        raise DataError(
            f"{root}: the categories of training and validation differ "
            f"({_difference(sets['train'].class_names, sets['val'].class_names)}); give both the same list"
        )
    paths = list(dict.fromkeys(sample.path for image_set in sets.values() for sample in image_set.samples))
    checked = check_images(paths, workers=workers, progress=progress)
    sets = {split: _without_broken(image_set, checked, errors) for split, image_set in sets.items()}
    _raise(errors)
    notes += checked.notes
    warnings = [warning for image_set in sets.values() for warning in image_set.warnings]
    refuse_warnings(warnings, strict=strict)
    split_off = "all" in sets or (val_split is not None and "val" not in sets)
    if split_off:
        whole = next(iter(sets))
        sets["train"], sets["val"] = _split_off(sets.pop(whole), val_split or DEFAULT_VAL_SPLIT, seed, notes)
        entries = dict.fromkeys(("train", "val"), entries[whole])
    empty = [split for split, image_set in sets.items() if not any(image_set.class_counts.values())]
    for split, image_set in sets.items():
        if split in empty and (for_training or len(empty) == len(sets)):
            what = "train on" if split == "train" else "validate with"
            raise DataError(f"{root}: no object to {what}{_reasons(image_set)}")
        unused = [name for name, count in image_set.class_counts.items() if count == 0]
        if unused and split == "train" and for_training:
            source = found["train" if "train" in found else "all"].source
            notes.append(f"{source}: no object of {listed(unused)} to learn from")
    for split in {"train", "val"} - sets.keys():
        sets[split] = replace(next(iter(sets.values())), name=display_name(root, split), samples=(), warnings=())
    notes += _repeated(sets)
    train, val = ([sample.path for sample in sets[split].samples] for split in ("train", "val"))
    notes += find_shared_images(train, val, checked.rows, checked.hashes, checked.thumbnails)
    splits = DetectionSplits(
        train=sets["train"], val=sets["val"], warnings=(*warnings, *notes), split_off=split_off
    )
    return DetectionSource(splits=splits, entries=entries)


def _read(data: Path) -> tuple[Path, dict[str, AnnotatedSplit], list[str]]:
    """Recognise the format; return the folder, the splits and notes."""
    suffix = data.suffix.lower()
    if os.path.isfile(data) and suffix in (".yaml", ".yml"):
        return data.parent, read_yolo(data, data.parent), []
    if os.path.isfile(data) and suffix == ".json":
        root = data.parent.parent if data.parent.name == "annotations" else data.parent
        return root, *read_coco(root, {"all": data})
    root = require_folder(data, "unpack it" if suffix in _PACKED and os.path.isfile(data) else _LAYOUT)
    if files := find_coco(root):
        return root, *read_coco(root, files)
    if settings := find_yolo(root):
        return root, read_yolo(settings, root), []
    if xml_files := find_voc(root):
        return root, *read_voc(root, xml_files)
    if one := find_one_coco(root):
        return root, *read_coco(root, {"all": one})
    if json_files := find_labelme(root):
        return root, *read_labelme(root, json_files)
    if has_yolo_labels(root):
        raise DataError(
            f"{root}: has files of labels like YOLO's, but nothing names the classes; expected classes.txt there, "
            "one name on each line, or data.yaml with train, val and names"
        )
    raise DataError(f"{root}: no annotation file for train and val; {_LAYOUT}")


def _check_splits(
    root: Path, found: Mapping[str, AnnotatedSplit], val_split: float | None, *, for_training: bool
) -> None:
    """Raise an error if a split is missing, or if `val_split` is given for data with validation images."""
    if val_split is not None and "val" in found:
        raise ConfigError(f"val_split is {val_split:g}, and {root} has validation images; leave it out")
    if "all" in found or not for_training:
        return
    if "train" not in found:
        raise DataError(f"{root}: no annotation file for train; {_LAYOUT}")
    if "val" not in found and val_split is None:
        raise DataError(f"{root}: no annotation file for val; --val-split 0.2 takes a fifth of train; {_LAYOUT}")


def _repeated(sets: Mapping[str, DetectionSet]) -> list[str]:
    """Return notes about image files that a split lists more than once."""
    notes = []
    for image_set in sets.values():
        counts = Counter(os.path.normpath(sample.path) for sample in image_set.samples)
        twice = sorted(file for file, number in counts.items() if number > 1)
        if twice:
            found = counted(len(twice), "image file")
            notes.append(f"{image_set.name}: {found} listed more than once: {listed(twice, limit=5)}")
    return notes


def _image_set(
    annotated: AnnotatedSplit, root: Path, split: str, errors: list[str]
) -> tuple[DetectionSet, dict[int, list[Any]]]:
    """Check the objects of a split; append to `errors` what makes the split unusable."""
    ids = list(annotated.class_names)
    class_names = tuple(annotated.class_names.values())
    if not ids:
        raise DataError(f"{annotated.source}: no object of a class can be read{_reasons(annotated)}")
    if len(set(class_names)) != len(ids):
        raise DataError(
            f"{annotated.source}: its categories are {listed([repr(name) for name in class_names])}; "
            "expected one or more, each named once"
        )
    if alike := explain_unicode(class_names, remedy="write it in one form"):
        raise DataError(f"{annotated.source}: {alike}")
    reader = ObjectReader(annotated.images, {number: label for label, number in enumerate(ids)})
    objects = reader.read(annotated.objects, annotated.places)
    # a place names its file
    prefix = "" if annotated.places else f"{annotated.source}: "
    errors += [*annotated.errors, *(f"{prefix}{error}" for error in reader.errors)]
    image_set = DetectionSet(
        name=display_name(root, split),
        class_names=class_names,
        category_ids=tuple(ids),
        samples=tuple(
            DetectionSample(
                image.path, number, image.height, image.width, tuple(instance for instance, _ in objects[number])
            )
            for number, image in annotated.images.items()
        ),
        root=root,
        warnings=(*annotated.warnings, *(f"{prefix}{warning}" for warning in reader.warnings)),
    )
    return image_set, {
        number: [annotated.objects[position] for _, position in found] for number, found in objects.items()
    }


def _reasons(found: AnnotatedSplit | DetectionSet) -> str:
    """Return the errors and warnings of a split in parentheses, to end a message; empty if there are none."""
    reasons = [*getattr(found, "errors", ()), *found.warnings]
    return f" ({listed(reasons, separator='; ', length=500)})" if reasons else ""


def _without_broken(image_set: DetectionSet, checked: CheckedImages, errors: list[str]) -> DetectionSet:
    """Remove missing and damaged images, with a warning for each.

    Images whose size differs from their annotations are added to `errors`.

    Raises:
        DataError: no readable image remains.
    """
    broken = {
        sample.path: checked.broken[sample.path] for sample in image_set.samples if sample.path in checked.broken
    }
    kept = tuple(sample for sample in image_set.samples if sample.path not in broken)
    if not kept:
        some = next(iter(broken.values()), "the annotation file has none")
        raise DataError(f"{image_set.name}: no image can be read ({printable(some, limit=500)})")
    for sample in kept:
        width, height = checked.size(sample.path)
        if (width, height) != (sample.width, sample.height):
            as_stored = (height, width) == (sample.width, sample.height) and _is_turned(sample.path)
            reason = ", without its EXIF orientation; remove that from the file" if as_stored else ""
            errors.append(
                f"{sample.path}: is {width} x {height} pixels, its annotations are for "
                f"{sample.width} x {sample.height}{reason}"
            )
    return replace(image_set, samples=kept, warnings=(*image_set.warnings, *broken.values()))


def _is_turned(image: Path) -> bool:
    """Return whether an image's EXIF orientation exchanges its width and height."""
    with open_image(image) as opened:
        return orientation(opened) >= 5


def _split_off(
    image_set: DetectionSet, val_split: float, seed: int, notes: list[str]
) -> tuple[DetectionSet, DetectionSet]:
    """Split images into training and validation, images with rare classes first; append a note about the split.

    Raises:
        DataError: there is one image only.
    """
    samples, root = image_set.samples, image_set.root
    names = [os.path.relpath(sample.path, root) for sample in samples]
    labels = [[instance.label for instance in sample.instances] for sample in samples]
    train, val = split_objects(names, labels, val_share=val_split, seed=seed)
    if not train or not val:
        raise DataError(f"{root}: has one image; training and validation need one each")
    notes.append(
        f"{root} is not split: {len(val):,} of {len(samples):,} images are for validation; --val-split "
        "sets their share"
    )
    return (
        replace(image_set, name=display_name(root, "train"), samples=tuple(samples[index] for index in train)),
        replace(
            image_set,
            name=display_name(root, "val"),
            samples=tuple(samples[index] for index in val),
            warnings=(),
        ),
    )


def _raise(errors: Sequence[str]) -> None:
    if errors:
        raise DataError(listed(errors, separator="; ", length=500))


def _difference(train: tuple[str, ...], val: tuple[str, ...]) -> str:
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if not only_train and not only_val:
        return "their ids are in another order"
    return (
        f"only in training: {', '.join(only_train) or 'none'}; only in validation: {', '.join(only_val) or 'none'}"
    )
