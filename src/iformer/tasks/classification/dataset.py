"""Labelled images by name, with their classes in the order of a network's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from iformer.config.metadata import Metadata
from iformer.data.samples import DataSplits, ImageSet
from iformer.data.sources import load_data
from iformer.errors import DataError
from iformer.tasks.interface import Split

DEFAULT_VAL_SPLIT = 0.2
"""Share of each class that is split off for validation if neither the user nor the checkpoint says."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images whose labels are indices into a network's outputs."""

    images: ImageSet
    train: ImageSet
    """The training split; the same as `images` if that split was asked for."""
    notes: tuple[str, ...]
    """One line each for the reader of an evaluation: skipped files, images seen in training."""


def find_labelled(
    metadata: Metadata,
    num_classes: int,
    data: str,
    *,
    split: Split = "val",
    val_split: float | None = None,
    strict: bool = False,
) -> LabelledImages:
    """Load a data set for a network.

    Args:
        metadata: class names of the network and the data it was trained on.
        num_classes: outputs of the network.
        data: `elpv` or a folder; see `iformer.data.sources.load_data`.
        split: images for validation, for training, or all.
        val_split: share of each class for validation if the data is not split. None: the share used in the
            network's training if known, else `DEFAULT_VAL_SPLIT`.
        strict: an unreadable image is an error instead of being skipped.

    Raises:
        DataError: the data cannot be read, or its classes are not the network's.
    """
    trained_on = metadata.provenance.get("data")
    trained_on = trained_on if isinstance(trained_on, dict) else {}
    if val_split is None:
        val_split = float(trained_on.get("val_split", DEFAULT_VAL_SPLIT))
    splits = load_data(data, val_split=val_split, strict=strict)
    class_names = metadata.class_names or splits.val.class_names
    if len(class_names) != num_classes:
        raise DataError(f"{data} has {len(class_names)} classes, the network has {num_classes} outputs")
    return LabelledImages(
        images=with_class_order(_select(splits, split), class_names),
        train=with_class_order(splits.train, class_names),
        notes=(*splits.warnings, *_seen_in_training(splits, split, data, trained_on)),
    )


def with_class_order(image_set: ImageSet, class_names: Sequence[str]) -> ImageSet:
    """Return the same images with labels that are indices into `class_names`.

    Raises:
        DataError: the images have other classes; the message names the differences.
    """
    if set(image_set.class_names) != set(class_names):
        differences = [
            f"only {whose}: {', '.join(sorted(names)[:10])}{' …' if len(names) > 10 else ''}"
            for whose, names in (
                ("the network knows", set(class_names) - set(image_set.class_names)),
                ("the data has", set(image_set.class_names) - set(class_names)),
            )
            if names
        ]
        raise DataError(f"the classes of the data are not those of the network ({'; '.join(differences)})")
    index = {name: k for k, name in enumerate(class_names)}
    labels = [index[name] for name in image_set.class_names]
    samples = tuple(replace(sample, label=labels[sample.label]) for sample in image_set.samples)
    return replace(image_set, class_names=tuple(class_names), samples=samples)


def _select(splits: DataSplits, split: Split) -> ImageSet:
    if split == "all":
        name = splits.val.name.removesuffix(" val")
        return replace(splits.val, name=name, samples=(*splits.train.samples, *splits.val.samples))
    return splits.val if split == "val" else splits.train


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
