"""The formats of object labels: the same data is the same training set in each, and conversion keeps it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from iformer.cli.main import main
from iformer.data.detection import DetectionSet, Instance, decode_mask
from iformer.data.sources import label_conversion
from iformer.data.sources.detection import load_detection
from iformer.data.sources.label_conversion import convert_labels
from iformer.errors import ConfigError, DataError, UserError
from iformer.tasks.detection.evaluate import evaluate_data
from iformer.tasks.interface import EvaluateOptions
from tiny.dense import light_detector
from tiny.labels import MAKERS, make_coco, make_labelme, make_voc, make_yolo

Images = dict[str, tuple[int, int, list[Instance]]]


def images_of(image_set: DetectionSet) -> Images:
    """Size and objects of each image by its name."""
    return {s.path.name: (s.width, s.height, list(s.instances)) for s in image_set.samples}


def assert_same(one: DetectionSet, other: DetectionSet, *, masks: bool = True) -> None:
    """Compare class names, images, and each object's label, box, area and mask."""
    assert one.class_names == other.class_names
    ours, theirs = images_of(one), images_of(other)
    assert ours.keys() == theirs.keys()
    for name, (width, height, objects) in ours.items():
        assert theirs[name][:2] == (width, height)
        assert len(theirs[name][2]) == len(objects)
        for a, b in zip(objects, theirs[name][2], strict=True):
            assert (a.label, a.crowd) == (b.label, b.crowd)
            assert a.box == pytest.approx(b.box, abs=1e-6)
            if masks:
                assert a.area == pytest.approx(b.area, abs=1e-3)
                assert a.mask is not None
                assert b.mask is not None
                assert np.array_equal(decode_mask(a.mask, height, width), decode_mask(b.mask, height, width))


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("labels") / "coco")


@pytest.mark.parametrize("form", ["yolo", "voc", "labelme"])
def test_the_same_data_in_each_format_is_the_same_training_set(form: str, coco: Path, tmp_path: Path) -> None:
    expected, found = load_detection(coco, workers=1), load_detection(MAKERS[form](tmp_path / "data"), workers=1)
    assert found.warnings == ()
    assert sum(expected.train.class_counts.values()) == 5
    for split in ("train", "val"):
        assert_same(getattr(expected, split), getattr(found, split), masks=form != "voc")
    assert found.train.has_masks == (form != "voc")


