"""Labelled images by name, with their classes in the order of a network's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from iformer.config.metadata import Metadata
from iformer.data.samples import DataSplits, ImageSet
from iformer.data.sources import load_data
from iformer.data.sources.splitting import DEFAULT_VAL_SPLIT, split_fold
from iformer.errors import DataError, listed
from iformer.tasks.class_order import class_order, refuse_unknown
from iformer.tasks.interface import Split


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images whose labels are indices into a network's outputs."""

    images: ImageSet
    split: Split
    """The split of `images`."""
    train: ImageSet
    """The training split; the same as `images` if that split was asked for."""
    notes: tuple[str, ...]
    """One line each for the reader of an evaluation: skipped files, the share in use, images seen in training."""


def find_labelled(
    metadata: Metadata,
    num_classes: int,
    data: str,
    *,
    split: Split | None = None,
    val_split: float | None = None,
    strict: bool = False,
    for_training: bool = False,
) -> LabelledImages:
    """Load a data set for a network.

    Args:
        metadata: class names of the network and the data it was trained on.
        num_classes: outputs of the network.
        data: `elpv` or a folder; see `iformer.data.sources.load_data`.
        split: images for validation, for training, or all. None: those for validation; all, if the data is not
            split and the network was not trained on it.
        val_split: share of each class for validation if the data is not split. None: the share used in the
            network's training if known, else `DEFAULT_VAL_SPLIT`.
        strict: an unreadable image is an error instead of being skipped.
        for_training: require images of every class in both splits. False: any labelled images, of any of the
            network's classes.

    Raises:
        DataError: the data cannot be read, has a class that the network does not know, or the split is empty.
    """
    trained_on = metadata.provenance.get("data")
    trained_on = trained_on if isinstance(trained_on, dict) else {}
    share = float(trained_on.get("val_split", DEFAULT_VAL_SPLIT)) if val_split is None else val_split
    splits = load_data(
        data, val_split=share, strict=strict, for_training=for_training, multi_label=metadata.multi_label
    )
    classes = trained_on.get("classes") if trained_on.get("name") == data else None
    if classes is not None:
        splits = select_classes(splits, classes)
    fold = trained_on.get("fold") if trained_on.get("name") == data else None
    if fold is not None:
        splits = split_fold(splits, *fold)
    class_names = metadata.class_names or splits.val.class_names
    if len(class_names) != num_classes:
        raise DataError(f"{data} has {len(class_names)} classes, the network has {num_classes} outputs")
    known = trained_on.get("train_fingerprint") == splits.train.fingerprint() or trained_on.get("name") == data
    if split is None:
        split = "all" if splits.split_off and val_split is None and not (known or for_training) else "val"
    images = with_class_order(_select(splits, split), class_names)
    if not len(images):
        hint = "" if split == "all" else "; --split all takes the images of both"
        raise DataError(f"{data}: no image in the {split} split{hint}")
    return LabelledImages(
        images=images,
        split=split,
        train=with_class_order(splits.train, class_names),
        notes=(
            *splits.warnings,
            *_share(splits, images, share, hint="" if for_training else "; --split all evaluates all"),
            *_seen_in_training(splits, split, data, trained_on),
        ),
    )


def select_classes(splits: DataSplits, names: Sequence[str]) -> DataSplits:
    """Keep only some classes of a data set, in the order of `names`.

    Images of other classes are left out; of images with several labels, the other labels are.

    Raises:
        DataError: fewer than two names, a name twice, or a class that the data has not.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"--classes is {listed(names)}; expected two different classes or more")
    known = splits.train.class_names
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(f"--classes has {listed(unknown)}; the classes of the data are {listed(known)}")
    index = {known.index(name): place for place, name in enumerate(names)}

    def selected(images: ImageSet) -> ImageSet:
        samples = []
        for sample in images.samples:
            kept = tuple(sorted(index[label] for label in sample.classes if label in index))
            if sample.labels is not None:
                samples.append(replace(sample, label=min(kept, default=-1), labels=kept))
            elif kept:
                samples.append(replace(sample, label=kept[0]))
        return replace(images, class_names=tuple(names), samples=tuple(samples))

    return replace(splits, train=selected(splits.train), val=selected(splits.val))


def with_class_order(image_set: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Return the same images with labels that are indices into `class_names`, which may have more classes.

    Raises:
        DataError: the images have a class that is not in `class_names`; the message names the differences.
    """
    refuse_unknown(class_names, image_set.class_names)
    labels = [label for label in class_order(class_names, image_set.class_names) if label is not None]
    samples = tuple(
        replace(sample, label=labels[sample.label])
        if sample.labels is None
        else replace(
            sample,
            label=labels[sample.label] if sample.labels else -1,
            labels=tuple(sorted(labels[label] for label in sample.labels)),
        )
        for sample in image_set.samples
    )
    return replace(image_set, class_names=tuple(class_names), samples=samples)


def _select(splits: DataSplits, split: Split) -> ImageSet:
    if split == "all":
        name = splits.val.name.removesuffix(" val")
        return replace(splits.val, name=name, samples=(*splits.train.samples, *splits.val.samples))
    return splits.val if split == "val" else splits.train


def _share(splits: DataSplits, images: ImageSet, share: float, *, hint: str) -> list[str]:
    """Return notes if only a part of unsplit data, or only some of the network's classes, are evaluated."""
    notes = []
    total = len(splits.train) + len(splits.val)
    if splits.split_off and len(images) < total:
        notes.append(
            f"evaluated {len(images)} of {total} images: the data is not split, and val is "
            f"{100 * share:g} % of each class{hint}"
        )
    missing = [name for name, count in images.class_counts.items() if not count]
    if missing:
        shown = listed(missing)
        notes.append(f"no image of {len(missing)} of the network's {len(images.class_names)} classes: {shown}")
    return notes


def _seen_in_training(splits: DataSplits, split: Split, data: str, trained_on: dict[str, Any]) -> list[str]:
    """Return a warning if the network was, or may have been, trained on images of the split."""
    if trained_on.get("train_fingerprint") == splits.train.fingerprint():
        return [] if split == "val" else ["the network was trained on some of these images"]
    if trained_on.get("name") == data:
        return [
            "the files are not split as they were when this network was trained: it may have been trained on "
            "some of these images"
        ]
    return []
