"""Conversion of annotated objects to the format of COCO or YOLO; the result is read again and compared."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from iformer.data.detection import DetectionSample, DetectionSet, Instance
from iformer.data.images import check_image, has_image_extension, open_image
from iformer.data.listing import is_hidden
from iformer.data.parallel import Progress
from iformer.data.sources.annotations.objects import MIN_SIDE
from iformer.data.sources.annotations.split import bounds
from iformer.data.sources.detection import load_detection, read_detection
from iformer.errors import DataError, OutputError, UserError, counted, listed
from iformer.files import copy_file, json_text

Format = Literal["coco", "yolo"]
_SPLITS = ("train", "val")
_TOLERANCE = 1e-3
"""Pixels by which a box may change, because YOLO stores shares of the image as decimals."""
_YOLO_MIN_SIDE = 1.0001 * MIN_SIDE
"""Smallest side of a box in YOLO's labels, so that rounded decimals do not make it smaller than readers accept."""
_EXTENSIONS = {"JPEG2000": "jp2"}
"""File extension of each format whose name is not an extension."""
_BOUNDS_TOLERANCE = 0.5
"""Tolerance in pixels between a box and the bounds of its outline. Within it, YOLO labels store the outline;
beyond it, they store the box, and the mask is lost."""


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Summary of a conversion."""

    folder: str
    format: Format
    images: dict[str, int]
    """Number of images by split."""
    objects: dict[str, int]
    """Number of objects written by split."""
    left_out: int
    """Number of crowd regions that the format cannot store."""
    classes: int
    notes: tuple[str, ...]
    """Objects and masks that the format cannot store, and warnings about the source, one line each."""


def convert_labels(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Format,
    val_split: float | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> LabelSummary:
    """Write a data set with annotated objects, images included, in another format.

    Images and objects that the checks of the source leave out are not written. The folder appears only after it is
    complete and was read again with the same images, classes, boxes and masks.

    Args:
        data: a data set that `iformer.data.sources.detection.load_detection` accepts.
        out: a new or empty folder.
        to: "coco": `annotations/instances_train.json` and `images/train/`; "yolo": `data.yaml`, `images/train/`
            and `labels/train/`.
        val_split: share of the images for validation, if the data has none.
        workers: threads that decode; None means one per core, at most 16.
        progress: called with the number of images checked and their total.

    Raises:
        DataError: the data cannot be used, or has other objects when it is read again.
        ConfigError: `val_split` is not between 0 and 1, or is given for data with validation images.
        UserError: `out` is not empty.
        MissingDependencyError: faster-coco-eval is not installed.
        OutputError: `out` cannot be written; nothing is left behind.
    """
    target = Path(out)
    if os.path.exists(target) and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not an empty folder; give another OUT")
    source = read_detection(
        data, val_split=val_split, workers=workers, progress=progress, for_training=False, same_classes=True
    )
    sets = {split: getattr(source.splits, split) for split in _SPLITS}
    sets = {split: image_set for split, image_set in sets.items() if len(image_set)}
    lost = _Lost()
    objects = {
        split: sum(to == "coco" or not instance.crowd for sample in one.samples for instance in sample.instances)
        for split, one in sets.items()
    }
    part = target.absolute().parent / f".{secrets.token_hex(8)}.part"
    missing = [folder for folder in part.parents if not os.path.exists(folder)]
    try:
        part.mkdir(parents=True)
        names = {split: _copy_images(image_set, part / "images" / split) for split, image_set in sets.items()}
        for split, image_set in sets.items():
            if to == "coco":
                _write_coco(image_set, source.entries[split], names[split], part, split)
            else:
                _write_yolo(image_set, source.entries[split], names[split], part, split, lost)
        if to == "yolo":
            _write_settings(next(iter(sets.values())), part, list(sets))
        try:
            written = load_detection(part, workers=workers, progress=progress, for_training=False)
        except DataError:
            for split, image_set in sets.items():
                _check_copies(image_set, names[split], part / "images" / split)
            raise
        for split, image_set in sets.items():
            _compare(image_set, getattr(written, split), names[split], part, lost.crowds, exact=to == "coco")
        if target.exists():  # keep the folder: it may be the working folder
            for entry in part.iterdir():
                entry.rename(target / entry.name)
        else:
            part.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for folder in missing:
            with suppress(OSError):  # not empty: the conversion has succeeded
                folder.rmdir()
    return LabelSummary(
        folder=str(target),
        format=to,
        images={split: len(image_set) for split, image_set in sets.items()},
        objects=objects,
        left_out=lost.crowds,
        classes=len(source.splits.train.class_names),
        notes=(*lost.notes(), *_outside(sets), *source.splits.warnings),
    )


def _outside(sets: Mapping[str, DetectionSet]) -> list[str]:
    """Return a note about images outside of the data's folder, which label files may name."""
    outside = []
    for image_set in sets.values():
        root = os.path.abspath(image_set.root)
        paths = {os.path.abspath(sample.path) for sample in image_set.samples}
        outside += sorted(path for path in paths if os.path.commonpath([path, root]) != root)
    if not outside:
        return []
    return [f"{counted(len(outside), 'image')} from outside of the data's folder: {listed(outside, limit=5)}"]


