"""Folders of images and masks: what is read, and what is an error before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer.config.segmenter import IGNORED
from iformer.data.segmentation import read_mask
from iformer.data.sources.masks import load_semantic
from iformer.errors import DataError


@pytest.fixture
def data(shapes_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_data, tmp_path / "data"))


def test_what_is_read(shapes_data: Path) -> None:
    split = load_semantic(shapes_data)
    assert split.warnings == ()
    assert split.train.class_names == ("background", "disc", "square")
    assert [sample.path.stem for sample in split.train.samples] == list("01234567")
    assert all(sample.mask.stem == sample.path.stem for sample in split.train.samples)
    assert set(np.unique(read_mask(split.train.samples[2].mask))) <= {0, 1, 2}
    assert len(split.val) == 4


def test_ade20k_counts_from_one(data: Path) -> None:
    for kind, name in (("images", "images"), ("masks", "annotations")):
        for part, their_name in (("train", "training"), ("val", "validation")):
            target = data / "ade" / name / their_name
            shutil.copytree(data / kind / part, target)
    header, rows = "Idx\tRatio\tTrain\tVal\tStuff\tName", ["1\t.5\t1\t1\t0\tdisc, round", "2\t.5\t1\t1\t0\tsquare"]
    (data / "ade" / "objectInfo150.txt").write_text("\n".join([header, *rows]))
    split = load_semantic(data / "ade")
    assert split.train.class_names == ("disc", "square")
    sample = split.train.samples[0]
    stored = np.asarray(Image.open(sample.mask))
    mask_HW = read_mask(sample.mask, zero_is_ignored=split.train.zero_is_ignored)
    assert np.array_equal(mask_HW == IGNORED, stored == 0)
    assert np.array_equal(mask_HW[stored > 0], stored[stored > 0] - 1)


def test_palette_of_the_masks_is_kept(data: Path) -> None:
    assert load_semantic(data).train.palette == ()
    path = data / "masks" / "train" / "0.png"
    mask = Image.open(path).copy()
    mask.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10] + [0] * 759)
    mask.save(path)
    assert load_semantic(data).train.palette == ((0, 0, 0), (200, 10, 10), (10, 200, 10))


def test_images_without_a_mask_are_told(data: Path) -> None:
    (data / "masks" / "train" / "3.png").unlink()
    (data / "images" / "train" / "4.png").write_bytes(b"")
    split = load_semantic(data)
    assert len(split.train) == 6
    assert "3.png: has no mask" in split.warnings[0]
    assert "4.png" in split.warnings[1]
    with pytest.raises(DataError, match="2 warnings"):
        load_semantic(data, strict=True)


def test_bad_masks_are_one_clear_line(data: Path) -> None:
    path = data / "masks" / "train" / "2.png"
    sound = path.read_bytes()
    for mask, words in (
        (Image.new("L", (96, 95)), "is 96 x 95 pixels, its image 96 x 96"),
        (Image.new("L", (96, 96), 3), "has the index 3; with 3 classes it may be 0 to 2, or 255"),
        (Image.new("RGB", (96, 96)), "a mask in colours"),
    ):
        mask.save(path)
        with pytest.raises(DataError, match=words) as caught:
            load_semantic(data)
        assert "2.png" in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(sound[:60])
    with pytest.raises(DataError, match="damaged image"):
        load_semantic(data)


def test_bad_folders_are_one_clear_line(data: Path) -> None:
    (data / "classes.txt").write_text("a\nb\na\n")
    with pytest.raises(DataError, match="names a twice"):
        load_semantic(data)
    (data / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"has no readable classes\.txt"):
        load_semantic(data)
    (data / "classes.txt").write_text("a\nb\nc\n")
    shutil.rmtree(data / "masks" / "val")
    with pytest.raises(DataError, match="no folders of images and masks for val"):
        load_semantic(data)
