"""Labels in CSV, TSV and Parquet files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer.data.sources import load_data
from iformer.data.sources.tables import is_table
from iformer.errors import DataError

LABELS = ["rose", "rose", "rose", "rose", "tulip", "tulip", "tulip", "tulip"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`photos/0.png` to `7.png`: the first four are roses, the others tulips."""
    (tmp_path / "photos").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{number}.png")
    return tmp_path


def write(folder: Path, columns: dict[str, list[str]], name: str = "labels.csv", separator: str = ",") -> Path:
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    (folder / name).write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    return folder / name


def photos(count: int = 8) -> list[str]:
    return [f"photos/{number}.png" for number in range(count)]


def names(images: object) -> set[str]:
    return {sample.name for sample in images.samples}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "separator"), [("l.csv", ","), ("l.csv", ";"), ("l.tsv", "\t"), ("l.CSV", ",")])
def test_text_tables(folder: Path, name: str, separator: str) -> None:
    table = write(folder, {"image": photos(), "label": LABELS}, name, separator)
    data = load_data(table, val_split=0.25)
    assert data.split_off
    assert data.train.class_names == ("rose", "tulip")
    assert data.train.class_counts == {"rose": 3, "tulip": 3}
    assert data.val.class_counts == {"rose": 1, "tulip": 1}
    assert names(data.train) | names(data.val) == {f"{n}.png" for n in range(8)}
    assert data.train.fingerprint() == load_data(table, val_split=0.25).train.fingerprint()


def test_parquet_and_names_of_columns(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"Image ": photos(), "LABEL": LABELS, "id": list(range(8))})
    parquet.write_table(table, folder / "labels.parquet")
    data = load_data(folder / "labels.parquet", val_split=0.25)
    text = load_data(write(folder, {"image": photos(), "label": LABELS}), val_split=0.25)
    assert names(data.val) == names(text.val)
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet: is not a Parquet file"):
        load_data(folder / "broken.parquet")


def test_splits_of_the_table(folder: Path) -> None:
    splits = ["train", "train", "val", "test"] * 2
    data = load_data(write(folder, {"image": photos(), "label": LABELS, "split": splits}))
    assert not data.split_off
    assert names(data.train) == {"0.png", "1.png", "4.png", "5.png"}
    assert names(data.val) == {"2.png", "6.png"}
    assert any("the rows of the split test are not used" in line for line in data.warnings)


def test_a_table_from_windows_has_backslashes(folder: Path) -> None:
    images = [name.replace("/", "\\") for name in photos()]
    data = load_data(write(folder, {"image": images, "label": LABELS}))
    assert names(data.train) | names(data.val) == {f"{number}.png" for number in range(8)}


def test_a_group_stays_in_one_split(folder: Path) -> None:
    groups = ["a", "a", "b", "b", "c", "c", "d", "d"]
    table = write(folder, {"image": photos(), "label": LABELS, "group": groups})
    for seed in range(5):
        data = load_data(table, val_split=0.5, seed=seed)
        group = {f"{n}.png": groups[n] for n in range(8)}
        train, val = ({group[name] for name in names(images)} for images in (data.train, data.val))
        assert not train & val
        assert data.val.class_counts == {"rose": 2, "tulip": 2}