@pytest.mark.parametrize("form", MAKERS)
@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_conversion_changes_nothing(
    form: str, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_detection(MAKERS[form](tmp_path / "data"), workers=1)
    assert main(["convert", str(tmp_path / "data"), str(tmp_path / "out"), "--to", to, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == {"train": 4, "val": 3}
    assert said["notes"] == []
    after = load_detection(tmp_path / "out", workers=1)
    convert_labels(tmp_path / "out", tmp_path / "back", to="coco", workers=1)
    back = load_detection(tmp_path / "back", workers=1)
    for split in ("train", "val"):
        assert_same(getattr(before, split), getattr(after, split), masks=form != "voc")
        assert_same(getattr(before, split), getattr(back, split), masks=form != "voc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "data", "out"]


def test_coco_keeps_ids_run_lengths_and_crowds_and_yolo_names_what_it_loses(
    shapes_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(shapes_data, tmp_path / "data"))
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][1]["bbox"][0] -= 200  # outside: left out
    path.write_text(json.dumps(content))
    before = load_detection(data, workers=1).train
    done = convert_labels(data, tmp_path / "coco", to="coco", workers=1)
    assert "outside its image" in done.notes[0]
    after = load_detection(tmp_path / "coco", workers=1, strict=True).train
    assert (after.class_names, after.category_ids) == (before.class_names, before.category_ids)
    assert [sample[1:] for sample in after.samples] == [sample[1:] for sample in before.samples]
    done = convert_labels(data, tmp_path / "yolo", to="yolo", workers=1)
    written = sum(not instance.crowd for sample in before.samples for instance in sample.instances)
    assert (done.objects["train"], done.left_out) == (written, 1)
    lines = [line for file in (tmp_path / "yolo/labels/train").iterdir() for line in file.read_text().splitlines()]
    assert len(lines) == written
    assert done.notes[0].startswith("1 crowd region (objects marked iscrowd or difficult) left out")
    assert main(["convert", str(data), str(tmp_path / "again"), "--to", "yolo"]) == 0
    assert f"{sum(done.objects.values())} objects (1 left out), " in capsys.readouterr().out
    assert any("masks became boxes" in note for note in done.notes)
    boxes = [i.box for s in load_detection(tmp_path / "yolo", workers=1).train.samples for i in s.instances]
    expected = [i.box for s in before.samples for i in s.instances if not i.crowd]
    assert np.allclose(boxes, expected, atol=1e-6)


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_splits_with_other_categories_are_refused_as_in_training(to: Any, coco: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = content["categories"][0]["name"].upper()
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError, match=r"categories of training and validation differ .*; give both the same"
    ) as one:
        load_detection(data)
    with pytest.raises(DataError) as other:
        convert_labels(data, tmp_path / "out", to=to)
    assert str(other.value) == str(one.value)
    assert not (tmp_path / "out").exists()
    load_detection(data, for_training=False)  # evaluation takes one of the splits


def test_boxes_of_any_floats_survive_conversion(coco: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    generator = np.random.default_rng(0)
    for path in (data / "annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation.pop("segmentation")
            annotation["bbox"] = [float(value) for value in generator.uniform(0.1, 30, 4)]
        path.write_text(json.dumps(content))
    before = load_detection(data, workers=1)
    for to in ("coco", "yolo"):
        convert_labels(data, tmp_path / to, to=to, workers=1)  # type: ignore[arg-type]
        after = load_detection(tmp_path / to, workers=1)
        for split in ("train", "val"):
            assert_same(getattr(before, split), getattr(after, split), masks=False)


def test_the_smallest_boxes_survive_conversion(coco: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    for path in (data / "annotations").iterdir():
        content = json.loads(path.read_text())
        for number, annotation in enumerate(content["annotations"]):
            annotation.pop("segmentation")
            annotation["bbox"] = [[0, 1.7, 0.01, 0.01], [21.3, 0, 0.010000001, 9]][number % 2]
        path.write_text(json.dumps(content))
    before = load_detection(data, workers=1, for_training=False)
    assert sum(len(sample.instances) for sample in before.train.samples) > 3
    convert_labels(data, tmp_path / "out", to="yolo", workers=1)
    for split in ("train", "val"):
        after = getattr(load_detection(tmp_path / "out", workers=1), split)
        assert_same(getattr(before, split), after, masks=False)


@pytest.mark.parametrize("empty", ["train", "val"])
@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_a_split_without_objects_is_converted(empty: str, to: str, coco: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    path = data / "annotations" / f"instances_{empty}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    done = convert_labels(data, tmp_path / "out", to=to, workers=1)  # type: ignore[arg-type]
    assert done.objects[empty] == 0
    assert sum(done.objects.values()) > 0
    for folder in (data, tmp_path / "out"):
        with pytest.raises(DataError, match=r"no object to (train on|validate with)"):
            load_detection(folder, workers=1)
    options = EvaluateOptions(device=torch.device("cpu"), split=empty)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"no object to evaluate with in the {empty} split"):
        evaluate_data(light_detector(), str(data), options)


def test_names_that_lead_out_of_the_data_stay_inside_the_result(coco: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(coco, tmp_path / "deep" / "er" / "data"))
    path = data / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    outside = tmp_path / "deep" / "val-0.png"
    (data / "images" / "val" / "val-0.png").rename(outside)
    content["images"][0]["file_name"] = "../../../../val-0.png"
    path.write_text(json.dumps(content))
    before = load_detection(data, workers=1)
    assert len(before.val) == 3
    notes = convert_labels(data, tmp_path / "out", to="yolo", workers=1).notes
    assert any(
        note.startswith("1 image from outside of the data's folder") and note.endswith("val-0.png")
        for note in notes
    )
    assert {p.name for p in (tmp_path / "out" / "images" / "val").rglob("*.png")} == images_of(before.val).keys()
    assert_same(before.val, load_detection(tmp_path / "out", workers=1).val)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "out"]
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["er", "val-0.png"]


def test_options_of_weights_are_not_for_labels(coco: Path, tmp_path: Path) -> None:
    assert main(["convert", str(coco), str(tmp_path / "out"), "--to", "coco", "--half"]) == 2
    assert main(["convert", "elpv", str(tmp_path / "out"), "--to", "timm", "--val-split", "0.2"]) == 2
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_fails_leaves_nothing(coco: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="is not an empty folder"):
        convert_labels(coco, tmp_path / "full", to="yolo")

    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # fails inside of the first image, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*out: File too large"):
            convert_labels(coco, tmp_path / "out", to="yolo")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize("change", ["emptied", "replaced", "removed", "a folder"])
def test_the_source_of_an_image_that_changes_meanwhile_is_named(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_coco(tmp_path / "coco")
    copy = shutil.copyfile

    def copyfile(source: Path, target: Path) -> None:
        if change in ("removed", "a folder"):
            source.unlink()
        if change == "a folder":
            source.mkdir()
        elif change != "removed":
            source.write_bytes(b"" if change == "emptied" else b"no image")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(DataError) as raised:
        convert_labels(data, tmp_path / "out", to="coco", workers=1)
    assert str(raised.value).startswith(str(tmp_path / "coco"))
    assert ".part" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["coco"]


# ---------------------------------------------------------------------------------------------- layouts


def test_yolo_names_as_numbers_lists_of_images_and_roots_elsewhere(tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "data")
    expected = load_detection(data, workers=1)
    names = "names:\n  0: cat\n  1: dog\n"
    for split in ("train", "val"):
        lines = [f"./images/{split}/{path.name}" for path in sorted((data / "images" / split).iterdir())]
        (data / f"{split}.txt").write_text("\n".join(lines) + "\n")
    for text in (
        f"path: {data}\ntrain: images/train\nval: images/val\n",
        "path: ../datasets/elsewhere\ntrain: train.txt\nval: val.txt\n",
        "train: ../images/train\nval: ../images/val\n",
        "train: [images/train]\ntest: images/val\n",
    ):
        (data / "data.yaml").write_text(text + names)
        for spec in (data, data / "data.yaml"):
            found = load_detection(spec, workers=1)
            assert_same(expected.train, found.train)
            assert_same(expected.val, found.val)


def test_label_studios_yolo_folder_is_split_here(tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "data")
    (data / "data.yaml").unlink()
    (data / "classes.txt").write_text("cat\ndog\n")
    for kind in ("images", "labels"):
        for path in list((data / kind).rglob("*.*")):
            path.rename(data / kind / path.name)
        for split in ("train", "val"):
            (data / kind / split).rmdir()
    found = load_detection(data, workers=1, val_split=0.3)
    assert (len(found.train), len(found.val), found.split_off) == (5, 2, True)
    assert "is not split: 2 of 7 images are for validation" in found.warnings[-1]
    again = load_detection(data, workers=1, val_split=0.3)
    assert again.val.fingerprint() == found.val.fingerprint()


@pytest.mark.parametrize("split", [True, False])
def test_a_folder_with_a_list_of_classes_may_be_relative(
    split: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_yolo(tmp_path / "data")
    expected = load_detection(data, workers=1)
    (data / "data.yaml").unlink()
    (data / "classes.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    if not split:
        shutil.rmtree(data / "images" / "val")
        shutil.rmtree(data / "labels" / "val")
        (data / "images" / "train").rename(data / "images" / "all")
        (data / "labels" / "train").rename(data / "labels" / "all")
    found = load_detection("data", workers=1)
    assert found.split_off is not split
    if split:
        assert_same(expected.train, found.train)
        assert_same(expected.val, found.val)


def beside_the_images(data: Path) -> Path:
    """Move YOLO's labels beside the images, into `train/` and `val/`."""
    (data / "data.yaml").unlink()
    for path in [*data.glob("labels/*/*.txt"), *data.glob("images/*/*.png")]:
        folder = data / path.parent.name
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    shutil.rmtree(data / "labels")
    shutil.rmtree(data / "images")
    return data


@pytest.mark.parametrize(
    "tool", ["labelImg", "labelImg, labels apart", "CVAT", "CVAT, not split", "Roboflow", "one folder"]
)
def test_labels_beside_images_and_a_list_of_classes(tool: str, tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "data")
    expected = load_detection(data, workers=1)
    names = "cat\ndog\n"
    if tool == "labelImg, labels apart":
        (data / "data.yaml").unlink()
        (data / "labels" / "classes.txt").write_text(names)
        found = load_detection(data, workers=1)
        assert_same(expected.train, found.train)
        assert_same(expected.val, found.val)
        assert found.warnings == expected.warnings
        return
    beside_the_images(data)
    if tool == "labelImg":
        (data / "train" / "classes.txt").write_text(names)
        (data / "val" / "classes.txt").write_text(names)
    elif tool.startswith("CVAT"):
        (data / "obj.names").write_text(names)
        (data / "obj.data").write_text(
            "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
        )
        for split in ("train", "val"):
            (data / split).rename(data / f"obj_{split}_data")
            lines = [
                f"data/obj_{split}_data/{path.name}\n" for path in sorted(data.glob(f"obj_{split}_data/*.png"))
            ]
            (data / f"{split}.txt").write_text("".join(lines))
        if tool == "CVAT, not split":
            (data / "val.txt").unlink()
            assert len(load_detection(data, val_split=0.25, workers=1).train) == 3
            return
    elif tool == "Roboflow":
        (data / "val").rename(data / "valid")
        for split in ("train", "valid"):
            (data / split / "_darknet.labels").write_text(names)
    else:
        (data / "classes.txt").write_text(names)
        for path in [*data.glob("train/*"), *data.glob("val/*")]:
            path.rename(data / path.name)
        for split in ("train", "val"):
            (data / split).rmdir()
        found = load_detection(data, workers=1, val_split=0.3)
        assert (len(found.train), len(found.val), found.split_off) == (5, 2, True)
        return
    found = load_detection(data, workers=1)
    assert_same(expected.train, found.train)
    assert_same(expected.val, found.val)


def test_lists_of_classes_that_differ_are_refused(tmp_path: Path) -> None:
    """labelImg numbers classes as they first occur, in each folder anew."""
    data = beside_the_images(make_yolo(tmp_path / "data"))
    (data / "train" / "classes.txt").write_text("cat\ndog\n")
    (data / "val" / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match=r"train/classes\.txt and .*val/classes\.txt differ"):
        load_detection(data, workers=1)


def test_labels_without_names_of_classes_are_one_clear_line(tmp_path: Path) -> None:
    data = beside_the_images(make_yolo(tmp_path / "data"))
    with pytest.raises(DataError, match=r"nothing names the classes; expected classes\.txt there"):
        load_detection(data, workers=1)


def test_two_images_with_one_file_of_labels_are_named(tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "data")
    Image.new("RGB", (64, 48)).save(data / "images" / "train" / "train-0.JPG")
    assert (
        f"{data / 'labels' / 'train' / 'train-0.txt'}: belongs to 2 images, which differ only in their ending"
        in (load_detection(data, workers=1).warnings)
    )


@pytest.mark.parametrize("form", ["voc", "labelme"])
def test_images_without_labels_and_copied_labels_are_named(form: str, tmp_path: Path) -> None:
    data = MAKERS[form](tmp_path / "data")
    first = next(path for path in data.rglob("train-0.*") if path.suffix != ".png")
    image = next(data.rglob("train-0.png"))
    if (data / "ImageSets").is_dir():
        shutil.rmtree(data / "ImageSets")
    for name in ("extra.png", "copied.png"):
        shutil.copy(image, image.with_name(name))
    shutil.copy(first, first.with_stem("copied"))
    found = load_detection(data, workers=1, val_split=0.3 if form == "voc" else None)
    copied = first.with_stem("copied")
    assert f"{copied}: is taken as the labels of train-0.png, which it names, not of copied.png" in found.warnings
    names = ", ".join(str(image.with_name(name).relative_to(data)) for name in ("copied.png", "extra.png"))
    assert f"{data}: 2 images without a file of labels left out: {names}" in found.warnings


def test_images_beside_the_data_are_listed_by_their_relative_paths(tmp_path: Path) -> None:
    data = make_labelme(tmp_path / "set" / "annotations")
    (tmp_path / "set" / "images").mkdir()
    for split in ("train", "val"):
        (tmp_path / "set" / "images" / split).mkdir()
        for path in (data / split).glob("*.png"):
            path.rename(tmp_path / "set" / "images" / split / path.name)
    shutil.copy(
        tmp_path / "set" / "images" / "train" / "train-0.png", tmp_path / "set" / "images" / "train" / "x.png"
    )
    assert f"{data}: 1 image without a file of labels left out: ../images/train/x.png" in (
        load_detection(data, workers=1).warnings
    )


def test_labels_of_the_stored_pixels_of_a_turned_image(tmp_path: Path) -> None:
    data = make_labelme(tmp_path / "data")
    path = data / "train" / "train-0.png"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(path).save(path, exif=exif)
    with pytest.raises(DataError, match=r"are for 64 x 48, without its EXIF orientation; remove that"):
        load_detection(data, workers=1)


def test_a_packed_data_set_is_one_clear_line(tmp_path: Path) -> None:
    path = shutil.make_archive(str(tmp_path / "data"), "zip", make_yolo(tmp_path / "folder"))
    with pytest.raises(DataError, match=r"data\.zip: not a folder; unpack it"):
        load_detection(path)


@pytest.mark.parametrize("layout", ["cvat", "label studio", "a file"])
def test_exports_of_one_coco_file(layout: str, tmp_path: Path) -> None:
    data = make_coco(tmp_path / "data")
    (data / "annotations" / "instances_val.json").unlink()
    train = data / "annotations" / "instances_train.json"
    content = json.loads(train.read_text())
    spec = data
    if layout == "label studio":
        for image in content["images"]:
            image["file_name"] = f"..\\..\\label-studio\\media\\upload\\1\\{image['file_name']}"
        for path in (data / "images" / "train").iterdir():
            path.rename(data / "images" / path.name)
        (data / "result.json").write_text(json.dumps(content))
        train.unlink()
    elif layout == "cvat":
        (data / "images" / "train").rename(data / "images" / "default")
        train.rename(train.with_name("instances_default.json"))
    else:
        train = train.rename(data / "everything.json")
        (data / "images" / "train").rename(data / "everything")
        spec = train
    found = load_detection(spec, workers=1, val_split=0.25)
    assert (len(found.train), len(found.val)) == (3, 1)
    assert sum(found.train.class_counts.values()) + sum(found.val.class_counts.values()) == 5


def test_val_split_where_it_has_no_place(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"val_split is 0.2, and .* has validation images; leave it out"):
        load_detection(coco, val_split=0.2)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        load_detection(coco, val_split=1.5)
    data = Path(shutil.copytree(coco, tmp_path / "data"))
    (data / "annotations" / "instances_val.json").unlink()
    with pytest.raises(DataError, match=r"no annotation file for val; --val-split 0.2 takes a fifth of train"):
        load_detection(data)
    assert len(load_detection(data, val_split=0.25, workers=1).val) == 1


@pytest.mark.parametrize("difficult", ["1", "True", "1.0"])
def test_voc_beside_the_images_from_zero_and_difficult(difficult: str, tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    expected = load_detection(data, workers=1)
    for split in ("train", "val"):
        (data / split).mkdir()
        for path in [*data.glob(f"Annotations/{split}-*"), *data.glob(f"JPEGImages/{split}-*")]:
            path.rename(data / split / path.name)
    for folder in ("Annotations", "JPEGImages", "ImageSets"):
        shutil.rmtree(data / folder)
    assert_same(expected.train, load_detection(data, workers=1).train, masks=False)
    path = data / "train" / "train-0.xml"
    text = path.read_text().replace("<difficult>0", f"<difficult>{difficult}", 1)
    path.write_text(text.replace("<xmin>4<", "<xmin>0<"))
    found = load_detection(data, workers=1)
    assert "boxes begin at 0, where Pascal VOC begins at 1" in found.warnings[0]
    first, second = next(s for s in found.train.samples if s.path.stem == "train-0").instances
    assert (first.crowd, second.crowd) == (True, False)
    assert first.box == (0, 6, 23, 17)


def test_rotated_boxes_of_voc(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    expected = load_detection(data, workers=1).train
    path = data / "Annotations" / "train-0.xml"
    rotation = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    path.write_text(path.read_text().replace("<bndbox>", f"{rotation}<bndbox>", 1))
    found = load_detection(data, workers=1).train
    assert (
        "train-0.xml, object 1: its box is rotated by 90 degrees; the upright box around it" in found.warnings[0]
    )
    before, after = (
        next(s for s in one.samples if s.path.stem == "train-0").instances[0] for one in (expected, found)
    )
    left, top, width, height = before.box
    x, y = left + width / 2 - height / 2, top + height / 2 - width / 2
    inside = (max(x, 0), max(y, 0), min(x + height, 64), min(y + width, 48))
    assert after.box == pytest.approx((inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]))


def test_labelme_rectangles_groups_and_other_shapes(tmp_path: Path) -> None:
    data = make_labelme(tmp_path / "data")
    path = data / "train" / "train-0.json"
    content = json.loads(path.read_text())
    content["imagePath"] = "C:\\photos\\train-0.png"
    triangle, hexagon = content["shapes"]
    triangle["group_id"] = hexagon["group_id"] = 3
    triangle["label"] = hexagon["label"]
    content["shapes"].append({"label": "line", "points": [[1, 2], [3, 4]], "shape_type": "line"})
    path.write_text(json.dumps(content))
    (data / "notes.json").write_text("{}")
    found = load_detection(data, workers=1)
    assert found.warnings == (f"{path}, shape 3: is a line; expected a rectangle or a polygon; left out",)
    sample = next(s for s in found.train.samples if s.path.stem == "train-0")
    (merged,) = sample.instances
    assert merged.box == (3, 5, 60, 43)
    content["shapes"] = [{"label": "cat", "points": [[30, 40], [10, 20]], "shape_type": "rectangle"}]
    path.write_text(json.dumps(content))
    (one,) = next(s for s in load_detection(data, workers=1).train.samples if s.path.stem == "train-0").instances
    assert (one.box, one.mask) == ((10, 20, 20, 20), None)


# ---------------------------------------------------------------------------------------------- what is wrong


def labels(data: Path, text: str) -> None:
    (data / "labels" / "train" / "train-0.txt").write_text(text)


def settings(data: Path, text: str) -> None:
    (data / "data.yaml").write_text(text)


BAD_YOLO: dict[str, tuple[Callable[[Path], None], str]] = {
    "a class that is none": (
        lambda d: labels(d, "2 .5 .5 .1 .1"),
        "line 1: has the class 2; the classes are 0 to 1",
    ),
    "pixels": (lambda d: labels(d, "1 30 20 10 10"), "line 1: has the coordinate 30; expected shares"),
    "text": (lambda d: labels(d, "1 .5 .5 x .1"), "line 1: could not convert string"),
    "not finite": (lambda d: labels(d, "1 .5 .5 nan .1"), "is not a finite number"),
    "Python's digits": (lambda d: labels(d, "1 .5 .5 1_0e-1 .1"), "'1_0e-1' is no number"),
    "other digits": (lambda d: labels(d, "1 .5 .5 .1 \u0660.\u0665"), "is no number"),
    "a score": (lambda d: labels(d, "1 .5 .5 .1 .1 .9"), "line 1: has 6 values; expected a line CLASS X Y"),
    "no UTF-8": (lambda d: d.joinpath("labels/train/train-0.txt").write_bytes(b"\xff"), "is not text in UTF-8"),
    "no names": (lambda d: settings(d, "train: images/train\nnames: 3"), "expected a list of names"),
    "names that YAML changes": (
        lambda d: settings(d, "train: images/train\nnames: [yes, no]"),
        "have True, which is not text; put names in quotes",
    ),
    "numbers that are none": (
        lambda d: settings(d, "train: images/train\nnames: {true: cat, 0: dog}"),
        "expected 0, 1, 2 and so on",
    ),
    "names with a gap": (
        lambda d: settings(d, "train: images/train\nnames: {0: cat, 2: dog}"),
        "expected 0, 1, 2 and so on",
    ),
    "another number of classes": (
        lambda d: settings(d, "train: images/train\nnc: 3\nnames: [cat, dog]"),
        "has 2 names, but nc is 3",
    ),
    "no such folder": (
        lambda d: settings(d, "train: x/train\nval: images/val\nnames: [cat, dog]"),
        "its train is x/train; no such folder or list of images",
    ),
    "no labels": (lambda d: shutil.rmtree(d / "labels" / "val"), "no file of labels for val, such as"),
    "no validation": (
        lambda d: settings(d, "train: images/train\nnames: [cat, dog]"),
        "no annotation file for val; --val-split 0.2",
    ),
}


@pytest.mark.parametrize("case", BAD_YOLO)
def test_bad_yolo_labels_are_one_clear_line(case: str, tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "data")
    edit, words = BAD_YOLO[case]
    edit(data)
    with pytest.raises(DataError, match=words) as caught:
        load_detection(data, workers=1)
    assert "\n" not in str(caught.value)


ENTITY = '<!DOCTYPE a [<!ENTITY b "cccc"><!ENTITY d "&b;&b;&b;">]>\n'
BAD_VOC: dict[str, tuple[Callable[[str], str], str]] = {
    "entities": (lambda text: ENTITY + text.replace("cat", "&d;"), "declares a document type"),
    "entities in UTF-16": (lambda text: ENTITY + text, "declares a document type"),
    "cut off": (lambda text: text[:-20], "is not XML"),
    "deep": (lambda text: "<a>" * 10_000, "nested more than 32 levels"),
    "another tree": (lambda text: "<html></html>", "begins with <html>; expected <annotation>"),
    "no box": (lambda text: text.replace("bndbox", "box"), "object 1: has no bndbox with xmin"),
    "a box of text": (lambda text: text.replace("<xmax>", "<xmax>a"), "object 1: could not convert"),
    "no name": (lambda text: text.replace("<name>cat</name>", ""), "object 1: has no name"),
    "difficult": (lambda text: text.replace("<difficult>0", "<difficult>2"), "has <difficult>2; expected 0 or 1"),
    "another size": (lambda text: text.replace("<width>64", "<width>65"), "its annotations are for 65 x 48"),
    "a size of text": (lambda text: text.replace("<width>64", "<width>x"), "has a size that is none"),
}


@pytest.mark.parametrize("case", BAD_VOC)
def test_bad_voc_files_are_one_clear_line(case: str, tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    path = data / "Annotations" / "train-0.xml"
    edit, words = BAD_VOC[case]
    path.write_text(edit(path.read_text()), encoding="utf-16" if "UTF-16" in case else "utf-8")
    with pytest.raises(DataError, match=words) as caught:
        load_detection(data, workers=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"label": "cat", "points": [[1, 2]], "shape_type": "rectangle"}, "a rectangle of 1 point;"),
        ({"label": "cat", "points": [[1, 2], [3, 4]], "shape_type": "polygon"}, "a polygon of 2 points"),
        (
            {"label": "cat", "points": [[1], [3, 4], [5, 6]], "shape_type": "polygon"},
            "has the point .1.; expected",
        ),
        ({"label": "cat", "points": [[1, float("inf")], [3, 4], [5, 6]]}, "is not a finite number"),
        ({"label": "cat", "points": 7}, "has no list of points"),
        ({"points": [[1, 2]]}, "has no label"),
        (7, "has no label"),
    ],
)
def test_bad_labelme_shapes_are_one_clear_line(shape: object, words: str, tmp_path: Path) -> None:
    data = make_labelme(tmp_path / "data")
    path = data / "train" / "train-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shapes": [shape]}))
    with pytest.raises(DataError, match=f"train-1.json, shape 1: .*{words}"):
        load_detection(data, workers=1)


@pytest.mark.parametrize("form", MAKERS)
def test_images_in_both_splits_boxes_off_the_image_and_classes_without_objects(form: str, tmp_path: Path) -> None:
    data = MAKERS[form](tmp_path / "data")
    images = {path.name: path for path in data.rglob("*.png")}
    with Image.open(images["train-0.png"]) as picture:
        picture.save(images["val-0.png"])
    for path in [*data.rglob("*-*.xml"), *data.rglob("*-*.json"), *data.rglob("*.txt")]:
        if path.name.startswith("train-") and form != "coco":
            path.write_text(path.read_text().replace("cat", "dog") if form != "yolo" else "1 .5 .5 1.2 .1\n")
    if form == "coco":
        path = data / "annotations" / "instances_train.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            annotation["category_id"] = 2
        content["annotations"][0]["bbox"] = [-30, 0, 50, 20]
        path.write_text(json.dumps(content))
    warnings = load_detection(data, workers=1).warnings
    assert any("1 validation image also among the training images" in line for line in warnings)
    assert any("no object of cat to learn from" in line for line in warnings)
    if form in ("coco", "yolo"):
        assert any("extends beyond its image" in line and "clipped" in line for line in warnings)


@pytest.mark.parametrize("form", MAKERS)
def test_missing_images_are_named(form: str, tmp_path: Path) -> None:
    data = MAKERS[form](tmp_path / "data")
    (image,) = data.rglob("train-1.png")
    image.unlink()
    found = load_detection(data, workers=1)
    assert len(found.train) == 3
    (warning,) = found.warnings
    assert warning == (
        f"{data}/labels/train/train-1.txt: has no image" if form == "yolo" else f"{image}: no such file"
    )


def test_a_size_that_no_image_has_is_an_error(tmp_path: Path) -> None:
    data = make_labelme(tmp_path / "data")
    path = data / "train" / "train-0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "imageWidth": 10**25}))
    with pytest.raises(DataError, match="too many"):
        load_detection(data, workers=1)


def test_a_folder_of_no_known_format_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match=r"expected COCO .* YOLO .* Pascal VOC .* or LabelMe"):
        load_detection(tmp_path / "data")
    (tmp_path / "data" / "a.json").write_text('{"images": [], "annotations": []}')
    (tmp_path / "data" / "b.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match=r"has a\.json, b\.json; give one of them as --data"):
        load_detection(tmp_path / "data")


def test_reasons_are_given_where_no_object_is_left(tmp_path: Path) -> None:
    data = make_labelme(tmp_path / "data")
    for path in data.rglob("*.json"):
        content = json.loads(path.read_text())
        content["shapes"] = [{"label": "cat", "points": [[1, 1], [5, 5]], "shape_type": "circle"}]
        path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no object of a class can be read \(.*circle"):
        load_detection(data)


def test_lists_of_pascal_voc_may_have_spaces_quotes_and_marks(tmp_path: Path) -> None:
    data = make_voc(tmp_path / "data")
    expected = [image.path.name for image in load_detection(data, workers=1).train.samples]
    for path in (*data.rglob("train-0.*"), *data.rglob("train-1.*")):
        path.rename(path.with_name(f"my {path.name}"))
    for path in data.rglob("my *.xml"):
        path.write_text(path.read_text().replace("<filename>", "<filename>my "))
    lines = ['"my train-0"', "my train-1", "train-2  1", "train-3\t-1"]
    (data / "ImageSets" / "Main" / "train.txt").write_text("\n".join(lines))
    found = [image.path.name for image in load_detection(data, workers=1).train.samples]
    assert [name.removeprefix("my ") for name in found] == expected


def test_lists_of_yolo_may_have_backslashes_and_detours(tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "data")
    expected = load_detection(data, workers=1)
    names = sorted(path.name for path in (data / "images/train").iterdir())
    (data / "train.txt").write_text("\n".join(f"images\\val\\..\\train\\{name}" for name in names))
    settings = data / "data.yaml"
    settings.write_text(settings.read_text().replace("train: images/train", "train: train.txt"))
    found = load_detection(data, workers=1)
    assert [sample.path for sample in found.train.samples] == [sample.path for sample in expected.train.samples]
    assert found.warnings == expected.warnings


def test_lists_of_cvat_begin_with_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    data = make_yolo(tmp_path / "exported")
    expected = [sample.path for sample in load_detection(data, workers=1).train.samples]
    (data / "train.txt").write_text("\n".join(f"data/{path.relative_to(data)}" for path in expected))
    settings = data / "data.yaml"
    settings.write_text(settings.read_text().replace("train: images/train", "train: train.txt"))
    assert [sample.path for sample in load_detection(data, workers=1).train.samples] == expected


def test_class_names_in_two_forms_are_one_clear_line(tmp_path: Path) -> None:
    data = make_labelme(tmp_path / "labelme")
    labelled = [path for path in sorted((data / "train").glob("*.json")) if "cat" in path.read_text()]
    for path, name in zip(labelled[:2], ("caf\u00e9", "cafe\u0301"), strict=True):
        path.write_text(path.read_text().replace("cat", name))
    with pytest.raises(DataError, match="is written in two Unicode forms"):
        load_detection(data, workers=1)
    data = make_coco(tmp_path / "coco")
    for path in data.rglob("*.json"):
        path.write_text(path.read_text().replace('"cat"', '"cat "'))
    assert load_detection(data, workers=1).train.class_names == ("cat", "dog")


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_conversion_names_images_so_that_every_reader_lists_them(to: Any, tmp_path: Path) -> None:
    data = make_coco(tmp_path / "data")
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for image, name in zip(content["images"], ("0001", ".cache/1.png", "b.png ", "__MACOSX/2.png"), strict=False):
        (data / "images/train" / name).parent.mkdir(exist_ok=True)
        (data / "images/train" / image["file_name"]).rename(data / "images/train" / name)
        image["file_name"] = name
    content["categories"][0]["name"] = "c\ufffet"
    val = data / "annotations" / "instances_val.json"
    val.write_text(json.dumps({**json.loads(val.read_text()), "categories": content["categories"]}))
    path.write_text(json.dumps(content))
    before = load_detection(data, workers=1)
    convert_labels(data, tmp_path / "out", to=to, workers=1)
    after = load_detection(tmp_path / "out", workers=1)
    assert after.train.class_names == before.train.class_names
    assert len(after.train) == len(before.train)
    assert after.train.class_counts == before.train.class_counts


def test_an_empty_working_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_coco(tmp_path / "data")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    convert_labels(data, ".", to="yolo", workers=1)
    assert sorted(entry.name for entry in Path.cwd().iterdir()) == ["data.yaml", "images", "labels"]
    assert_same(load_detection(data, workers=1).train, load_detection(Path.cwd(), workers=1).train, masks=True)


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_coco(tmp_path / "data")
    monkeypatch.setattr(label_conversion, "_compare", raise_data_error)
    with pytest.raises(DataError, match="not the same"):
        convert_labels(data, tmp_path / "a" / "b" / "out", to="coco", workers=1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


def raise_data_error(*arguments: Any, **options: Any) -> None:
    raise DataError("not the same")
