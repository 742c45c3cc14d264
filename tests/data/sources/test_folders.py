"""Finding images and labels, what is wrong with them, and splits."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from iformer.data.sources import load_data
from iformer.data.sources.checks import find_broken
from iformer.data.sources.folders import load_folder
from iformer.data.sources.splitting import split_stratified
from iformer.errors import ConfigError, DataError


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


def test_train_and_val_folders(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", cat=3, dog=2)
    write_classes(tmp_path / "val", start=100, cat=1, dog=2)
    data = load_data(tmp_path)
    assert data.train.class_names == data.val.class_names == ("cat", "dog")
    assert data.train.class_counts == {"cat": 3, "dog": 2}
    assert data.val.class_counts == {"cat": 1, "dog": 2}
    assert names(data.val) == ["val/cat/img1.png", "val/dog/img1.png", "val/dog/img2.png"]
    assert data.warnings == ()


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
    assert "1 image but no class folder" in error(tmp_path)


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
    shutil.copy(tmp_path / "train" / "cat" / "img1.png", tmp_path / "val" / "dog" / "same.png")
    data = load_data(tmp_path, strict=True)
    assert len(data.warnings) == 1
    assert "1 validation image also among the training images" in data.warnings[0]
    assert "same.png" in data.warnings[0]


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
        find_broken(paths, progress=interrupt)


def test_elpv_is_split_by_probability_and_module() -> None:
    elpv = pytest.importorskip("elpv_dataset")
    data = load_data("elpv", seed=5)
    assert data.train.class_names == ("functional", "defective")
    assert (len(data.train), len(data.val)) == (1968, 656)
    assert data.warnings == ()
    lines = (Path(elpv.__file__).parent / "data" / "labels.csv").read_text().splitlines()
    rows = {fields[0]: fields[1:] for fields in (line.split() for line in lines)}
    strata = Counter(tuple(row) for row in rows.values())
    for part, share in ((data.train, 0.75), (data.val, 0.25)):
        counts = Counter(tuple(rows[name]) for name in names(part))
        for stratum, total in strata.items():
            assert abs(counts[stratum] - share * total) < 1
        for name, sample in zip(names(part), part.samples, strict=True):
            assert sample.label == (float(rows[name][0]) >= 0.5)
    assert not set(names(data.train)) & set(names(data.val))
    assert names(load_data("elpv", seed=0).val) == names(data.val)


@settings(max_examples=60, deadline=None)
@given(
    strata=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31),
)
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


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(20)))
def test_splits_do_not_depend_on_the_order_of_the_files(order: list[int]) -> None:
    items = [f"{i}.png" for i in range(20)]
    _, plain = split_stratified(items, [i % 2 for i in range(20)], val_share=0.3, seed=0)
    _, mixed = split_stratified([items[i] for i in order], [i % 2 for i in order], val_share=0.3, seed=0)
    assert {order[i] for i in mixed} == set(plain)
