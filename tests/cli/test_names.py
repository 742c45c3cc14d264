"""Every verb takes every kind of name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from iformer import load
from iformer.bench.subjects import BenchSubject
from iformer.cli.main import main
from iformer.config.variants import VARIANTS
from iformer.models.classifier import Classifier
from iformer.models.factory import create_model
from iformer.models.weights import resolve
from iformer.models.weights.checkpoint import save
from tiny.networks import tiny_config, tiny_variant

CLASSES = ("cat", "dog")
TRAIN = [
    *("--recipe", "quickstart", "--epochs", "1", "--batch-size", "4", "--size", "32", "--precision", "fp32"),
    *("--set", "workers=0", "--set", "lr=1e-12", "--set", "min_lr=0", "--set", "ema_decay=null"),
    *("--no-tensorboard", "--device", "cpu"),
]
"""A run that changes no kernel by more than 1e-9."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir()
        for number in range(6):
            pixels = generator.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "mine"
    folder.mkdir()
    network = Classifier(tiny_config(num_classes=2))
    save(network, folder / "best.safetensors", class_names=CLASSES)
    return folder


@pytest.fixture(params=["a shipped name", "a run folder", "a file of a training script"])
def name(request: pytest.FixtureRequest, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same kind of network under each kind of name; `elpv` stands for a tiny one."""
    if request.param == "a shipped name":
        shipped = {"elpv": run_folder / "best.safetensors"}
        monkeypatch.setattr(resolve, "shipped_checkpoints", lambda: shipped)
        return "elpv"
    if request.param == "a run folder":
        return str(run_folder)
    path = tmp_path / "weights.ckpt"
    torch.manual_seed(0)
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())  # files without a header are of a known size
    network = create_model("iformer_tiny", num_classes=2)
    torch.save({"state_dict": {f"model.{key}": value for key, value in network.state_dict().items()}}, path)
    return str(path)


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_info_predict_eval_and_convert(
    name: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert said(capsys, "info", name)["network"]["num_classes"] == 2
    answer = said(capsys, "predict", photographs / "cat" / "0.png", "--weights", name, "--device", "cpu")
    assert len(answer["classes"]) == 2
    metrics = said(capsys, "eval", name, "--data", photographs, "--split", "all", "--workers", "0")["metrics"]
    assert metrics["images"] == 12
    assert said(capsys, "convert", name, out, "--to", "iformer")["num_classes"] == 2
    assert all(map(torch.equal, load(out).state_dict().values(), load(name).state_dict().values()))


@pytest.mark.parametrize("option", ["--model", "--weights"])
def test_train_starts_from_the_named_weights(
    option: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", option, "elpv", "--data", str(photographs), "--out", str(tmp_path / "run"), *TRAIN]) == 0
    trained, start = load(tmp_path / "run").state_dict(), load("elpv").state_dict()
    kernels = [key for key, value in start.items() if value.ndim == 4]
    assert len(kernels) > 50
    for key in kernels:
        torch.testing.assert_close(trained[key], start[key], atol=1e-9, rtol=0)


class Untimed:
    """A row of `bench` without times."""

    def __init__(self, subject: BenchSubject) -> None:
        self.subject = subject

    def to_plain(self) -> dict[str, object]:
        return {"label": self.subject.label, "size": self.subject.size}


@pytest.mark.sweep
def test_export_and_bench(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One kind of name is timed in processes; the others end with the export of what would be timed."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("psutil")
    if "a shipped name" not in request.node.name:
        monkeypatch.setattr("iformer.bench.subjects.prepare_matrix_product", lambda _runtime, _folder: None)
        monkeypatch.setattr(
            "iformer.bench.latency.measure",
            lambda subjects, **_: [Untimed(subject) for subject in subjects if subject is not None],
        )
    out = tmp_path / "net.onnx"
    assert said(capsys, "export", name, "--to", "onnx", "--size", 32, "--out", out)["num_classes"] == 2
    assert said(capsys, "info", out)["runtime"] == "onnx"
    assert main(["export", str(out), "--to", "onnx"]) == 1
    assert "is an exported artifact; give the checkpoint" in capsys.readouterr().err
    result = said(capsys, "bench", name, "--on", "onnx", "--size", 32, "--rounds", 1, "--calls", 1)
    assert result["figures"]["onnx"][0]["size"] == [32, 32]  # type: ignore[index]


def test_an_artifact_in_the_place_of_a_network_is_named(
    run_folder: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = tmp_path / "net.onnx"
    shutil.copy(run_folder / "best.safetensors", artifact)
    (tmp_path / "net.onnx.json").write_text('{"runtime": "onnx"}')
    for arguments in (
        ["convert", str(artifact), str(tmp_path / "out.safetensors"), "--to", "iformer"],
        ["train", "--model", str(artifact), "--data", str(photographs), "--out", str(tmp_path / "run"), *TRAIN],
    ):
        assert main(arguments) == 1
        assert "is an exported artifact; give the checkpoint from which" in capsys.readouterr().err


def test_entry_is_an_option_of_every_verb(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(VARIANTS, "iformer_tiny", tiny_variant())
    weights, average = (create_model("iformer_tiny", num_classes=classes) for classes in (3, 2))
    path, out = tmp_path / "run.pth", tmp_path / "out.safetensors"
    torch.save({"model": weights.state_dict(), "ema": average.state_dict()}, path)
    chosen = ("--entry", "ema")
    assert said(capsys, "info", path)["network"]["num_classes"] == 3
    assert said(capsys, "info", path, *chosen)["network"]["num_classes"] == 2
    assert said(capsys, "convert", path, out, "--to", "iformer", *chosen)["num_classes"] == 2
    image = photographs / "cat" / "0.png"
    answer = said(capsys, "predict", image, "--weights", path, "--device", "cpu", *chosen)
    assert len(answer["classes"]) == 2
    measured = said(capsys, "eval", path, "--data", photographs, "--split", "all", "--workers", "0", *chosen)
    assert measured["metrics"]["images"] == 12
    for option in ("--model", "--weights"):
        run = tmp_path / option.strip("-")
        size = ["--model", "iformer_tiny"] if option == "--weights" else []
        arguments = [
            "train",
            option,
            str(path),
            *size,
            *chosen,
            "--data",
            str(photographs),
            "--out",
            str(run),
            *TRAIN,
        ]
        assert main(arguments) == 0
        key = "stem.conv2.conv.weight"
        torch.testing.assert_close(load(run).state_dict()[key], average.state_dict()[key], atol=1e-9, rtol=0)
    for verb in ("export", "bench"):
        assert main([verb, str(path), "--entry", "none", *(["--to", "onnx"] if verb == "export" else [])]) == 1
        assert "it has no state dict 'none'; it has model, ema" in capsys.readouterr().err


@pytest.mark.sweep
def test_a_network_for_gray_images_predicts_and_exports(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    path, out = tmp_path / "gray.pth", tmp_path / "gray.onnx"
    torch.save(create_model("iformer_t", num_classes=2, in_chans=1).state_dict(), path)
    image = photographs / "cat" / "0.png"
    answer = said(capsys, "predict", image, "--weights", path, "--device", "cpu")
    assert said(capsys, "export", path, "--to", "onnx", "--out", out, "--images", image)["parity"]
    exported = said(capsys, "predict", image, "--weights", out)
    for ours, theirs in zip(answer["classes"], exported["classes"], strict=True):
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-4)
