"""Zip archives of images, read in place."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from iformer.config.preprocessing import Preprocessing
from iformer.data.images import read_image
from iformer.data.samples import ImageSet
from iformer.data.sources import load_data
from iformer.data.sources.splitting import split_fold
from iformer.data.transforms import eval_transform
from iformer.errors import DataError
from iformer.tasks.classification.dataset import ImageDataset
from tiny.classification import make_images


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("photographs"), 4)


def packed(folder: Path, archive: Path, prefix: str = "", below: str = "") -> Path:
    """A zip archive of the files below a folder."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted((folder / below).rglob("*.png")):
            file.writestr(prefix + path.relative_to(folder / below).as_posix(), path.read_bytes())
    return archive


def names(images: ImageSet) -> list[tuple[str, str]]:
    return sorted((images.class_names[s.label], s.name) for s in images.samples)


@pytest.mark.parametrize("prefix", ["", "./", "photos/", "a/b/"])
def test_the_same_images_as_the_folder(photographs: Path, tmp_path: Path, prefix: str) -> None:
    found = load_data(packed(photographs, tmp_path / "photos.zip", prefix))
    folder = load_data(photographs)
    assert found.train.class_names == folder.train.class_names
    assert names(found.train) == names(folder.train)
    assert names(found.val) == names(folder.val)
    assert not found.split_off
    for one, other in zip(found.val.samples, folder.val.samples, strict=True):
        assert one.read() == other.read()
        assert one.size() == other.size()
    assert [path.name for path in tmp_path.iterdir()] == ["photos.zip"], "nothing is unpacked"


def test_class_folders_are_split(photographs: Path, tmp_path: Path) -> None:
    archive = packed(photographs, tmp_path / "photos.ZIP", "photos/", below="train")
    data = load_data(archive, val_split=0.25)
    assert data.split_off
    assert data.val.class_counts == {"blue": 1, "green": 1, "red": 1}
    assert data.train.fingerprint() == load_data(archive, val_split=0.25).train.fingerprint()
    folds = [split_fold(data, number, 2) for number in (1, 2)]
    assert sum(len(fold.val) for fold in folds) == 12


def test_what_is_left_out_is_noted(photographs: Path, tmp_path: Path) -> None:
    archive = packed(photographs, tmp_path / "photos.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("train/readme.txt", "x")
        file.writestr("__MACOSX/train/blue/._0.png", "x")
        file.writestr("train/blue/.hidden.png", "x")
        file.writestr("train/blue/broken.png", "x")
        file.write(photographs / "train/blue/0.png", "val/blue/twin.png")
    data = load_data(archive)
    assert len(data.train) == 12
    lines = "\n".join(data.warnings)
    assert "1 file without an image's extension left out" in lines
    assert "train/blue/broken.png" in lines
    assert "1 validation image also among the training images" in lines
    with pytest.raises(DataError, match=r"broken\.png"):
        load_data(archive, strict=True)


@pytest.mark.parametrize("stray", ["train/cover.png", "docs/figure.png", "/train//cover.png"])
def test_stray_images_do_not_make_the_splits_the_classes(photographs: Path, tmp_path: Path, stray: str) -> None:
    archive = packed(photographs, tmp_path / "photos.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.write(next(photographs.rglob("*.png")), stray)
    found = load_data(archive)
    assert found.train.class_names == load_data(photographs).train.class_names
    assert names(found.train) == names(load_data(photographs).train)
    assert any("outside the class folders" in line or "docs/ is not used" in line for line in found.warnings)


def test_archives_that_cannot_be_used(photographs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    with pytest.raises(DataError, match="cannot be read"):
        load_data(archive)
    archive.write_bytes(b"no archive")
    with pytest.raises(DataError, match="is not a zip archive that can be read"):
        load_data(archive)
    packed(tmp_path, archive)
    with pytest.raises(DataError, match="holds no image; expected one folder per class"):
        load_data(archive)
    packed(photographs, archive, below="train/blue")
    with pytest.raises(DataError, match="its images are in no folders"):
        load_data(archive)
    packed(photographs, archive, "one/", below="train/blue")
    with pytest.raises(DataError, match=r"only one class \(one\)"):
        load_data(archive)
    packed(photographs, archive)
    with zipfile.ZipFile(archive, "a") as file:
        file.write(photographs / "train/blue/0.png", "val/other/0.png")
    with pytest.raises(DataError, match="only one of train/ and val/ has the classes other"):
        load_data(archive)
    whole = packed(photographs, tmp_path / "cut.zip").read_bytes()
    archive.write_bytes(whole[:40] + bytes(200) + whole[240:])
    data = load_data(archive)
    assert any("cannot be read" in line or "png" in line for line in data.warnings)


def _first_pixels(images: ImageSet) -> list[int]:
    return [int(read_image(sample).getpixel((0, 0))[0]) for sample in images.samples]  # type: ignore[index]


def test_forked_workers_read_at_the_same_time(photographs: Path, tmp_path: Path) -> None:
    data = load_data(packed(photographs, tmp_path / "photos.zip"))
    expected = _first_pixels(data.train)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_first_pixels, [data.train] * 4) == [expected] * 4
    dataset = ImageDataset(data.train, eval_transform(Preprocessing(size=(32, 32))))
    assert dataset[0][0].shape == (3, 32, 32)


def test_an_archive_that_is_replaced_is_read_anew(photographs: Path, tmp_path: Path) -> None:
    archive = packed(photographs, tmp_path / "photos.zip")
    before = load_data(archive).train.samples[0]
    contents = before.read()
    changed = tmp_path / "changed"
    shutil.copytree(photographs, changed)
    for path in changed.rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.ROTATE_180).resize((20, 20)).save(path)
    os.replace(packed(changed, tmp_path / "new.zip"), archive)
    assert load_data(archive).train.samples[0].read() != contents
    with pytest.raises(DataError, match="has changed since the data set was opened"):
        before.read()


def test_archives_of_windows_have_backslashes(photographs: Path, tmp_path: Path) -> None:
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(photographs.rglob("*.png")):
            info = zipfile.ZipInfo("x")
            info.filename = str(path.relative_to(photographs)).replace("/", "\\")
            file.writestr(info, path.read_bytes())
    assert load_data(archive).train.class_counts == load_data(photographs).train.class_counts


def test_archives_that_mislead(photographs: Path, tmp_path: Path) -> None:
    image = next(photographs.rglob("*.png")).read_bytes()
    for entries, message in (
        (["a/0.png", "b/0.png", "a/0.png"], r"has two entries named a/0\.png; pack it again"),
        (["ros\u00e9/0.png", "rose\u0301/0.png"], "two Unicode forms"),
    ):
        with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
            for number, name in enumerate(entries):
                info = zipfile.ZipInfo(f"{number}")
                info.filename = name
                file.writestr(info, image)
        with pytest.raises(DataError, match=message):
            load_data(tmp_path / "photos.zip")
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(tmp_path / "pipe.zip")
