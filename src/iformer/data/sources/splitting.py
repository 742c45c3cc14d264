"""Reproducible stratified splits, the folds of a cross-validation, and the choice of classes."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from iformer.data.samples import DataSplits, FileSample, ImageSet, IndexedSamples
from iformer.errors import DataError, UserError, counted, listed

MAX_FOLDS = 100

DEFAULT_VAL_SPLIT = 0.2
"""Share of the images that becomes validation data where the data is not split and no share is given."""


def split_stratified(
    names: Sequence[str], strata: Sequence[Hashable], *, val_share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split items into training and validation, each stratum by itself.

    About `len(names) * val_share` items become validation. Each stratum gives its share, rounded up where the
    remainder is largest, but at least 1 item and at most all but 1 (a stratum with a single item gives none).
    Which items of a stratum are chosen depends only on `seed` and each item's name.

    Args:
        names: a unique name per item, such as its path below the data set's folder.
        strata: the stratum of each item.
        val_share: share of the items that become validation.
        seed: selects the items.

    Returns:
        Indices of the training and of the validation items, each ascending.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)

    counts = {}
    for stratum, indices in members.items():
        counts[stratum] = min(max(1, int(len(indices) * val_share)), len(indices) - 1)
    missing = round(len(names) * val_share) - sum(counts.values())
    # a stratum raised to 1 has no remainder; the sort is stable: strata with equal remainders keep their order
    remainders = {stratum: len(indices) * val_share - counts[stratum] for stratum, indices in members.items()}
    for stratum in sorted(members, key=lambda key: -remainders[key])[: max(0, missing)]:
        counts[stratum] = min(counts[stratum] + 1, max(0, len(members[stratum]) - 1))
    val: set[int] = set()
    for stratum, indices in members.items():
        val.update(sorted(indices, key=lambda index: (_rank(names[index], seed), index))[: counts[stratum]])
    return [index for index in range(len(names)) if index not in val], sorted(val)


def split_objects(
    names: Sequence[str], labels: Sequence[Sequence[int]], *, val_share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split images with several objects into training and validation, so that rare classes are in both.

    An image belongs to the stratum of its rarest class, and `split_stratified` splits the strata. In small data,
    strata of single images may leave too few for validation; then more images are moved there, first those whose
    classes other training images have too. Of two images or more, each part gets at least one.

    Args:
        names: as for `split_stratified`.
        labels: the classes of each image's objects.
        val_share: share of the images that become validation.
        seed: selects the images.
    """
    counts = Counter(label for found in labels for label in found)
    rarest = [min(found, key=lambda label: (counts[label], label), default=-1) for found in labels]
    train, val = split_stratified(names, rarest, val_share=val_share, seed=seed)
    missing = max(1, round(len(names) * val_share)) - len(val)
    if missing <= 0:
        return train, val
    images = Counter(label for index in train for label in set(labels[index]))
    moved: list[int] = []
    order = sorted(train, key=lambda index: (_rank(names[index], seed), index))
    for index in order:
        if len(moved) < missing and all(images[label] > 1 for label in labels[index]):
            moved.append(index)
            images.subtract(set(labels[index]))
    if not val and not moved:
        moved = order[:1]
    if len(moved) == len(train):
        moved = moved[1:]
    return sorted(set(train) - set(moved)), sorted({*val, *moved})


