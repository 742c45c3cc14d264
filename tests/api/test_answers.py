"""Files of answers: formats, and what is not overwritten."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

import iformer
from iformer.api.answers import AnswersReserve, answer_rows, write_answers
from iformer.cli.main import main
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from tiny.networks import labelled_classifier

RECORDS: list[dict[str, Any]] = [
    {"file": "a.png", "classes": [{"name": "=rose", "probability": 0.75}, {"name": "tulip", "probability": 0.25}]},
    {"file": "b.png", "classes": [{"name": "tulip", "probability": 0.5}], "labels": ["tulip"]},
    {
        "file": "c.mp4",
        "frame": 3,
        "seconds": 0.12,
        "size": [64, 48],
        "detections": [{"name": "dog", "score": 0.5, "box": [1.0, 2.0, 3.5, 4.0], "track": 7}],
    },
    {"file": "d.png", "detections": []},
    {"file": "e.png", "error": "no such file"},
]


@pytest.fixture
def model() -> Classifier:
    return labelled_classifier()


def test_rows() -> None:
    rows = [row for record in RECORDS for row in answer_rows(record)]
    assert [(row["file"], row["rank"], row["name"], row["score"]) for row in rows] == [
        ("a.png", 1, "=rose", 0.75),
        ("a.png", 2, "tulip", 0.25),
        ("b.png", 1, "tulip", 0.5),
        ("c.mp4", 1, "dog", 0.5),
        ("d.png", None, None, None),
        ("e.png", None, None, None),
    ]
    assert [row["is_label"] for row in rows] == [None, None, True, None, None, None]
    box = [rows[3][name] for name in ("frame", "left", "top", "width", "height", "track")]
    assert box == [3, 1.0, 2.0, 3.5, 4.0, 7]
    shown = [rows[3][name] for name in ("seconds", "frame_width", "frame_height")]
    assert shown == [0.12, 64, 48]
    assert rows[0]["track"] is None
    assert rows[0]["frame_width"] is None
    assert rows[5]["error"] == "no such file"


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_the_reserve_is_the_answers_so_far(format: Any, tmp_path: Path) -> None:
    """A killed call leaves it behind, and with it the answers."""
    reserve = AnswersReserve(tmp_path, format)
    for record in RECORDS:
        reserve.add(record)
    left = (tmp_path / ".predictions.part").read_text()
    reserve.release()
    assert write_answers(tmp_path, RECORDS, format).read_text() == left
    assert len(list(tmp_path.iterdir())) == 1


def test_csv(tmp_path: Path) -> None:
    text = write_answers(tmp_path, RECORDS, "csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0]["name"] == "'=rose", "a formula in a spreadsheet otherwise"
    assert rows[2]["is_label"] == "true"
    assert rows[4]["score"] == ""
    assert (rows[3]["frame_width"], rows[3]["frame_height"], rows[4]["frame_width"]) == ("64", "48", "")
    assert len(rows) == 6


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(write_answers(tmp_path, RECORDS, "parquet")).to_pylist()
    assert rows == [row for record in RECORDS for row in answer_rows(record)]


def test_odd_names_of_files_are_escaped_and_other_formats_go(tmp_path: Path) -> None:
    records = [{"file": "\udcff.png", "classes": []}, {"file": "a\x1b[31m\r\n.png", "classes": []}]
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(write_answers(tmp_path, records, "parquet")).to_pylist()
    assert rows[0]["file"] == r"\udcff.png"
    text = write_answers(tmp_path, records, "csv").read_text()
    assert [row["file"] for row in csv.DictReader(io.StringIO(text))] == [r"\udcff.png", r"a\x1b[31m\r\n.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_answers_are_not_overwritten_silently(model: Classifier, photographs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    list(iformer.predict(model, photographs[0], out=out, format="csv"))
    before = (out / "predictions.csv").read_text()
    with pytest.raises(UserError, match=r"out holds answers already; --overwrite replaces them"):
        iformer.predict(model, photographs[1], out=out)
    assert (out / "predictions.csv").read_text() == before
    list(iformer.predict(model, photographs[1], out=out, format="csv", overwrite=True))
    assert (out / "predictions.csv").read_text() != before
    with pytest.raises(UserError, match="--format is 'xml'; expected jsonl, csv, parquet"):
        iformer.predict(model, photographs[1], format="xml")


def test_two_calls_at_once_do_not_replace_each_others_answers(
    model: Classifier, photographs: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = iformer.predict(model, photographs[:2], out=out)
    next(first)
    second, third = (iformer.predict(model, photographs[1], out=out) for _ in range(2))
    with pytest.raises(UserError, match="out is in use: another predict writes into it"):
        next(second)
    list(first)
    with pytest.raises(UserError, match="out holds answers already"):
        next(third)
    assert [json.loads(line)["file"] for line in (out / "predictions.jsonl").read_text().splitlines()] == [
        str(photograph) for photograph in photographs[:2]
    ]
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_the_default_folder_is_numbered(
    model: Classifier,
    photographs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    iformer.save(model, tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    for photograph in photographs[:3]:
        assert main(["predict", str(photograph), "--weights", "net.safetensors", "--device", "cpu"]) == 0
    files = ["predictions/predictions.jsonl", "predictions/2/predictions.jsonl", "predictions/3/predictions.jsonl"]
    answered = [json.loads(Path(file).read_text())["file"] for file in files]
    assert answered == [str(photograph) for photograph in photographs[:3]]
    capsys.readouterr()
    words = [
        "predict",
        "predictions",
        str(photographs[0]),
        "--weights",
        "net.safetensors",
        "--device",
        "cpu",
        "--json",
    ]
    assert main([*words, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1, "pictures of earlier answers are no photographs"
    assert main([*words, "--format", "csv", "--overwrite"]) == 0
    assert (tmp_path / "predictions/predictions.csv").is_file()
