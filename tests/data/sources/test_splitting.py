"""Splits of images with several objects, of groups, and the folds of a cross-validation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iformer.data.samples import DataSplits, FileSample, ImageSet, IndexedSamples
from iformer.data.sources.splitting import split_fold, split_groups, split_objects
from iformer.errors import DataError, UserError

ROOT = Path("/photos")


def splits(labels: list[int], groups: list[str] | None = None, classes: int = 2) -> DataSplits:
    """Files 0.png, 1.png, …; the last quarter is for validation."""
    samples = [
        FileSample(ROOT / f"{number}.png", label=label, group=groups[number] if groups else "")
        for number, label in enumerate(labels)
    ]
    cut = 3 * len(samples) // 4
    names = tuple(f"class {k}" for k in range(classes))
    train, val = (
        ImageSet(name=f"photos {name}", class_names=names, samples=tuple(images), root=ROOT)
        for name, images in (("train", samples[:cut]), ("val", samples[cut:]))
    )
    return DataSplits(train=train, val=val)


def test_every_image_validates_once_and_folds_are_stratified() -> None:
    data = splits([0] * 30 + [1] * 10)
    folds = [split_fold(data, number, 5) for number in range(1, 6)]
    seen = Counter(sample.name for fold in folds for sample in fold.val.samples)
    assert seen == Counter(f"{number}.png" for number in range(40))
    for fold in folds:
        assert fold.val.class_counts == {"class 0": 6, "class 1": 2}
        assert not {s.name for s in fold.val.samples} & {s.name for s in fold.train.samples}
        assert len(fold.train) == 32
        assert (fold.train.name, fold.val.name) == ("photos train", "photos val")


def test_a_class_that_is_nowhere_the_most_frequent_is_on_both_sides() -> None:
    """Two of twenty groups have an image of the rare class; the other groups stay where the strata put them."""
    labels = [
        label for group in range(20) for label in (group % 2, group % 2, 2 if group in (3, 8) else group % 2)
    ]
    groups = [str(number // 3) for number in range(60)]
    whole = splits(labels, groups, classes=3)
    joined = replace(whole.train, samples=(*whole.train.samples, *whole.val.samples))
    for seed in range(20):
        train, val = split_groups(joined, val_share=0.2, seed=seed)
        assert train.class_counts["class 2"] == val.class_counts["class 2"] == 1
        in_val = {sample.group for sample in val.samples}
        assert 4 <= len(in_val) <= 5
        assert not in_val & {sample.group for sample in train.samples}


def test_folds_depend_on_names_only() -> None:
    data = splits([0, 1] * 12)
    turned = DataSplits(train=data.val, val=data.train)
    for number in (1, 2, 3):
        names = {s.name for s in split_fold(data, number, 3).val.samples}
        assert names == {s.name for s in split_fold(turned, number, 3).val.samples}
        assert names != {s.name for s in split_fold(data, number, 3, seed=1).val.samples}


def test_a_group_is_on_one_side() -> None:
    groups = [f"patient {number // 4}" for number in range(48)]
    data = splits([number // 4 % 2 for number in range(48)], groups)
    for number in (1, 2, 3):
        fold = split_fold(data, number, 3)
        sides = [
            {s.group for s in images.samples if isinstance(s, FileSample)} for images in (fold.train, fold.val)
        ]
        assert len(sides[1]) == 4
        assert not sides[0] & sides[1]


def test_folds_that_cannot_be_made() -> None:
    with pytest.raises(UserError, match="folds is 1; expected 2 to 100"):
        split_fold(splits([0, 1] * 4), 1, 1)
    with pytest.raises(UserError, match="fold is 4; expected 1 to 3"):
        split_fold(splits([0, 1] * 4), 4, 3)
    with pytest.raises(DataError, match=r"2 groups cannot make 3 folds"):
        split_fold(splits([0, 1] * 4, ["a", "b"] * 4), 1, 3)
    with pytest.raises(DataError, match=r"8 images cannot make 9 folds"):
        split_fold(splits([0, 1] * 4), 1, 9)
    alone = splits([0] * 7 + [1])
    for number in range(1, 5):  # not only the fold of the image: that may be the last one to be trained
        with pytest.raises(DataError, match="all images of class 1 are in one of the 4 folds"):
            split_fold(alone, number, 4)


class Stored(IndexedSamples):
    """Two images inside another file."""

    contents = "x"
    labels = np.zeros(2, np.int64)

    def sample(self, position: int) -> FileSample:
        raise AssertionError


def test_images_inside_other_files_make_no_folds() -> None:
    whole = ImageSet(name="shards train", class_names=("a", "b"), samples=Stored(), root=ROOT)
    with pytest.raises(DataError, match="shards: folds are made of image files"):
        split_fold(DataSplits(train=whole, val=whole), 1, 2)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
@pytest.mark.parametrize("count", [2, 3, 5, 10, 25])
def test_images_with_objects_always_split(count: int, share: float) -> None:
    names = [f"{number}.png" for number in range(count)]
    for seed in range(10):
        generator = np.random.default_rng(seed)
        labels = [generator.integers(0, 16, generator.integers(0, 6)).tolist() for _ in names]
        train, val = split_objects(names, labels, val_share=share, seed=seed)
        assert sorted([*train, *val]) == list(range(count))
        assert train
        assert val
        images = Counter(label for found in labels for label in set(found))
        trained = {label for index in train for label in labels[index]}
        shared = {label for label in images if images[label] > 1}
        if count > 5:  # of fewer images each may have a class that no other has
            assert shared <= trained
            assert len(val) >= round(count * share) or len(trained) == len(images)


def test_ten_images_of_ten_classes_give_a_fifth() -> None:
    names = [f"{number}.png" for number in range(10)]
    train, val = split_objects(names, [[number, 10] for number in range(10)], val_share=0.2, seed=0)
    assert (len(train), len(val)) == (9, 1)  # each image has a class of its own
    train, val = split_objects(names, [[number // 2, 10] for number in range(10)], val_share=0.2, seed=0)
    assert len(val) == 5  # one of each pair, for the rare classes
    train, val = split_objects(names, [[]] * 10, val_share=0.2, seed=0)
    assert len(val) == 2
    assert split_objects(names[:1], [[0]], val_share=0.2, seed=0) == ([0], [])
