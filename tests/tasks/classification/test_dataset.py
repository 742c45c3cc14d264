"""Choosing classes of a data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import iformer
from iformer.cli.main import main
from iformer.config.variants import VARIANTS
from iformer.data.samples import DataSplits, FileSample, ImageSet
from iformer.data.sources import load_data
from iformer.data.sources.splitting import select_classes
from iformer.errors import DataError
from tiny.classification import make_images
from tiny.networks import tiny_variant


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("photographs"), 2)


def test_some_classes_in_an_order(photographs: Path) -> None:
    data = select_classes(load_data(photographs), ["red", "blue"])
    assert data.train.class_names == data.val.class_names == ("red", "blue")
    assert data.train.class_counts == {"red": 2, "blue": 2}
    assert all(Path(str(s)).parent.name == data.val.class_names[s.label] for s in data.val.samples)
    with pytest.raises(DataError, match="--classes has pink; the classes of the data are blue, green, red"):
        select_classes(load_data(photographs), ["red", "pink"])
    with pytest.raises(DataError, match="--classes has an empty name; the classes"):
        select_classes(load_data(photographs), ["red", "", "blue"])


def test_classes_that_make_no_classifier(photographs: Path) -> None:
    data = load_data(photographs)
    for names in (["red"], ["red", "red"]):
        with pytest.raises(DataError, match="expected two different classes or more"):
            select_classes(data, names)


def test_of_several_labels_the_others_are_left_out() -> None:
    samples = (
        FileSample(Path("/a.png"), label=0, labels=(0, 1)),
        FileSample(Path("/b.png"), label=1, labels=(1,)),
        FileSample(Path("/c.png"), label=0, labels=(0, 2)),
    )
    images = ImageSet(name="x train", class_names=("a", "b", "c"), samples=samples, root=Path("/"))
    found = select_classes(DataSplits(train=images, val=images), ["c", "a"]).train
    assert found.label_sets == [(1,), (), (0, 1)]


def test_the_network_is_evaluated_on_its_classes(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
    words = [
        "train",
        "--data",
        str(photographs),
        "--classes",
        "red, blue",
        "--model",
        "iformer_tiny",
        "--epochs",
        "1",
    ]
    words += ["--weights", "none", "--size", "64", "--batch-size", "4", "--set", "workers=0", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "run"), "--tracker", "none", "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert list(trained["metrics"]["per_class"]) == ["red", "blue"]
    evaluation = iformer.evaluate(tmp_path / "run", photographs, device="cpu")
    assert evaluation.metrics["top1"] == trained["metrics"]["top1"]
    assert evaluation.metrics["images"] == 8
