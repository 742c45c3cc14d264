"""The data of a training is recognised by its place or its images, not by how its name is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.data.sources import load_data
from iformer.data.sources.splitting import select_classes, split_fold
from iformer.errors import DataError
from iformer.tasks.classification.dataset import find_labelled
from iformer.tasks.trained_split import load_as_trained


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of one folder of classes that is not split, and of a copy of it."""
    random = np.random.default_rng(0)
    for name in ("red", "green", "blue"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        for index in range(8):
            pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "flat" / name / f"{index}.png")
    shutil.copytree(tmp_path / "flat", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    return ["flat", "flat/", "./flat", str(tmp_path / "flat"), "moved"]


def metadata(class_names: tuple[str, ...], **trained_on: Any) -> Metadata:
    preprocessing = Preprocessing(size=(8, 8))
    return Metadata(class_names=class_names, preprocessing=preprocessing, provenance={"data": trained_on})


def test_a_fold_validates_under_every_name_of_its_data(names: list[str]) -> None:
    splits = split_fold(load_data("flat"), 2, 4)
    trained_on = {"name": "flat", "fold": [2, 4], "train_fingerprint": splits.train.fingerprint()}
    network = metadata(splits.train.class_names, **trained_on)
    for name in names:
        found = find_labelled(network, 3, name)
        assert found.split == "val"
        assert [path.name for path in found.images.files] == [path.name for path in splits.val.files]


def test_chosen_classes_are_chosen_under_every_name(names: list[str]) -> None:
    splits = select_classes(load_data("flat"), ("red", "blue"))
    trained_on = {"name": "flat", "classes": ["red", "blue"], "train_fingerprint": splits.train.fingerprint()}
    for name in names:
        found = find_labelled(metadata(("red", "blue"), **trained_on), 2, name)
        assert len(found.images) == len(splits.val)


def test_other_data_is_not_split_as_in_the_training(names: list[str]) -> None:
    trained_on = {"name": "elsewhere", "fold": [1, 50], "train_fingerprint": "other"}
    found = find_labelled(metadata(("blue", "green", "red"), **trained_on), 3, "flat")
    assert found.split == "all"
    assert len(found.images) == 24


def test_the_share_of_the_training_is_split_off_again(names: list[str]) -> None:
    asked: list[float | None] = []

    def load(share: float | None) -> Any:
        asked.append(share)
        return SimpleNamespace(train=SimpleNamespace(fingerprint=lambda: f"images at {share}"))

    network = metadata((), name="flat", val_split=0.1, train_fingerprint="images at 0.1")
    for name in names:
        load_as_trained(network, name, load)
    assert asked == [0.1] * len(names)

    asked.clear()
    load_as_trained(metadata((), name="x", val_split=0.1, train_fingerprint="others"), "flat", load)
    load_as_trained(metadata(()), "flat", load)
    load_as_trained(None, "flat", load)
    assert asked == [0.1, None, None, None]


def test_data_that_is_split_is_taken_as_it_is(names: list[str]) -> None:
    def load(share: float | None) -> Any:
        if share is not None:
            raise DataError("is split; leave --val-split out")
        return "as it is"

    network = metadata((), name="elsewhere", val_split=0.1, train_fingerprint="others")
    assert load_as_trained(network, "flat", load) == "as it is"
