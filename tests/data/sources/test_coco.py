"""COCO annotations: what is read, what is a problem, and what is an error before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iformer.data.detection import decode_mask
from iformer.data.sources.coco import load_detection
from iformer.errors import DataError

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def data(shapes_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_data, tmp_path / "data"))


def change(data: Path, edit: Change, part: str = "train") -> Path:
    path = data / "annotations" / f"instances_{part}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def first(content: dict[str, Any]) -> dict[str, Any]:
    annotation: dict[str, Any] = content["annotations"][0]
    return annotation


def test_what_is_read(shapes_data: Path) -> None:
    split = load_detection(shapes_data)
    assert split.warnings == ()
    assert split.train.class_names == ("disc", "square")
    assert split.train.category_ids == (7, 8)
    assert [len(sample.instances) for sample in split.train.samples] == [1, 2, 3, 1, 2, 3, 1, 0]
    assert split.train.has_masks
    for sample in split.train.samples:
        for instance in sample.instances:
            assert instance.mask is not None
            mask_HW = decode_mask(instance.mask, sample.height, sample.width)
            rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
            box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
            assert instance.box == box
            assert instance.area == mask_HW.sum()


def test_polygon_and_run_lengths_of_one_rectangle_are_the_same(data: Path) -> None:
    size = json.loads((data / "annotations" / "instances_train.json").read_text())["images"][0]["height"]

    def as_polygon(content: dict[str, Any]) -> None:
        first(content).update(bbox=[10, 20, 30, 40], segmentation=[[10, 20, 40, 20, 40, 60, 10, 60]])

    def as_runs(content: dict[str, Any]) -> None:
        runs = [10 * size + 20, 40]
        for _ in range(29):
            runs += [size - 40, 40]
        first(content)["segmentation"] = {"size": [size, size], "counts": [*runs, size * size - sum(runs)]}

    masks = []
    for edit in (as_polygon, as_runs):
        change(data, edit)
        instance = load_detection(data).train.samples[0].instances[0]
        assert instance.mask is not None
        masks.append(decode_mask(instance.mask, size, size))
    assert masks[1].sum() == 30 * 40
    assert np.array_equal(*masks)


@pytest.mark.parametrize("layout", ["coco", "plain", "roboflow"])
def test_layouts(data: Path, layout: str) -> None:
    if layout == "coco":
        for part in ("train", "val"):
            (data / "images" / part).rename(data / f"{part}2017")
            (data / "annotations" / f"instances_{part}.json").rename(
                data / "annotations" / f"instances_{part}2017.json"
            )
    elif layout == "plain":
        for part in ("train", "val"):
            (data / "annotations" / f"instances_{part}.json").rename(data / f"{part}.json")
    else:
        for part, name in (("train", "train"), ("val", "valid")):
            (data / "images" / part).rename(data / name)
            (data / "annotations" / f"instances_{part}.json").rename(data / name / "_annotations.coco.json")
    assert len(load_detection(data).train) == 8


def test_objects_that_cannot_be_used_are_told_and_left_out(data: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        one, two, three, four = content["annotations"][:4]
        one["bbox"] = [10, 10, 0, 5]
        two["bbox"] = [500, 10, 10, 5]
        three["bbox"] = [80, 80, 40, 10]
        four["iscrowd"] = 1

    change(data, edit)
    (data / "images" / "train" / "5.png").unlink()
    (data / "images" / "train" / "6.png").write_bytes(b"no image")
    split = load_detection(data)
    text = "\n".join(split.warnings)
    for words in ("has no area; left out", "outside its image", "clipped", "5.png: no such file", "6.png"):
        assert words in text
    assert len(split.warnings) == 5
    assert len(split.train) == 6
    instances = [instance for sample in split.train.samples for instance in sample.instances]
    assert instances[0].box == (80, 80, 16, 10)
    assert instances[1].crowd
    assert sum(split.train.class_counts.values()) == len(instances) - 1
    with pytest.raises(DataError, match="5 warnings"):
        load_detection(data, strict=True)


def test_fingerprint_is_of_the_objects(data: Path) -> None:
    before = load_detection(data).train.fingerprint()
    assert load_detection(data).train.fingerprint() == before
    change(data, lambda content: first(content).update(category_id=15 - first(content)["category_id"]))
    assert load_detection(data).train.fingerprint() != before


def without(key: str) -> Change:
    return lambda content: content.pop(key)


BAD: dict[str, tuple[Change, str]] = {
    "no images": (without("images"), "not a COCO annotation file: it has no list 'images'"),
    "no categories": (without("categories"), "no list 'categories'"),
    "unknown image": (lambda c: first(c).update(image_id=9999), "image_id 9999 is the id of no image"),
    "unknown category": (lambda c: first(c).update(category_id=3), "category_id 3 is the id of no category"),
    "no box": (lambda c: first(c).pop("bbox"), "annotation 1 has no bbox"),
    "a box of text": (lambda c: first(c).update(bbox=["1", 2, 3, 4]), "expected .left, top, width, height"),
    "a mask of another size": (
        lambda c: first(c).update(segmentation={"size": [50, 60], "counts": [3000]}),
        "its mask is 60 x 50 pixels, its image 96 x 96",
    ),
    "runs that do not add up": (
        lambda c: first(c).update(segmentation={"size": [96, 96], "counts": [5]}),
        "do not add up",
    ),
    "damaged run lengths": (
        lambda c: first(c).update(segmentation={"size": [96, 96], "counts": "ab"}),
        "the run lengths of its mask are damaged",
    ),
    "run lengths that are no text": (
        lambda c: first(c).update(segmentation={"size": [96, 96], "counts": "\u00e9"}),
        "the run lengths of its mask are damaged",
    ),
    "an id that is a list": (lambda c: first(c).update(image_id=[1]), "image_id .1. is the id of no image"),
    "half a polygon": (lambda c: first(c).update(segmentation=[[1, 2, 3, 4, 5]]), "neither polygons"),
    "two images of one id": (lambda c: c["images"].append(c["images"][0]), "two of its image entries"),
    "an image of another size": (
        lambda c: [c["images"][7].update(width=97)],
        "is 96 x 96 pixels, its annotations are for 97 x 96",
    ),
    "an image without height": (lambda c: c["images"][0].pop("height"), "image number 0 has no height"),
    "two categories of one name": (lambda c: c["categories"][0].update(name="square"), "each named once"),
    "other categories": (lambda c: c["categories"][0].update(name="ring"), "differ .only in training: ring"),
    "no object": (lambda c: c["annotations"].clear(), "no object to train on"),
    "no such images": (
        lambda c: [image.update(file_name="x" + image["file_name"]) for image in c["images"]],
        "none of its first images .x0.png",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_annotations_are_one_clear_line(data: Path, case: str) -> None:
    edit, words = BAD[case]
    change(data, edit)
    with pytest.raises(DataError, match=words) as caught:
        load_detection(data)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json(data: Path, tmp_path: Path) -> None:
    path = data / "annotations" / "instances_train.json"
    path.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        load_detection(data)
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match="not a COCO annotation file"):
        load_detection(data)
    path.unlink()
    with pytest.raises(DataError, match="no annotation file for train"):
        load_detection(data)
    with pytest.raises(DataError, match="no such folder"):
        load_detection(tmp_path / "nothing")


def test_images_lie_as_the_camera_held_them(data: Path) -> None:
    """A photograph that its EXIF turns is as large as it is after turning."""
    path = data / "images" / "train" / "0.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).resize((48, 96)).save(path, exif=exif)
    change(data, lambda content: content["images"][0].update(width=96, height=48))
    change(data, lambda content: content["annotations"].pop(0))
    assert load_detection(data).train.samples[0].height == 48
