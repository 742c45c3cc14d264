"""`iformer predict` with classifiers on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iformer import save
from iformer.errors import WeightsError
from iformer.models.classifier import Classifier
from iformer.models.weights import resolve as shipped
from tiny.command_line import only_line, run
from tiny.networks import tiny_config


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three photographs, an empty file and a text, all named .png."""
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("not an image")
    return folder


def test_predict_names_what_is_broken_and_predicts_the_rest(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, tmp_path: Path
) -> None:
    out_folder = tmp_path / "out"
    code, out, err = run(
        capsys,
        "predict",
        images,
        "--weights",
        checkpoint,
        "--json",
        "--top-k",
        "2",
        "--out",
        out_folder,
        "--explain",
    )
    assert code == 1, "two files could not be read"
    records = [json.loads(line) for line in out.splitlines()]
    assert [Path(record["file"]).name for record in records] == [
        "0.png",
        "1.png",
        "2.png",
        "empty.png",
        "text.png",
    ]
    for record in records[:3]:
        assert len(record["classes"]) == 2
        assert record["classes"][0]["probability"] >= record["classes"][1]["probability"]
    assert all("error" in record for record in records[3:])
    assert sum(line.startswith("error: ") for line in err.splitlines()) == 2
    assert {path.name for path in out_folder.iterdir()} == {"predict.png", "explain.png", "predictions.jsonl"}
    written = [json.loads(line) for line in (out_folder / "predictions.jsonl").read_text().splitlines()]
    assert written == records


def test_predict_prints_lines_and_succeeds_on_good_images(
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, "predict", f"{images}/[0-9].png", "--weights", "tiny.safetensors")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert (tmp_path / "predictions" / "predict.png").exists()
    # once more on the folder above: the pictures of the first run are not its photographs
    code, out, _ = run(capsys, "predict", "predictions", str(images / "0.png"), "--weights", "tiny.safetensors")
    assert code == 0
    assert len(out.splitlines()) == 1


def test_predict_with_json_writes_nothing_unasked(
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    code, _, _ = run(capsys, "predict", images / "0.png", "--weights", checkpoint, "--json")
    assert code == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nofolder"], "no such file or folder"),
        (["{images}/*.tiff"], "no image or video matches"),
        (["{images}/0.png", "--weights", "iformer_tt"], "did you mean iformer_t"),
        (["{images}/0.png", "--weights", "{images}/none.safetensors"], "none.safetensors does not exist"),
        (["{images}/0.png", "--weights", "{images}/text.png"], "text.png"),
        (["{images}/0.png", "--out", "{images}/text.png/below"], "text.png"),
        (["{images}/0.png", "--device", "toaster"], "device is 'toaster'; this machine has cpu"),
    ],
)
def test_predict_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, arguments: list[str], said: str
) -> None:
    given = [argument.format(images=images) for argument in arguments]
    if "--weights" not in given:
        given += ["--weights", str(checkpoint)]
    code, out, err = run(capsys, "predict", *given, "--json")
    assert code == 1
    assert said in only_line(err)
    assert not out


def test_a_name_that_is_too_long_is_answered_at_its_place(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path
) -> None:
    _, out, _ = run(capsys, "predict", "a" * 300 + ".jpg", images / "0.png", "--weights", checkpoint, "--json")
    long, read = map(json.loads, out.splitlines())
    assert long["error"] == "no such file or folder; the name is too long for a file"
    assert "error" not in read


def test_predict_without_weights_and_hub_names_the_shipped_network(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, revision: str | None = None) -> Path:
        raise WeightsError(f"cannot fetch timm/{name}.in1k")

    monkeypatch.setattr("iformer.models.weights.hub.fetch_released", unreachable)
    monkeypatch.setattr(shipped, "shipped_checkpoints", lambda: {"elpv": checkpoint})
    code, _, err = run(capsys, "predict", images / "0.png", "--json")
    assert code == 1
    line = only_line(err)
    assert "cannot fetch timm/iformer_m.in1k" in line
    assert "--weights elpv" in line
    code, out, _ = run(capsys, "predict", images / "0.png", "--json", "--weights", "elpv")
    assert code == 0
    assert len(json.loads(out)["classes"]) == 5


def test_a_backbone_without_classes_cannot_predict(
    capsys: pytest.CaptureFixture[str],
    images: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "backbone.safetensors"
    save(Classifier(tiny_config(num_classes=0)), path)
    code, _, err = run(capsys, "predict", images / "0.png", "--weights", path, "--json")
    assert code == 1
    assert "a classifier is needed" in only_line(err)
