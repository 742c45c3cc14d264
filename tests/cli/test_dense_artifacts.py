"""Detectors and segmenters by the verbs: an artifact answers as its checkpoint does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from iformer.cli.main import main
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.models.weights.checkpoint import save
from tiny.dense import BUILDERS, SIZE, copy_of_export, rcnn
from tiny.packages import need_packages

need_packages("onnxruntime", "onnxscript")


@pytest.fixture
def folder(tmp_path: Path, shared_exports: Path) -> Path:
    """Checkpoints of the light networks, and ONNX artifacts of them."""
    folder = tmp_path / "networks"
    folder.mkdir()
    for kind in ("detector", "segmenter"):
        save(BUILDERS[kind](), folder / f"{kind}.safetensors")
        copy_of_export(kind, "onnx", shared_exports, folder)
    return folder


def evaluated(subject: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["eval", str(subject), "--data", str(data), "--workers", "0", "--json"]) == 0
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record["metrics"]


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_eval_gives_the_checkpoint_s_metrics(
    capsys: pytest.CaptureFixture[str], folder: Path, shapes_data: Path, kind: str
) -> None:
    metrics = [evaluated(folder / f"{kind}{suffix}", shapes_data, capsys) for suffix in (".safetensors", ".onnx")]
    assert metrics[0].keys() == metrics[1].keys()
    for name in ("box_ap", "box_ap50", "box_ap_large") if kind == "detector" else ("miou", "pixel_accuracy"):
        assert metrics[1][name] == pytest.approx(metrics[0][name], abs=0.05)
    assert metrics[0]["per_class"].keys() == metrics[1]["per_class"].keys()


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_predict_gives_the_checkpoint_s_answers(
    capsys: pytest.CaptureFixture[str], folder: Path, photographs: list[Path], tmp_path: Path, kind: str
) -> None:
    answers = []
    # without suppression, which keeps other boxes where scores of overlapping ones differ by rounding only
    options = ["--min-score", "0.3", "--iou", "1", "--max-detections", "252"] if kind == "detector" else []
    for suffix in (".safetensors", ".onnx"):
        out = tmp_path / suffix[1:]
        command = ["predict", *map(str, photographs[:3]), "--weights", str(folder / f"{kind}{suffix}")]
        assert main([*command, *options, "--out", str(out), "--json"]) == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(answers[0]) == len(answers[1]) == 3
    for ours, theirs in zip(*answers, strict=True):
        if kind == "detector":
            assert len(ours["detections"]) == len(theirs["detections"]) > 0
            others = list(theirs["detections"])
            for one in ours["detections"]:  # as sets: of two with nearly the same score either may come first
                same = [
                    other
                    for other in others
                    if one["name"] == other["name"]
                    and one["score"] == pytest.approx(other["score"], abs=1e-3)
                    and one["box"] == pytest.approx(other["box"], abs=0.05)
                ]
                assert same, one
                others.remove(same[0])
        masks = [np.asarray(Image.open(record["picture"]).convert("RGB"), np.int16) for record in (ours, theirs)]
        assert masks[0].shape == masks[1].shape
        assert (np.abs(masks[0] - masks[1]).max(2) > 2).mean() < 0.01


def test_an_artifact_says_what_it_does_not_take(
    capsys: pytest.CaptureFixture[str], folder: Path, shapes_data: Path, tmp_path: Path
) -> None:
    artifact = folder / "segmenter.onnx"
    for command in (
        ["eval", str(artifact), "--data", str(shapes_data), "--sliding"],
        ["predict", str(shapes_data), "--weights", str(artifact), "--sliding", "--out", str(tmp_path / "out")],
    ):
        assert main(command) == 1
        assert "--sliding is for Semantic FPN" in capsys.readouterr().err


def test_a_record_of_another_task_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, shapes_data: Path, tmp_path: Path
) -> None:
    """A record without a checksum, as of early versions, that says nothing of detections."""
    import shutil

    for name in ("detector.onnx", "detector.onnx.json"):
        shutil.copy(folder / name, tmp_path)
    path = tmp_path / "detector.onnx.json"
    original = json.loads(path.read_text())
    for fields, words in (
        ({"postprocess": {"detections": 0}}, "has no rule for detections"),
        ({"task": "segment"}, "has no colours for classes"),
    ):
        record = {**original, **fields, "record_sha256": ""}
        path.write_text(json.dumps(record))
        assert main(["eval", str(tmp_path / "detector.onnx"), "--data", str(shapes_data)]) == 1
        error = capsys.readouterr().err
        assert "differ" in error or words in error


@pytest.mark.parametrize("size", ["64x100", "100"])
def test_export_refuses_other_sizes(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path, size: str
) -> None:
    command = ["export", str(folder / "detector.safetensors"), "--size", size, "--out", str(tmp_path / "a.onnx")]
    assert main(command) == 1
    assert "the network takes sides that are multiples of 32" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["networks"]


@pytest.mark.full
def test_int8_prints_each_class(
    capsys: pytest.CaptureFixture[str], folder: Path, shapes_data: Path, tmp_path: Path
) -> None:
    command = ["export", str(folder / "segmenter.safetensors"), "--precision", "int8", "--max-drop", "100"]
    out = tmp_path / "int8.onnx"
    assert main([*command, "--calibration", str(shapes_data), "--calibration-images", "4", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("miou", "iou, network", "background", "disc", "square", "lost"):
        assert words in printed
    assert json.loads((tmp_path / "int8.onnx.json").read_text())["accuracy"]["metric"] == "miou"


@pytest.mark.full
def test_bench_of_an_rcnn_does_not_count_its_operations(tmp_path: Path) -> None:
    need_packages("psutil")
    from iformer.bench.subjects import prepare_subject

    save(rcnn(masks=False), tmp_path / "rcnn.safetensors")
    subject = prepare_subject(str(tmp_path / "rcnn.safetensors"), RUNTIMES["onnx"], tmp_path, size=SIZE)
    assert (subject.label, subject.size, subject.gmacs) == ("rcnn", SIZE, None)


@pytest.mark.full
def test_bench_says_what_is_postprocessed(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("psutil")
    names = [str(folder / "detector.safetensors"), str(folder / "segmenter.onnx")]
    command = ["bench", *names, "--size", "64,64x96", "--rounds", "1", "--calls", "1", "--warmup", "0"]
    assert main([*command, "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["figures"]["onnx"]
    assert [(row["label"], row["size"], row["postprocess"]) for row in rows] == [
        ("detector at 64 x 64", [64, 64], False),
        ("detector at 64 x 64, postprocessed", [64, 64], True),
        ("detector at 64 x 96", [64, 96], False),
        ("detector at 64 x 96, postprocessed", [64, 96], True),
        ("segmenter", list(SIZE), False),
        ("segmenter, postprocessed", list(SIZE), True),
        ("matrix product", [32, 32], False),
    ]
