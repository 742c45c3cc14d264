"""Image folders: images, labels, errors, warnings and splits."""

from __future__ import annotations

import os
import random
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from iformer.data.sources import elpv as elpv_source
from iformer.data.sources import load_data
from iformer.data.sources.checks import CheckedImages, check_images
from iformer.data.sources.folders import load_folder
from iformer.data.sources.layout import writable
from iformer.data.sources.splitting import split_stratified
from iformer.errors import ConfigError, DataError
from tiny.classification import write_in_two_classes


def write_image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    return path


def write_classes(root: Path, *, start: int = 0, **counts: int) -> Path:
    """Folders of different images, `write_classes(root, cat=3, dog=2)`."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write_image(root / name / f"img{index + 1}.png", start + 1000 * number + index)
    return root


def names(image_set: object) -> list[str]:
    return [image_set.relative_path(sample) for sample in image_set.samples]  # type: ignore[attr-defined]


@pytest.mark.parametrize("splits", ["inside", "outside", "none"])
@pytest.mark.parametrize("masks", ["masks", "labels", "Annotations"])
def test_images_and_their_annotations_are_no_classes(tmp_path: Path, masks: str, splits: str) -> None:
    """A data set for segmentation would be learned as two classes, without a mistake."""
    folders = {"inside": ("{}/train", "{}/val"), "outside": ("train/{}", "val/{}"), "none": ("{}",)}[splits]
    for number, folder in enumerate(folders):
        for other, name in enumerate(("images", masks)):
            write_image(tmp_path / folder.format(name) / "1.png", 2 * number + other)
            write_image(tmp_path / folder.format(name) / "2.png", 10 + 2 * number + other)
    (tmp_path / "classes.txt").write_text("background\nobject\n")
    with pytest.raises(DataError, match=rf"images/.*{masks}/|{masks}/.*images/.*give --task segment for masks"):
        load_data(tmp_path)
    with pytest.raises(DataError, match="give --task segment for masks"):
        load_data(tmp_path, for_training=False)


def test_train_and_val_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=3, dog=2)
    write_classes(tmp_path / "val", start=100, cat=1, dog=2)
    data = load_data(tmp_path)
    assert data.train.class_names == data.val.class_names == ("cat", "dog")
    assert data.train.class_counts == {"cat": 3, "dog": 2}
    assert data.val.class_counts == {"cat": 1, "dog": 2}
    assert names(data.val) == ["val/cat/img1.png", "val/dog/img1.png", "val/dog/img2.png"]
    assert data.warnings == ()
    assert "img1.png" not in repr(data)  # a data set prints in one line, however many images it has


@pytest.mark.parametrize("name", ["valid", "validation", "test", "Val"])
def test_other_names_of_the_validation_part(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "train", a=2, b=2)
    write_classes(tmp_path / name, start=100, a=1, b=1)
    assert len(load_data(tmp_path).val) == 2


@pytest.mark.parametrize("inside", ["", "train"])
def test_split_of_a_single_root(tmp_path: Path, inside: str) -> None:
    write_classes(tmp_path / inside, cat=10, dog=2, emu=5)
    data = load_data(tmp_path, val_split=0.2)
    assert data.train.class_counts == {"cat": 8, "dog": 1, "emu": 4}
    assert data.val.class_counts == {"cat": 2, "dog": 1, "emu": 1}
    assert data.val.name.endswith("val")
    assert not set(names(data.train)) & set(names(data.val))


def test_split_depends_on_seed_and_names_only(tmp_path: Path) -> None:
    write_classes(tmp_path / "here", cat=20, dog=20)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = load_data(tmp_path / "here"), load_data(tmp_path / "there")
    assert names(here.val) == names(there.val)
    assert here.train.fingerprint() == there.train.fingerprint() != here.val.fingerprint()
    assert names(load_data(tmp_path / "here", seed=1).val) != names(here.val)


def test_fingerprint_sees_sizes_and_class_names(tmp_path: Path) -> None:
    data = load_data(write_classes(tmp_path, cat=3, dog=3))
    before = data.train.fingerprint()
    with data.train.samples[0].path.open("ab") as file:
        file.write(b"!")
    assert data.train.fingerprint() != before
    assert data.train.subset([0]).fingerprint() != data.train.subset([1]).fingerprint()


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_classes(tmp_path, car=2, train=2)
    assert load_data(tmp_path).train.class_names == ("car", "train")


def test_natural_order_nesting_hidden_files_and_links(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_classes(root, class10=2, class2=2, Class1=2)
    write_image(root / "class2" / "deeper" / "x.PNG", 50)
    write_image(root / "class2" / ".hidden.png", 51)
    write_image(root / ".cache" / "x.png", 52)
    (root / "class2" / "Thumbs.db").write_text("x")
    write_image(tmp_path / "elsewhere" / "y.jpeg", 53)
    (root / "class10" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "class10" / "loop").symlink_to(root / "class10", target_is_directory=True)
    data = load_data(root)
    assert data.train.class_names == ("Class1", "class2", "class10")
    found = sorted(names(data.train) + names(data.val))
    assert found == sorted(
        [f"{folder}/img{i}.png" for folder in ("Class1", "class2", "class10") for i in (1, 2)]
        + ["class2/deeper/x.PNG", "class10/linked/y.jpeg"]
    )
    assert data.warnings == ()


def test_files_in_natural_order(tmp_path: Path) -> None:
    data = load_data(write_classes(tmp_path, a=12, b=3), val_split=0.1)
    numbers = [int(Path(name).stem[3:]) for name in names(data.train) if name.startswith("a/")]
    assert numbers == sorted(numbers)


def test_broken_files_are_named_and_skipped(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=4, dog=4)
    (tmp_path / "cat" / "empty.jpg").write_bytes(b"")
    (tmp_path / "cat" / "text.png").write_text("hello")
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    (tmp_path / "dog" / "half.png").write_bytes(write_image(tmp_path / "x.png", 9).read_bytes()[:150])
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "README.md").write_text("about")
    data = load_data(tmp_path)
    assert len(data.train) + len(data.val) == 8
    text = "\n".join(data.warnings)
    assert len(data.warnings) == 6
    for name in ("empty.jpg", "text.png", "notes.txt", "half.png", "gone.png", "x.png"):
        assert name in text
    with pytest.raises(DataError) as caught:
        load_data(tmp_path, strict=True)
    assert "6 warnings with the data" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "half.png" in str(caught.value)


def test_progress_counts_up(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_data(write_classes(tmp_path, a=3, b=2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]


def error(root: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        load_folder(root, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_empty_and_flat_folders(tmp_path: Path) -> None:
    assert "no such folder" in error(tmp_path / "missing")
    write_image(tmp_path / "file.png")
    assert "not a folder" in error(tmp_path / "file.png")
    assert "one sub-folder per class" in error(tmp_path)
    assert "1 image but no class folder" in error(tmp_path)
    (tmp_path / "void").mkdir()
    assert "empty" in error(tmp_path / "void")


def test_class_folders_without_images_are_named(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=2, dog=0, emu=0, fox=2)
    message = error(tmp_path)
    assert "dog, emu" in message
    assert "fox" not in message
    (tmp_path / "dog" / "bad.jpg").write_bytes(b"")
    (tmp_path / "emu" / "bad.jpg").write_bytes(b"nonsense")
    assert "no image can be read in the class folders dog, emu" in error(tmp_path)


def test_only_one_class(tmp_path: Path) -> None:
    assert "only one class (cat)" in error(write_classes(tmp_path, cat=5))


def test_one_image_cannot_be_split(tmp_path: Path) -> None:
    assert "folder dog" in error(write_classes(tmp_path, cat=5, dog=1))


def test_class_lists_that_differ(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=2, dog=2, emu=2)
    write_classes(tmp_path / "val", cat=2, dog=2, gnu=2, owl=2)
    message = error(tmp_path)
    assert "only in train/: emu" in message
    assert "only in val/: gnu, owl" in message


def test_parts_without_class_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.png")
    write_image(tmp_path / "val" / "b.png")
    assert "train/, val/ look like splits, but hold no class folders" in error(tmp_path)
    write_classes(tmp_path / "train", a=2, b=2)
    assert f"{tmp_path / 'val'}: 1 image but no class folder" in error(tmp_path)


def test_validation_without_training(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", cat=2, dog=2)
    assert "no train/" in error(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_split_out_of_range(tmp_path: Path, share: float) -> None:
    with pytest.raises(ConfigError, match="val_split"):
        load_data(tmp_path, val_split=share)


def test_the_same_image_on_both_sides_is_a_warning(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=2, dog=2)
    write_classes(tmp_path / "val", start=100, cat=2, dog=2)
    shutil.copy(tmp_path / "train" / "cat" / "img1.png", tmp_path / "val" / "cat" / "same.png")
    data = load_data(tmp_path, strict=True)
    assert len(data.warnings) == 1
    assert "1 validation image also among the training images" in data.warnings[0]
    assert "same.png" in data.warnings[0]


def write_picture(path: Path, number: int, size: tuple[int, int] = (80, 72), **options: object) -> Path:
    """A picture with shapes on it, the same for the same number."""
    generator = random.Random(number)

    def colour() -> tuple[int, int, int]:
        return generator.randrange(256), generator.randrange(256), generator.randrange(256)

    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", size, colour())
    draw = ImageDraw.Draw(picture)
    for _ in range(5):
        x, y = generator.randrange(size[0]), generator.randrange(size[1])
        draw.rectangle((x, y, x + 14, y + 14), fill=colour())
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(("extension", "options"), [("png", {}), ("jpg", {"quality": 75}), ("webp", {})])
def test_a_copy_that_was_saved_again_is_found(tmp_path: Path, extension: str, options: dict[str, object]) -> None:
    for split, start in (("train", 0), ("val", 50)):
        for number in range(20):
            name = ("cat", "dog")[number % 2]
            write_picture(tmp_path / split / name / f"{number}.jpg", start + number, (200, 160), quality=95)
    with Image.open(tmp_path / "train" / "cat" / "4.jpg") as picture:
        picture.save(tmp_path / "val" / "cat" / f"again.{extension}", **options)
        picture.resize((100, 80)).save(tmp_path / "val" / "cat" / "smaller.png")
    data = load_data(tmp_path)
    assert len(data.warnings) == 1
    assert "2 validation images also among the training images" in data.warnings[0]
    for name in (f"again.{extension}", "smaller.png"):
        assert f"{tmp_path / 'val' / 'cat' / name} = {tmp_path / 'train' / 'cat' / '4.jpg'}" in data.warnings[0]


def test_a_picture_under_two_labels_is_found(tmp_path: Path) -> None:
    for number in range(20):
        write_picture(tmp_path / ("cat", "dog")[number % 2] / f"{number}.jpg", number)
    shutil.copy(tmp_path / "cat" / "0.jpg", tmp_path / "dog" / "copy.jpg")
    with Image.open(tmp_path / "cat" / "2.jpg") as picture:
        picture.save(tmp_path / "dog" / "again.png")
    warnings = [line for line in load_data(tmp_path).warnings if "another label" in line]
    assert len(warnings) == 1
    assert "2 images also under another label, so one of the labels is wrong" in warnings[0]
    for copy, original in (("copy.jpg", "0.jpg"), ("again.png", "2.jpg")):
        assert f"{tmp_path / 'dog' / copy} = {tmp_path / 'cat' / original}" in warnings[0] or (
            f"{tmp_path / 'cat' / original} = {tmp_path / 'dog' / copy}" in warnings[0]
        )


def test_pictures_that_are_only_alike_are_no_copies(tmp_path: Path) -> None:
    """The same shape at another place or in another colour, plain areas, noise."""
    for number in range(12):
        picture = Image.new("L", (28, 28))
        ImageDraw.Draw(picture).line((14, 4, 12 + number % 5, 24), fill=255, width=2 + number // 5)
        path = tmp_path / ("one", "other")[number % 2] / f"stroke{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
        Image.new("RGB", (30, 30), (20 * number, 9, 9)).save(path.with_name(f"plain{number}.png"))
        square = Image.new("RGB", (40, 40), (90, 90, 90))
        square.paste((200, 20 * number, 60), (10, 10, 30, 30))
        square.save(path.with_name(f"square{number}.png"))
    assert load_data(tmp_path).warnings == ()


def test_runs_inside_the_data_are_no_classes(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=5, dog=5)
    before = load_data(tmp_path).train.fingerprint()
    for run, marker in (("runs/a", "log.jsonl"), ("runs/deeper/b", "last.safetensors"), ("single", "log.jsonl")):
        write_image(tmp_path / run / "figures" / "curves.png", 77)
        (tmp_path / run / marker).write_text("")
    write_image(tmp_path / "cat" / "predicted" / "predict.png", 78)
    (tmp_path / "cat" / "predicted" / "predictions.jsonl").write_text("")
    data = load_data(tmp_path, strict=True)
    assert data.train.class_names == ("cat", "dog")
    assert data.train.fingerprint() == before
    assert len(data.warnings) == 2
    for name in ("runs", "single"):
        assert any(f"{tmp_path / name}: " in line and "not read as a class" in line for line in data.warnings)


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("training_set", "test_set"),
        ("seg_train", "seg_test"),
        ("TrainImages", "ValImages"),
        ("train-data", "hold_out"),
        ("Training", "Testing"),
        ("trainset", "devset"),
        ("animals_train", "animals_validation"),
        ("train2017", "val2017"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_splits_under_other_names(tmp_path: Path, train: str, val: str, nested: bool) -> None:
    write_classes(tmp_path / train / (train if nested else ""), cats=3, dogs=3)
    write_classes(tmp_path / val / (val if nested else ""), start=100, cats=1, dogs=1)
    write_image(tmp_path / "seg_pred" / "1.png", 9)
    data = load_data(tmp_path)
    assert data.train.class_counts == {"cats": 3, "dogs": 3}
    assert data.val.class_counts == {"cats": 1, "dogs": 1}


@pytest.mark.parametrize("names", [("first", "second"), ("fold_0", "fold_1", "fold_2"), ("amazon", "webcam")])
def test_splits_under_unknown_names_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        write_classes(tmp_path / name, start=100 * number, cats=3, dogs=3, emus=1)
    message = error(tmp_path)
    assert "contain the same sub-folders (cats, dogs, emus)" in message
    assert "name them train and val" in message
    (tmp_path / "classes.txt").write_text("\n".join(names))  # the way out, for classes with such sub-folders
    assert load_data(tmp_path).train.class_names == names


def test_classes_may_have_words_of_splits_in_their_names(tmp_path: Path) -> None:
    write_classes(tmp_path, test_tube=2, train_station=2, validator=2)
    assert load_data(tmp_path).train.class_names == ("test_tube", "train_station", "validator")


def test_two_training_splits_are_refused(tmp_path: Path) -> None:
    for name in ("cats_train", "dogs_train", "cats_test", "dogs_test"):
        write_classes(tmp_path / name, a=2, b=2)
    assert "cats_train/, dogs_train/ all look like the training split" in error(tmp_path)


def test_a_test_set_without_labels_is_not_used(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=5, dog=5)
    write_image(tmp_path / "test" / "1.png", 99)
    data = load_data(tmp_path)
    assert (len(data.train), len(data.val)) == (8, 2)
    assert data.warnings == (f"{tmp_path / 'test'}: holds no class folders, so it is not used",)


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information", "#recycle", "__MACOSX", ".Trash-1000"],
)
def test_system_folders_are_ignored(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path, cat=3, dog=3)
    write_image(tmp_path / name / "cat_1.jpg" / "THUMB_M.jpg", 7)
    write_image(tmp_path / "cat" / name / "img1.png" / "THUMB_M.jpg", 8)
    data = load_data(tmp_path, strict=True)
    assert data.train.class_names == ("cat", "dog")
    assert len(data.train) + len(data.val) == 6
    assert data.warnings == ()


def test_links_back_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_classes(root, cat=3, dog=3)
    for link, target in (
        ("cat/all", root),
        ("cat/above", tmp_path),
        ("cat/dogs", root / "dog"),
        ("copy", root / "cat"),
    ):
        (root / link).symlink_to(target, target_is_directory=True)
    write_image(tmp_path / "other" / "x.png", 55)
    for link in ("dog/once", "dog/twice"):
        (root / link).symlink_to(tmp_path / "other", target_is_directory=True)
    data = load_data(root)
    counts = {name: data.train.class_counts[name] + data.val.class_counts[name] for name in data.train.class_names}
    assert counts == {"cat": 3, "dog": 4}
    assert data.warnings == (f"{root / 'copy'}: a link back into the data, so it is not read as a class",)


def test_class_names_that_look_the_same_are_explained(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_classes(tmp_path / "one", **{composed: 2, decomposed: 2})
    if len(list((tmp_path / "one").iterdir())) == 1:
        pytest.skip("this file system knows one form only")
    message = error(tmp_path / "one")
    assert "two classes of the same name; " in message
    assert r" is written in two Unicode forms ('cafe\u0301' and 'caf\xe9')" in message
    write_classes(tmp_path / "two" / "train", **{composed: 2, "tea": 2})
    write_classes(tmp_path / "two" / "val", start=50, **{decomposed: 2, "tea": 2})
    message = error(tmp_path / "two")
    assert "only in train/: café; only in val/: cafe\u0301" in message
    assert "is written in two Unicode forms" in message


def test_class_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    write_classes(tmp_path, cat=3)
    for name in (b"chien_\xe9t\xe9", b"two\nlines"):
        os.rename(write_classes(tmp_path / "x", x=3) / "x", os.fsencode(tmp_path) + b"/" + name)
    (tmp_path / "x").rmdir()
    data = load_data(tmp_path)
    assert data.train.class_names == ("cat", r"chien_\xe9t\xe9", r"two\nlines")


def test_a_class_name_is_the_same_in_every_locale() -> None:
    assert writable("犬".encode().decode("ascii", "surrogateescape")) == "犬"  # as LC_ALL=C lists a folder
    assert writable("犬") == "犬"
    assert writable("chien_\udce9t\udce9") == r"chien_\xe9t\xe9"


def test_twelve_bits_among_sixteen_are_noted(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    limits = (4096, 2**16, 2**16, 4096, 2**16, 2**16)
    write_in_two_classes(tmp_path, (generator.integers(0, limit, (20, 20), np.uint16) for limit in limits))
    (warning,) = load_data(tmp_path).warnings
    assert "2 of 6 16-bit images with values up to 4,0" in warning
    assert "scale them to 16 bits" in warning


def test_twelve_bits_in_sixteen_are_noted(tmp_path: Path) -> None:
    write_in_two_classes(tmp_path, np.random.default_rng(0).integers(0, 4096, (8, 20, 20), np.uint16))
    (warning,) = load_data(tmp_path).warnings
    assert "8 16-bit images with values up to 4,0" in warning
    assert "12-bit data" in warning
    assert "unless the setting value_range, such as [0, 4095], says" in warning


@pytest.mark.parametrize("layout", ["test", "val", "Test_Set"])
def test_a_test_set_alone_can_be_evaluated(tmp_path: Path, layout: str) -> None:
    write_classes(tmp_path / layout, cat=4, dog=1)
    assert f"has {layout}/ but no train/" in error(tmp_path)
    data = load_data(tmp_path, for_training=False)
    assert (len(data.train), data.val.class_counts) == (0, {"cat": 4, "dog": 1})


def test_some_classes_can_be_evaluated(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", cat=5)
    data = load_data(tmp_path / "one", for_training=False)
    assert (len(data.train), len(data.val)) == (4, 1)
    write_classes(tmp_path / "single", cat=5, dog=1, emu=0)
    data = load_data(tmp_path / "single", for_training=False)
    assert data.train.class_counts == {"cat": 4, "dog": 1, "emu": 0}
    write_classes(tmp_path / "two" / "train", cat=2, dog=2)
    write_classes(tmp_path / "two" / "val", start=50, dog=2, emu=1)
    data = load_data(tmp_path / "two", for_training=False)
    assert data.train.class_names == data.val.class_names == ("cat", "dog", "emu")
    assert data.val.class_counts == {"cat": 0, "dog": 2, "emu": 1}
    assert data.val.labels.tolist() == [1, 1, 2]


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, cat=2, dog=2)
    real = os.scandir

    # Tests may run as root, who may read everything.
    def scandir(path: os.PathLike[str]) -> object:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert "Permission denied" in error(tmp_path)


def test_interrupt_stops_checking(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{i}.png", i) for i in range(5)]

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_images(paths, progress=interrupt)


@pytest.mark.parametrize("decode", [False, pytest.param(True, marks=pytest.mark.sweep)])
def test_elpv_is_split_by_probability_and_module(monkeypatch: pytest.MonkeyPatch, decode: bool) -> None:
    """Its images are all looked at, which is slow, in the sweep only."""
    elpv = pytest.importorskip("elpv_dataset")
    looked_at: list[list[Path]] = []
    if not decode:

        def look(paths: list[Path], **_options: object) -> CheckedImages:
            looked_at.append(paths)
            return check_images([])

        monkeypatch.setattr(elpv_source, "check_images", look)
    data = load_data("elpv", seed=5)
    assert decode or [len(paths) for paths in looked_at] == [2624]
    assert data.train.class_names == ("functional", "defective")
    assert (len(data.train), len(data.val)) == (1968, 656)
    assert data.warnings == ()
    lines = (Path(elpv.__file__).parent / "data" / "labels.csv").read_text().splitlines()
    rows = {fields[0]: fields[1:] for fields in (line.split() for line in lines)}
    strata = Counter(tuple(row) for row in rows.values())
    for split, share in ((data.train, 0.75), (data.val, 0.25)):
        counts = Counter(tuple(rows[name]) for name in names(split))
        for stratum, total in strata.items():
            assert abs(counts[stratum] - share * total) < 1
        for name, sample in zip(names(split), split.samples, strict=True):
            assert sample.label == (float(rows[name][0]) >= 0.5)
    assert not set(names(data.train)) & set(names(data.val))
    assert names(load_data("elpv", seed=0).val) == names(data.val)


@settings(max_examples=60)
@given(
    strata=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
@example(strata=[0] * 12 + [1] * 4, share=0.21875, seed=0)
def test_splits_are_stratified_partitions(strata: list[int], share: float, seed: int) -> None:
    items = [f"{i}.png" for i in range(len(strata))]
    first, second = split_stratified(items, strata, val_share=share, seed=seed)
    assert sorted(first + second) == list(range(len(items)))
    assert first == sorted(first)
    assert second == sorted(second)
    counts, chosen = Counter(strata), Counter(strata[i] for i in second)
    for stratum, count in counts.items():
        assert chosen[stratum] == 0 if count == 1 else 1 <= chosen[stratum] <= count - 1
        assert abs(chosen[stratum] - count * share) < 1 or chosen[stratum] in (0, 1, count - 1)
    assert (first, second) == split_stratified(items, strata, val_share=share, seed=seed)


@settings(max_examples=30)
@given(order=st.permutations(range(20)))
def test_splits_do_not_depend_on_the_order_of_the_files(order: list[int]) -> None:
    items = [f"{i}.png" for i in range(20)]
    _, plain = split_stratified(items, [i % 2 for i in range(20)], val_share=0.3, seed=0)
    _, mixed = split_stratified([items[i] for i in order], [i % 2 for i in order], val_share=0.3, seed=0)
    assert {order[i] for i in mixed} == set(plain)
