"""COCO annotations: what is read, what is a warning and what is an error."""

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
from iformer.data.sources.detection import load_detection
from iformer.errors import DataError

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def data(shapes_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shapes_data, tmp_path / "data"))


def change(data: Path, edit: Change, split: str = "train") -> Path:
    path = data / "annotations" / f"instances_{split}.json"
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
        for split in ("train", "val"):
            (data / "images" / split).rename(data / f"{split}2017")
            (data / "annotations" / f"instances_{split}.json").rename(
                data / "annotations" / f"instances_{split}2017.json"
            )
    elif layout == "plain":
        for split in ("train", "val"):
            (data / "annotations" / f"instances_{split}.json").rename(data / f"{split}.json")
    else:
        for split, name in (("train", "train"), ("val", "valid")):
            (data / "images" / split).rename(data / name)
            (data / "annotations" / f"instances_{split}.json").rename(data / name / "_annotations.coco.json")
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
        "has a mask of 60 x 50 pixels; its image has 96 x 96",
    ),
    "runs that do not add up": (
        lambda c: first(c).update(segmentation={"size": [96, 96], "counts": [5]}),
        "do not add up",
    ),
    "damaged run lengths": (
        lambda c: first(c).update(segmentation={"size": [96, 96], "counts": "ab"}),
        "has damaged run lengths",
    ),
    "run lengths that are no text": (
        lambda c: first(c).update(segmentation={"size": [96, 96], "counts": "\u00e9"}),
        "has damaged run lengths",
    ),
    "an id that is a list": (lambda c: first(c).update(image_id=[1]), "image_id .1. is the id of no image"),
    "a segmentation of text": (lambda c: first(c).update(segmentation="x"), "neither polygons nor run lengths"),
    "a huge number": (lambda c: first(c).update(bbox=[1, 2, 10**400, 3]), "expected .left, top, width, height"),
    "a huge area": (lambda c: first(c).update(area=10**400), "expected a number of pixels"),
    "a huge id": (lambda c: c["images"][0].update(id=10**400), "image number 0 has the id 1000.*whole number"),
    "huge run lengths": (
        lambda c: first(c).update(segmentation={"size": [200_000, 200_000], "counts": [4 * 10**10]}),
        "has a mask of 200000 x 200000 pixels; its image has 96 x 96",
    ),
    "a huge image": (
        lambda c: c["images"][0].update(width=200_000, height=200_000),
        "image 100 has 200000 x 200000 pixels; the limit is 178,956,970",
    ),
    "a side that is infinite": (
        lambda c: c["images"][0].update(width=1e999),
        "has the width inf; expected pixels",
    ),
    "a name that is a number": (
        lambda c: c["images"][0].update(file_name=5),
        "has the file_name 5; expected a path",
    ),
    "a category without text": (
        lambda c: c["categories"][0].update(name=None),
        "has the name None; expected text",
    ),
    "an unknown iscrowd": (lambda c: first(c).update(iscrowd="maybe"), "has the iscrowd 'maybe'; expected 0 or 1"),
    "shares of the image": (
        lambda c: [a.update(bbox=[value / 96 for value in a["bbox"]]) for a in c["annotations"]],
        "look like shares of the image; expected pixels",
    ),
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
        "its first images, such as x0.png",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_annotations_are_one_clear_line(data: Path, case: str) -> None:
    edit, words = BAD[case]
    change(data, edit)
    with pytest.raises(DataError, match=words) as caught:
        load_detection(data)
    assert "\n" not in str(caught.value)


def test_all_errors_are_reported_at_once(data: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        one, two, three = content["annotations"][:3]
        one.update(bbox=None)
        two.update(category_id=77)
        three.update(image_id=4711)

    for split in ("train", "val"):
        change(data, edit, split)
    with pytest.raises(DataError) as caught:
        load_detection(data)
    for words in ("has the bbox None", "category_id 77 is", "image_id 4711 is"):
        assert str(caught.value).count(words) == 2


def test_sound_polygons_are_used_and_bad_ones_are_named(data: Path) -> None:
    polygons = {
        0: [[10, 10, 30, 10, 30, 30], [60.0, 48.0]],
        1: [[10, 10, 30, 10, 30, 30], [1, 2, 3, 4, 5]],
        2: [[10, 10, 30, 10, 30, 30], [0, 0, 1e9, 0, 1e9, 1e9]],
        3: [[10, 10, 30, 10, 30, 30], [0, 0, 900, 900] * 10_000],
        4: [[]],
        5: [[1, 2, float("nan"), 4, 5, 6]],
    }

    def edit(content: dict[str, Any]) -> None:
        for number, polygon in polygons.items():
            content["annotations"][number]["segmentation"] = polygon

    total = len(json.loads(change(data, edit).read_text())["annotations"])
    train = load_detection(data).train
    assert train.has_masks
    assert sum(train.class_counts.values()) == total - 2
    text = "\n".join(train.warnings)
    for number in range(1, 5):
        assert f"annotation {number}: 1 of its 2 polygons not used; expected 3 or more points each" in text
    for number in (5, 6):
        assert f"annotation {number}: has no sound polygon, while other objects have masks; left out" in text


def test_empty_polygons_in_a_set_without_masks(data: Path) -> None:
    for split in ("train", "val"):
        change(data, lambda c: [a.update(segmentation=[[]]) for a in c["annotations"]], split)
    train = load_detection(data).train
    assert not train.has_masks
    assert sum(train.class_counts.values()) == 13


@pytest.mark.parametrize(
    "box", [[95.9999999, 40.0, 25.0, 20.0], [61.3, 40.0, 1e-6, 20.0], [10, 95.999, 5, 0.5], [1, 1, 0.001, 5]]
)
def test_boxes_without_area_in_float32_are_left_out(data: Path, box: list[float]) -> None:
    change(data, lambda content: first(content).update(bbox=box))
    train = load_detection(data).train
    assert sum(train.class_counts.values()) == 12
    assert "annotation 1: its box" in train.warnings[0]
    assert "has no area" in train.warnings[0]


def test_negative_areas_are_those_of_the_boxes(data: Path) -> None:
    change(data, lambda c: first(c).update(area=-400))
    found = load_detection(data)
    assert "annotation 1: its area -400 is negative; its box's is taken" in found.train.warnings[0]
    instance = found.train.samples[0].instances[0]
    assert instance.area == pytest.approx(instance.box[2] * instance.box[3])


@pytest.mark.parametrize("degrees", [90, 450.0, -30])
def test_rotated_boxes_of_cvat_become_the_upright_boxes_around_them(data: Path, degrees: float) -> None:
    box = [30.0, 40.0, 20.0, 10.0]
    change(data, lambda c: first(c).update(bbox=box, segmentation=[], attributes={"rotation": degrees}))
    for annotation in json.loads((data / "annotations" / "instances_train.json").read_text())["annotations"][1:]:
        assert annotation["bbox"] != box
    change(data, lambda c: [annotation.update(segmentation=[]) for annotation in c["annotations"]])
    train = load_detection(data).train
    assert f"annotation 1: its box is rotated by {degrees:g} degrees; the upright box" in train.warnings[0]
    corners = np.array([[-10, -5], [10, -5], [10, 5], [-10, 5]]) @ _rotation(degrees) + (40, 45)
    expected = (*corners.min(0), *(corners.max(0) - corners.min(0)))
    assert train.samples[0].instances[0].box == pytest.approx(expected, abs=1e-5)


def _rotation(degrees: float) -> np.ndarray:
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cosine, -sine], [sine, cosine]])