@dataclass
class _Lost:
    """Counts of crowd regions and masks that YOLO's format cannot store."""

    crowds: int = 0
    masks: int = 0

    def notes(self) -> list[str]:
        found = []
        if self.crowds:
            regions = counted(self.crowds, "crowd region")
            found.append(f"{regions} (objects marked iscrowd or difficult) left out: YOLO's labels have none")
        if self.masks:
            masks = "1 mask became a box" if self.masks == 1 else f"{self.masks:,} masks became boxes"
            found.append(f"{masks}: YOLO's labels have one polygon per object, no run lengths")
        return found


def _copy_images(image_set: DetectionSet, folder: Path) -> dict[int, Path]:
    """Copy the images of a split; return relative paths by image id. No two paths differ only in the extension."""
    # normalised, so that no name leads out of `folder`
    paths = {sample.image_id: Path(os.path.normpath(sample.path.absolute())) for sample in image_set.samples}
    base = Path(os.path.commonpath([path.parent for path in paths.values()]))
    used: set[str] = set()
    names: dict[int, Path] = {}
    for sample in image_set.samples:
        name = _readable(paths[sample.image_id].relative_to(base), sample.path)
        stem, number = name.stem, 1
        while str(name.with_suffix("")) in used:
            number += 1
            name = name.with_name(f"{stem}-{number}{name.suffix}")
        used.add(str(name.with_suffix("")))
        names[sample.image_id] = name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            copy_file(sample.path, folder / name)
        except OSError as error:
            if error.filename == os.fspath(sample.path) or not sample.path.is_file():
                raise DataError(f"{sample.path}: cannot be read any more ({error.strerror or error})") from None
            raise
    return names


def _check_copies(image_set: DetectionSet, names: Mapping[int, Path], folder: Path) -> None:
    """Decode the copies of a split's images.

    Raises:
        DataError: a copy cannot be decoded; the message names the source, which changed since it was read.
    """
    for sample in image_set.samples:
        copy = folder / names[sample.image_id]
        try:
            check_image(copy)
        except DataError as error:
            reason = str(error).removeprefix(f"{copy}: ")
            raise DataError(f"{sample.path}: changed during the conversion: {reason}; convert again") from None


def _readable(name: Path, image: Path) -> Path:
    """Return a relative path that every reader lists: not hidden, and with the extension of an image.

    Readers of YOLO's labels replace the last `images` of a path by `labels`: folders of that name are dropped.
    """
    folders = (part for part in name.parts[:-1] if part != "images" and not is_hidden(part))
    last = name.name.strip().lstrip(".")
    if not has_image_extension(last):
        with open_image(image) as opened:
            last = f"{last or 'image'}.{_EXTENSIONS.get(opened.format or '', str(opened.format).lower())}"
    return Path(*folders, last)


def _write_coco(
    image_set: DetectionSet,
    entries: Mapping[int, Sequence[Mapping[str, Any]]],
    names: Mapping[int, Path],
    out: Path,
    split: str,
) -> None:
    annotations: list[dict[str, Any]] = []
    for sample in image_set.samples:
        for instance, entry in zip(sample.instances, entries[sample.image_id], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": image_set.category_ids[instance.label],
                    "bbox": list(instance.box),
                    "area": instance.area,
                    "iscrowd": int(instance.crowd),
                    "segmentation": entry.get("segmentation", []) if instance.mask is not None else [],
                }
            )
    content = {
        "images": [
            {"id": s.image_id, "file_name": names[s.image_id].as_posix(), "height": s.height, "width": s.width}
            for s in image_set.samples
        ],
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(image_set.category_ids, image_set.class_names, strict=True)
        ],
    }
    (out / "annotations").mkdir(exist_ok=True)
    (out / "annotations" / f"instances_{split}.json").write_text(json_text(content), encoding="utf-8")