def test_images_that_cannot_be_read_are_left_out(folder: Path) -> None:
    table = write(folder, {"image": [*photos(), "photos/9.png"], "label": [*LABELS, "rose"]})
    data = load_data(table)
    assert any("9.png: no such file" in line for line in data.warnings)
    with pytest.raises(DataError, match=r"9\.png"):
        load_data(table, strict=True)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"file": photos(2), "label": ["a", "b"]},
            "its columns are file, label; expected",
        ),
        ({"image": [], "label": []}, "has no row"),
        ({"image": photos(2), "label": ["a", ""]}, "row 2 has no label"),
        ({"image": photos(2), "label": ["a", "a"]}, r"only one class \(a\)"),
        ({"image": ["photos/0.png"] * 2, "label": ["a", "b"]}, r"has two different rows \(a / b\)"),
        ({"image": photos(2), "label": ["a", "b"], "split": ["train", "other"]}, "the column split has other"),
        ({"image": photos(2), "label": ["a", "b"], "split": ["val", "val"]}, "no row has the split train"),
        ({"image": photos(3), "label": ["a", "b", "b"], "split": ["val", "train", "train"]}, "no training image"),
        (
            {"image": photos(3), "label": ["a", "b", "c"]},
            "no image of the classes a, b, c is left for validation; without a column split, a class needs two",
        ),
        (
            {"image": [*photos(2), "photos/9.png"], "label": ["a", "a", "b"]},
            "no image of the class b can be read",
        ),
        (
            {"image": [*photos(2), "http://127.0.0.1:9/x.png"], "label": ["a", "a", "b"]},
            "row 3 has the address http://127.0.0.1:9/x.png; a table names image files, so download the images",
        ),
    ],
)
def test_mistakes_are_named(folder: Path, columns: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(write(folder, columns))


def test_rows_that_contradict_each_other(folder: Path) -> None:
    for content, message in (
        ("image,label,label\nphotos/0.png,rose,tulip\n", "has the column label 2 times"),
        ("image,label, LABEL\nphotos/0.png,rose,tulip\n", "has the column label 2 times"),
        ("image,label\nphotos/0.png,ros\u00e9\nphotos/4.png,rose\u0301\n", "two Unicode forms"),
        ("image,label\nphotos/0.png,rose\n./photos/0.png,tulip\n", "has two different rows"),
        (
            "image,label\nphotos/0.png,rose\nphotos/4.png,tulip, red\n",
            "line 3 has 3 cells, the header 2; put a cell",
        ),
        ("", "is empty; expected the columns image and label"),
        (
            f"image,label\nphotos/0.png,{'a' * 1001}\nphotos/4.png,tulip\n",
            "has 1,001 characters; expected at most",
        ),
    ):
        (folder / "labels.csv").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            load_data(folder / "labels.csv")
    rows = [f"{photo},{label}, ," for photo, label in zip(photos(), LABELS, strict=True)]
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    assert len(load_data(folder / "labels.csv").train) == 6  # empty cells at the end lose nothing
    spelled = [*photos(), "./photos/0.png"]
    data = load_data(write(folder, {"image": spelled, "label": [*LABELS, "rose"]}))
    assert len(data.train) + len(data.val) == 8


def test_groups_and_splits_that_do_not_fit(folder: Path) -> None:
    columns = {
        "image": photos(),
        "label": LABELS,
        "split": ["train", "val"] * 4,
        "group": ["p"] * 2 + list("abcdef"),
    }
    data = load_data(write(folder, columns))
    assert any("the group p are in training and in validation" in note for note in data.warnings)
    del columns["split"]
    with pytest.raises(DataError, match="a class needs at least two groups; give images of it in more groups"):
        load_data(write(folder, columns | {"group": ["p"] * 4 + ["q"] * 4}))


def test_few_groups_with_every_class_are_split(folder: Path) -> None:
    """No two groups have the same most frequent class, so they cannot be stratified."""
    labels = ["rose", "tulip", "tulip", "rose", "rose", "tulip"]
    columns = {"image": photos(6), "label": labels, "group": list("pppqqq")}
    for share in (0.2, 0.4):
        data = load_data(write(folder, columns), val_split=share)
        groups = [{sample.group for sample in part.samples} for part in (data.train, data.val)]
        assert sorted(map(sorted, groups)) == [["p"], ["q"]]
        assert all({*part.class_counts.values()} == {1, 2} for part in (data.train, data.val))
    columns["label"] = ["rose", "tulip", "tulip", "rose|tulip", "", "rose"]
    data = load_data(write(folder, columns), multi_label=True)
    assert all(min(part.class_counts.values()) for part in (data.train, data.val))
    columns["label"] = ["rose", "rose", "rose", "tulip", "tulip", "tulip"]
    with pytest.raises(DataError, match=r"no image of the classes rose, tulip is left for validation; .* groups"):
        load_data(write(folder, columns), multi_label=True)


def test_types_of_parquet_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    path = folder / "labels.parquet"

    def load(*, multi_label: bool = False, **columns: object) -> object:
        parquet.write_table(pyarrow.table(columns), path)
        return load_data(path, val_split=0.25, multi_label=multi_label)

    assert load(image=photos(), label=[0, 0, 0, 0, 1, 1, 1, 1]).train.class_names == ("0", "1")  # type: ignore[attr-defined]
    for values, message in (
        ([*([0.0] * 4), *([float("nan")] * 4)], "row 5 has no label"),
        ([b"red"] * 8, "the column label is binary; expected text or whole numbers"),
        ([["red"]] * 8, "--multi-label reads lists"),
    ):
        with pytest.raises(DataError, match=message):
            load(image=photos(), label=values)
    torn = [["a|c"], *([["red"]] * 7)]
    with pytest.raises(DataError, match=r"the label a\|c has \| or ; in it; rename it"):
        load(image=photos(), label=torn, multi_label=True)
    with pytest.raises(DataError, match="the column image is struct"):
        load(image=[{"bytes": b"", "path": name} for name in photos()], label=LABELS)
    monkeypatch.setattr("iformer.data.sources.tables._MAX_ROWS", 7)
    with pytest.raises(DataError, match="has 8 rows; expected at most 7"):
        load(image=photos(), label=LABELS)
    with pytest.raises(DataError, match="has more than 7 rows"):
        load_data(write(folder, {"image": photos(), "label": LABELS}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_table_that_is_a_pipe_is_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(tmp_path / "labels.csv")


def test_other_files_are_refused(folder: Path) -> None:
    (folder / "latin.csv").write_bytes("image,label\nphotos/0.png,Blüte\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        load_data(folder / "latin.csv")
    with pytest.raises(DataError, match=r"none\.csv: cannot be read \(No such file"):
        load_data(folder / "none.csv")
    (folder / "odd.csv").write_text('image,label\n"photos/0.png,a\n')
    with pytest.raises(DataError, match="line 2 is not one of a table"):
        load_data(folder / "odd.csv")
    (folder / "folder.csv").mkdir()
    assert not is_table(folder / "folder.csv")
