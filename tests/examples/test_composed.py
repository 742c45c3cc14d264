"""The example data set: annotations match the pixels, and the splits share no picture."""

from __future__ import annotations

import random
from pathlib import Path

import compose
import numpy as np
import pytest
from PIL import Image

from iformer.data.detection import decode_mask
from iformer.data.segmentation import read_mask
from iformer.data.sources.detection import load_detection
from iformer.data.sources.masks import load_semantic
from iformer.tasks.registry import load_recipe
from tiny.composed import make_pictures

FOLDER = Path(__file__).parents[2] / "examples" / "composed"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures that the packages hold, in small. Read only."""
    return make_pictures(tmp_path_factory.mktemp("root"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["compose.py", *arguments])
    code: int = compose.main()
    return code


def test_what_is_drawn_is_what_is_annotated(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--root", str(pictures), "--train", "12", "--val", "6", "--size", "96"]
    assert run(monkeypatch, str(tmp_path / "one"), *options) == 0
    detection, semantic = load_detection(tmp_path / "one"), load_semantic(tmp_path / "one")
    # a dozen images need not show every class; nothing else may be wrong
    warnings = [*detection.warnings, *semantic.warnings]
    assert [line for line in warnings if not line.endswith("to learn from")] == []
    assert len(detection.train.class_names) >= 12
    assert semantic.train.class_names == ("background", *detection.train.class_names)
    assert len(semantic.train.palette) == len(semantic.train.class_names)
    covered = 0
    for sample, pair in zip(detection.train.samples, semantic.train.samples, strict=True):
        rebuilt = np.zeros((96, 96), np.uint8)
        for instance in sample.instances:
            assert instance.mask is not None
            mask_HW = decode_mask(instance.mask, 96, 96).astype(bool)
            covered += int((rebuilt[mask_HW] > 0).sum())
            rebuilt[mask_HW] = instance.label + 1
        assert np.array_equal(rebuilt, read_mask(pair.mask))
    assert covered == 0  # masks are of what is visible
    assert run(monkeypatch, str(tmp_path / "two"), *options) == 0
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()


def test_training_and_validation_share_no_cutout(pictures: Path) -> None:
    for paths in compose.find_cutouts(pictures).values():
        train, val = compose.divide(paths, 0)
        assert len(val) >= 2
        assert not set(train) & set(val)
        assert sorted(train + val) == paths


def test_objects_stay_visible() -> None:
    cutout = Image.new("RGBA", (50, 50), (200, 0, 0, 255))
    for seed in range(5):
        _, objects = compose.compose(Image.new("RGB", (99, 99)), [(0, cutout)] * 5, 96, random.Random(seed))
        for item in objects:
            assert item.visible.sum() >= compose.MIN_VISIBLE * item.whole.sum()


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(tmp_path / "out"), "--root", str(tmp_path)) == 1
    error = capsys.readouterr().err
    assert "apt-get install tuxpaint-stamps-default gnome-backgrounds plasma-workspace-wallpapers" in error
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert run(monkeypatch, str(tmp_path / "full")) == 1
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "task"), [("detect", "detect"), ("segment", "segment")])
def test_recipes_of_the_example_load(name: str, task: str) -> None:
    recipe = load_recipe(FOLDER / f"{name}.yaml", {"freeze": "weights"})
    assert recipe.task == task