def _write_yolo(
    image_set: DetectionSet,
    entries: Mapping[int, Sequence[Mapping[str, Any]]],
    names: Mapping[int, Path],
    out: Path,
    split: str,
    lost: _Lost,
) -> None:
    for sample in image_set.samples:
        lines = []
        for instance, entry in zip(sample.instances, entries[sample.image_id], strict=True):
            if instance.crowd:
                lost.crowds += 1
                continue
            outline = _outline(instance, entry.get("segmentation"))
            lost.masks += outline is None and instance.mask is not None
            values = outline or _centre(instance.box)
            shares = [value / (sample.height if index % 2 else sample.width) for index, value in enumerate(values)]
            lines.append(" ".join([str(instance.label), *(f"{share:.12g}" for share in shares)]) + "\n")
        path = (out / "labels" / split / names[sample.image_id]).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")


def _outline(instance: Instance, segmentation: Any) -> list[float] | None:
    """Return the coordinates x, y, x, y … of an object's only polygon, or None if its bounds are not the box."""
    if instance.mask is None or not isinstance(segmentation, list) or len(segmentation) != 1:
        return None
    values: list[float] = segmentation[0]
    found = bounds(list(zip(values[::2], values[1::2], strict=True)))
    if max(abs(one - other) for one, other in zip(found, instance.box, strict=True)) > _BOUNDS_TOLERANCE:
        return None
    if min(found[2:]) < _YOLO_MIN_SIDE:
        return None
    return values


def _centre(box: tuple[float, float, float, float]) -> list[float]:
    left, top, width, height = box
    return [left + width / 2, top + height / 2, max(width, _YOLO_MIN_SIDE), max(height, _YOLO_MIN_SIDE)]


def _write_settings(image_set: DetectionSet, out: Path, splits: Sequence[str]) -> None:
    """Write `data.yaml`. Names are written as JSON strings, which are valid YAML even with quotes and colons."""
    lines = [f"{split}: images/{split}" for split in splits]
    names = [
        f"  {index}: {json_text(name, ascii_only=not name.isprintable())}"
        for index, name in enumerate(image_set.class_names)
    ]
    (out / "data.yaml").write_text("\n".join([*lines, "names:", *names, ""]), encoding="utf-8")


def _compare(
    before: DetectionSet, after: DetectionSet, names: Mapping[int, Path], out: Path, crowds: int, *, exact: bool
) -> None:
    """Check that a converted split has the same images and objects as the original one.

    Raises:
        DataError: the classes, images or objects differ; the message names the first image with other objects.
    """
    if after.class_names != before.class_names:
        raise DataError("the converted data has other classes than its source; nothing was written")
    folder = out / "images"
    read: dict[str, DetectionSample] = {
        str(sample.path.relative_to(folder)).partition(os.sep)[2]: sample for sample in after.samples
    }
    for sample in before.samples:
        found = read.pop(str(names[sample.image_id]), None)
        expected = [one for one in sample.instances if exact or not one.crowd]
        if found is None or not _same(expected, found.instances, exact=exact):
            raise DataError(f"{sample.path}: its objects are not those of its source after conversion")
    if read:
        raise DataError("the converted data has other images than its source; nothing was written")


def _same(before: Sequence[Instance], after: Sequence[Instance], *, exact: bool) -> bool:
    if len(before) != len(after):
        return False
    for one, other in zip(before, after, strict=True):
        if one.label != other.label or (exact and one[2:] != other[2:]):
            return False
        # in YOLO, the box of a polygon is its bounds
        tolerance = _TOLERANCE if exact or other.mask is None else _BOUNDS_TOLERANCE + _TOLERANCE
        if max(abs(a - b) for a, b in zip(one.box, other.box, strict=True)) > tolerance:
            return False
    return True
