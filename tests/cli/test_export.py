"""`iformer export` of classifiers on the command line, and the other verbs on the artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import iformer
from iformer.cli.export import print_classes
from iformer.cli.main import main
from tiny.command_line import only_line, run
from tiny.networks import labelled_classifier


def test_export_writes_an_artifact_and_says_how_it_was_checked(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photographs: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "exported" / "net.onnx"
    code, out, _ = run(
        capsys,
        "export",
        checkpoint,
        "--to",
        "onnx",
        "--out",
        path,
        "--images",
        f"{photographs[0].parent}/photo[0-2].*",
        "--json",
    )
    assert code == 0
    said = json.loads(out)
    assert said["parity"]["images"] - said["parity"]["generated_images"] == 3
    assert said["class_names"] == ["ant", "bee", "cat", "dog", "elk"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["net.onnx", "net.onnx.json"]


def test_a_damaged_image_is_named_before_the_conversion(
    capsys: pytest.CaptureFixture[str],
    checkpoint: Path,
    photographs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    damaged = tmp_path / "images" / "b.jpg"
    damaged.parent.mkdir()
    damaged.write_bytes(photographs[0].read_bytes()[:-200])
    (damaged.parent / "a.png").write_bytes(photographs[1].read_bytes())
    monkeypatch.setattr("iformer.api.export.export_artifact", lambda *_args, **_options: pytest.fail("converted"))
    code, _, err = run(
        capsys, "export", checkpoint, "--out", tmp_path / "out" / "net.onnx", "--images", damaged.parent
    )
    assert code == 1
    assert str(damaged) in only_line(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onxx"], "did you mean onnx"),
        (["--batch", "some"], "--batch is 'some'"),
        (["--size", "8"], "32 pixels or more"),
        (["--images", "nowhere"], "no such file or folder"),
        (["--precision", "int2"], "ONNX Runtime supports fp32"),
        (["--to", "litert", "--batch", "dynamic"], "LiteRT takes a fixed number of images"),
        (["--to", "openvino"], "artifacts of OpenVINO end with .openvino"),
    ],
)
def test_export_errors_are_one_line_and_leave_nothing(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    folder = tmp_path / "exported"
    code, _, err = run(capsys, "export", checkpoint, "--out", folder / "net.onnx", *arguments)
    assert code == 1
    assert said in only_line(err)
    assert not folder.exists()


def test_export_to_several_runtimes_and_back_by_the_other_verbs(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, photographs: list[Path], tmp_path: Path
) -> None:
    """Artifacts answer as their checkpoint does, in prediction and by the same metric."""
    for module in ("onnxruntime", "ncnn", "pnnx", "torchmetrics"):
        pytest.importorskip(module)
    folder = tmp_path / "exported"
    code, out, _ = run(capsys, "export", checkpoint, "--to", "onnx,ncnn", "--out", folder, "--json")
    assert code == 0
    said = [json.loads(line) for line in out.splitlines()]
    assert [(Path(one["artifact"]).name, one["status"]) for one in said] == [
        ("tiny.onnx", "run here"),
        ("tiny.ncnn", "run here"),
    ]
    data = tmp_path / "data"
    generator = np.random.default_rng(1)
    for name in ("ant", "bee", "cat", "dog", "elk"):
        (data / name).mkdir(parents=True)
        for index in range(2):
            pixels = generator.integers(0, 255, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{index}.png")
    answers, metrics = [], []
    for network in (checkpoint, folder / "tiny.onnx", folder / "tiny.ncnn"):
        code, out, err = run(capsys, "predict", photographs[0], "--weights", network, "--json")
        assert code == 0, err
        answers.append({entry["name"]: entry["probability"] for entry in json.loads(out)["classes"]})
        code, out, err = run(capsys, "eval", network, "--data", data, "--split", "all", "--workers", "0", "--json")
        assert code == 0, err
        metrics.append(json.loads(out)["metrics"])
    for answer, metric in zip(answers[1:], metrics[1:], strict=True):
        assert answer == pytest.approx(answers[0], abs=1e-4)
        assert metric["images"] == 10
        assert metric["top1"] == metrics[0]["top1"]
        assert metric["loss"] == pytest.approx(metrics[0]["loss"], abs=1e-4)
    code, _, err = run(capsys, "predict", photographs[0], "--weights", folder / "tiny.onnx", "--explain")
    assert code == 1
    assert "give the checkpoint it was made from" in only_line(err)
    code, _, err = run(capsys, "eval", folder / "tiny.onnx", "--data", data, "--precision", "bf16")
    assert code == 1
    assert "an artifact runs as it was exported" in only_line(err)
    (folder / "tiny.onnx").write_bytes(b"changed")
    code, _, err = run(capsys, "eval", folder / "tiny.onnx", "--data", data)
    assert code == 1
    assert "was changed after its export" in only_line(err)


def test_one_failing_export_of_several_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("onnxruntime", "openvino"):
        pytest.importorskip(module)
    from iformer.deploy.runtimes import onnx as onnx_module

    def broken(*_: object) -> None:
        cause = RuntimeError("a converter's own kind of error\nwith more lines")
        raise RuntimeError("\x1b[96mStep 1 failed\x1b[0m. Next steps:") from cause

    monkeypatch.setattr(onnx_module, "write", broken)
    code, out, err = run(
        capsys, "export", checkpoint, "--to", "onnx,openvino", "--out", tmp_path / "new", "--batch", "2", "--json"
    )
    assert code == 1
    assert json.loads(out)["runtime"] == "openvino"
    assert "error: the conversion for ONNX Runtime failed: a converter's own kind of error" in err.splitlines()
    assert "1 of 2 exports failed" in err
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["tiny.openvino", "tiny.openvino.json"]


def test_the_table_of_classes_shows_no_change_of_a_class_without_images(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = {"red": {"recall": 50.0}, "blue": {"recall": None}}
    print_classes({"network": {"per_class": scores}, "metrics": {"per_class": scores}})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["red", "50.00", "50.00", "+0.00"] in rows
    assert ["blue", "-", "-", "-"] in rows


@pytest.mark.parametrize("option", ["out", "weights"])
def test_wrong_options_are_named_before_packages_are_imported(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("iformer.deploy.runtimes.registry.Runtime.require", lambda *given: pytest.fail("imported"))
    weights = tmp_path / "network.safetensors"
    if option == "out":
        iformer.save(labelled_classifier(), weights)
    out = tmp_path / ("a.onnx" if option == "out" else "artifacts")
    assert main(["export", str(weights), "--to", "onnx,litert", "--out", str(out)]) == 1
    assert ("several runtimes need a folder" if option == "out" else "does not exist") in capsys.readouterr().err
