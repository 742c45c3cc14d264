"""Data sets of Hugging Face, read from a local folder in the layout of the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer.config.preprocessing import Preprocessing
from iformer.data.loader import build_loader
from iformer.data.sources import load_data
from iformer.data.transforms import eval_transform
from iformer.errors import DataError
from iformer.tasks.classification.dataset import ImageDataset
from tiny.packages import need_packages

need_packages("datasets")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_parquet(root: Path, splits: dict[str, int]) -> Path:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dull", "bright"])}
    )
    for split, count in splits.items():
        rows = {
            "image": [Image.fromarray(np.full((9, 9, 3), 20 * number, np.uint8)) for number in range(count)],
            "label": [int(number >= count // 2) for number in range(count)],
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        (root / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


def test_splits_are_read_at_random(tmp_path: Path) -> None:
    data = load_data(f"hfds/{write_parquet(tmp_path / 'set', {'train': 8, 'validation': 4})}")
    assert data.train.class_names == ("dull", "bright")
    assert data.train.class_counts == {"dull": 4, "bright": 4}
    assert data.val.labels.tolist() == [0, 0, 1, 1]
    dataset = ImageDataset(data.train, eval_transform(Preprocessing(size=(32, 32))))
    with build_loader(dataset, batch_size=3, train=False, workers=2) as loader:
        seen = {
            int(i): int(batch["images"][n].max())
            for batch in loader.epoch()
            for n, i in enumerate(batch["indices"])
        }
    assert seen == {number: 20 * number for number in range(8)}
    again = load_data(f"hfds/{tmp_path / 'set'}")
    assert again.train.fingerprint() == data.train.fingerprint()
    assert data.train.fingerprint() != data.val.fingerprint()


def test_what_is_no_data_set_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has the splits train; expected train and validation"):
        load_data(f"hfds/{write_parquet(tmp_path / 'half', {'train': 4})}")
    with pytest.raises(DataError, match=r"hfds/.*: cannot be read") as caught:
        load_data(f"hfds/{tmp_path / 'missing'}")
    assert "\n" not in str(caught.value)


def test_labels_are_those_of_classes(tmp_path: Path) -> None:
    import datasets

    for name, labels in (("unlabelled", [-1, -1]), ("huge", [0, 10**12])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        image = Image.fromarray(np.zeros((9, 9, 3), np.uint8))
        table = datasets.Dataset.from_dict({"image": [image, image], "label": labels}, features=features)
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        table.to_parquet(folder / "validation-00000-of-00001.parquet")
        with pytest.raises(DataError, match=r"has labels from .* to .*; expected 0 to 999999"):
            load_data(f"hfds/{tmp_path / name}", for_training=False)


def write_rows(root: Path, **columns: list[object]) -> str:
    import pyarrow
    from pyarrow import parquet

    root.mkdir()
    parquet.write_table(pyarrow.table(columns), root / "validation-00000-of-00001.parquet")
    return f"hfds/{root}"


def test_columns_and_values_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    image = {"bytes": (tmp_path / "image.png").read_bytes(), "path": None}
    cases: dict[str, tuple[dict[str, list[object]], str]] = {
        "cifar": ({"img": [image], "label": [0]}, "has the columns img, label; expected image and label"),
        "fine": ({"image": [image], "fine_label": [0]}, "has the columns image, fine_label; expected image and"),
        "text": ({"image": [image], "label": ["rose"]}, "row 0 of validation has the label rose; expected whole"),
        "share": ({"image": [image] * 2, "label": [1.0, 1.5]}, "row 1 of validation has the label 1.5; expected"),
        "null": ({"image": [image] * 2, "label": [0, None]}, "row 1 of validation has the label (None|nan)"),
        "gap": ({"image": [image, None], "label": [0, 1]}, "1 row of 2 without an image; leave"),
    }
    for name, (columns, message) in cases.items():
        with pytest.raises(DataError, match=message):
            load_data(write_rows(tmp_path / name, **columns), for_training=False)
    empty = {"bytes": None, "path": None}
    data = load_data(write_rows(tmp_path / "empty", image=[image, empty], label=[0, 1]), for_training=False)
    with pytest.raises(DataError, match="validation/1: has neither bytes nor a path"):
        data.val.samples[1].read()