def test_a_rotation_that_is_no_number(data: Path) -> None:
    change(data, lambda c: first(c).update(segmentation=[], attributes={"rotation": "much"}))
    with pytest.raises(DataError, match="annotation 1 has the rotation 'much'; expected a number of degrees"):
        load_detection(data)


def test_objects_that_stand_twice_are_named_and_kept(data: Path) -> None:
    change(data, lambda c: c["annotations"].append({**first(c), "id": 10**6}))
    train = load_detection(data).train
    assert "1 object with the class and box of another object of the same image" in train.warnings[0]
    assert sum(train.class_counts.values()) == 14


def test_image_files_that_are_listed_twice_are_named(data: Path) -> None:
    def repeat(content: dict[str, Any]) -> None:
        content["images"].append({**content["images"][0], "id": 10**6})

    change(data, repeat)
    (one,) = (note for note in load_detection(data).warnings if "listed more than once" in note)
    assert "1 image file listed more than once" in one

    def take(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "../train/0.png"

    change(data, take, "val")
    notes = load_detection(data).warnings
    assert any("1 validation image also among the training images" in note for note in notes)


@pytest.mark.parametrize("order", [0, 9])
def test_group_categories_are_left_out_with_a_note(data: Path, order: int) -> None:
    """Roboflow writes the project as a category without objects, sometimes with the name of a class."""

    def edit(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["supercategory"] = "shapes"
        content["categories"] += [
            {"id": order, "name": "disc", "supercategory": "none"},
            {"id": order + 1, "name": "shapes", "supercategory": "none"},
        ]

    for split in ("train", "val"):
        change(data, edit, split)
    splits = load_detection(data, strict=True)
    assert splits.train.class_names == splits.val.class_names == ("disc", "square")
    assert splits.train.category_ids == (7, 8)
    assert splits.warnings == (
        f"category {order} (disc) is a group without objects; left out",
        f"category {order + 1} (shapes) is a group without objects; left out",
    )


def test_classes_without_objects_are_named(data: Path) -> None:
    for split in ("train", "val"):
        change(data, lambda c: c["categories"].append({"id": 20, "name": "ring"}), split)
    splits = load_detection(data)
    assert splits.train.class_names == ("disc", "square", "ring")
    assert splits.warnings == (
        f"{data / 'annotations' / 'instances_train.json'}: no object of ring to learn from",
    )


@pytest.mark.parametrize(("value", "crowd"), [("0", False), ("1", True), (True, True), (0.0, False), (1, True)])
def test_crowds_are_numbers_or_text(data: Path, value: object, crowd: bool) -> None:
    if isinstance(value, float):
        value = int(value)
    change(data, lambda content: first(content).update(iscrowd=value))
    assert load_detection(data).train.samples[0].instances[0].crowd is crowd


def test_files_as_windows_and_macos_write_them(data: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "sub\\café.png"
        content["images"][1].update(width=96.0, height=96.0)

    path = change(data, edit)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    folder = data / "images" / "train"
    (folder / "sub").mkdir()
    (folder / "0.png").rename(folder / "sub" / "cafe\u0301.png")
    splits = load_detection(data)
    assert splits.warnings == ()
    assert splits.train.samples[0].path.parent == folder / "sub"


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "../" * 2000 + "x"])
def test_names_that_no_file_can_have_are_missing_files(data: Path, name: str) -> None:
    change(data, lambda content: content["images"][3].update(file_name=name))
    splits = load_detection(data)
    assert len(splits.train) == 7
    assert "cannot be read" in splits.warnings[0]


def test_a_test_set_alone_can_be_evaluated(data: Path) -> None:
    (data / "annotations" / "instances_train.json").unlink()
    with pytest.raises(DataError, match="no annotation file for train"):
        load_detection(data)
    splits = load_detection(data, for_training=False)
    assert (len(splits.train), len(splits.val)) == (0, 4)
    assert splits.train.class_names == splits.val.class_names


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