def split_groups(whole: ImageSet, *, val_share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Split a set of files into training and validation; the images of a group stay together.

    A group belongs to the stratum of the most frequent class of its images; an image with several labels counts as
    its rarest class. The groups are split by `split_stratified`. If this leaves a class out of training, or out of
    validation (images with one label), or all of them out of validation, groups are moved, the smallest first, as
    far as each class can be in both.
    """
    groups = _groups(whole)
    chosen = split_stratified(
        [group.name for group in groups], [group.stratum for group in groups], val_share=val_share, seed=seed
    )
    parts = [{groups[place] for place in places} for places in chosen]
    in_train, in_val = ({label for group in part for label in group.labels} for part in parts)
    has_label_sets = any(sample.labels is not None for sample in whole.samples)
    if in_val - in_train or (not in_val if has_label_sets else in_train - in_val):
        _cover_classes(parts[0], source=parts[1], seed=seed)
        _cover_classes(parts[1], source=parts[0], seed=seed)
    train, val = (whole.subset(sorted(index for group in part for index in group.members)) for part in parts)
    return train, replace(val, name=whole.name.removesuffix("train") + "val", warnings=())


def split_fold(data: DataSplits, number: int, folds: int, *, seed: int = 0) -> DataSplits:
    """Return one fold of a cross-validation over all images of a data set, regardless of the data's own split.

    Every image is a validation image in exactly one fold. Folds are stratified by class, and the images of a group
    stay together. The fold of a group depends only on `seed`, the classes and the names of the files.

    Args:
        data: the data set; its splits are joined.
        number: the fold whose images become validation data, counted from 1.
        folds: number of folds, 2 to 100.
        seed: selects the images.

    Raises:
        UserError: `number` or `folds` is out of its range.
        DataError: the images are in shards or a Hugging Face data set, there are fewer groups than folds, or a
            class is in one fold only.
    """
    if not 2 <= folds <= MAX_FOLDS:
        raise UserError(f"folds is {folds}; expected 2 to {MAX_FOLDS}")
    if not 1 <= number <= folds:
        raise UserError(f"fold is {number}; expected 1 to {folds}")
    name = data.train.name.removesuffix(" train")
    if isinstance(data.train.samples, IndexedSamples) or isinstance(data.val.samples, IndexedSamples):
        raise DataError(f"{name}: folds are made of image files; give a folder or a table")
    whole = replace(data.train, samples=(*data.train.samples, *data.val.samples))
    groups = _groups(whole)
    if len(groups) < folds:
        kind = "image" if len(groups) == len(whole) else "group"
        raise DataError(f"{name}: {counted(len(groups), kind)} cannot make {folds} folds; give fewer --folds")
    order = sorted(range(len(groups)), key=lambda i: (groups[i].stratum, _rank(groups[i].name, seed), i))
    fold_of = {index: place % folds + 1 for place, group in enumerate(order) for index in groups[group].members}
    folds_of: dict[int, set[int]] = defaultdict(set)
    for index, labels in enumerate(whole.label_sets):
        for label in labels:
            folds_of[label].add(fold_of[index])
    # of all folds, so that the first one stops before anything is trained
    if alone := [whole.class_names[label] for label, found in sorted(folds_of.items()) if len(found) == 1]:
        raise DataError(
            f"{name}: all images of {listed(alone)} are in one of the {folds} folds, which cannot train it; "
            "give more images of it, in several groups if the data has groups, or leave the class out by --classes"
        )
    val = [index for index in range(len(whole)) if fold_of[index] == number]
    train_set = whole.subset([index for index in range(len(whole)) if fold_of[index] != number])
    val_set = replace(whole.subset(val), name=f"{name} val", warnings=())
    return replace(data, train=train_set, val=val_set, split_off=False)


@dataclass(frozen=True, eq=False)
class _Group:
    name: str
    labels: frozenset[int]
    """Classes of the group's images."""
    stratum: int
    """Index of the class by which the group is stratified; -1: no class."""
    members: list[int]
    """Indices of the group's images."""


def _groups(whole: ImageSet) -> list[_Group]:
    counts = list(whole.class_counts.values())
    label_sets = whole.label_sets
    rarest = [min(labels, key=counts.__getitem__, default=-1) for labels in label_sets]
    members: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(whole.samples):
        group = sample.group if isinstance(sample, FileSample) else ""
        members[group or f"\0{whole.relative_path(sample)}"].append(index)
    return [
        _Group(
            name.lstrip("\0"),
            frozenset(label for index in indices for label in label_sets[index]),
            Counter(rarest[index] for index in indices).most_common(1)[0][0],
            indices,
        )
        for name, indices in members.items()
    ]


def _cover_classes(target: set[_Group], *, source: set[_Group], seed: int) -> None:
    """Move groups from `source` to `target` until it has each class of `source`, which keeps one group of each."""
    while True:
        counts = Counter(label for group in source for label in group.labels)
        missing = counts.keys() - {label for group in target for label in group.labels}
        movable = [g for g in source if g.labels & missing and all(counts[label] > 1 for label in g.labels)]
        if not movable:
            return
        moved = min(
            movable, key=lambda g: (-len(g.labels & missing), len(g.members), _rank(g.name, seed), g.members)
        )
        source.remove(moved)
        target.add(moved)


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()


def select_classes(splits: DataSplits, names: Sequence[str]) -> DataSplits:
    """Keep only some classes of a data set, in the order of `names`.

    Images of other classes are left out. Images with several labels stay, without the other labels.

    Raises:
        DataError: fewer than two names, a name twice, or a class that the data does not have.
    """
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"--classes is {listed(names)}; expected two different classes or more")
    known = splits.train.class_names
    unknown = [name for name in names if name not in known]
    if unknown:
        named = listed([name or "an empty name" for name in unknown])
        raise DataError(f"--classes has {named}; the classes of the data are {listed(known)}")
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
