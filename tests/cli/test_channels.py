"""Networks for images of four channels, and of more, through every verb."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.cli.main import main
from iformer.errors import UserError
from iformer.models.classifier import Classifier
from iformer.models.weights.checkpoint import save
from iformer.models.weights.resolve import load
from iformer.web import manifest
from tiny.classification import write_in_two_classes
from tiny.networks import tiny_config

CLASSES = ("far", "near")
TRAIN = [
    *("--epochs", "1", "--batch-size", "4", "--size", "32", "--precision", "fp32", "--weights", "none"),
    *("--set", "workers=0", "--no-tensorboard", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNGs of four channels and one TIFF; the first three are the same in both classes."""
    folder = tmp_path_factory.mktemp("four")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 36, 4), dtype=np.uint8)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(5):
            pixels[number, ..., 3] = 40 * number + 3 * label
            Image.fromarray(pixels[number]).save(folder / name / f"{number}.png")
    tiff = Image.frombytes("RGBX", (36, 40), pixels[0].tobytes())
    tiff.save(folder / "near" / "unspecified.tif")
    return folder


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that starts from a network of four channels."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("runs")
    save(Classifier(tiny_config(num_classes=2, in_chans=4)), out / "start.safetensors", class_names=CLASSES)
    arguments = ["--model", str(out / "start.safetensors"), "--data", str(photographs), "--out", str(out / "run")]
    assert main(["train", *arguments, *TRAIN, "--set", "cache=ram"]) == 0
    return out / "run"


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("options", [[], pytest.param(["--raw"], marks=pytest.mark.full)])
@pytest.mark.sweep
def test_a_trained_network_evaluates_predicts_and_exports(
    options: list[str], photographs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    artifact = tmp_path / "four.onnx"
    assert load(run).config.in_chans == len(load(run).metadata.preprocessing.mean) == 4
    ours = said(capsys, "eval", run, "--data", photographs, "--split", "all", "--workers", "0")
    images = [photographs / "near" / "0.png", photographs / "near" / "unspecified.tif"]
    answers = [said(capsys, "predict", image, "--weights", run, "--device", "cpu") for image in images]
    other = said(capsys, "predict", photographs / "far" / "4.png", "--weights", run, "--device", "cpu")
    assert other["classes"] != answers[0]["classes"], "the fourth channel is not used"
    arguments = ["export", run, "--to", "onnx", "--out", artifact, "--images", photographs / "near", *options]
    assert said(capsys, *arguments)["parity"]["images"] == 9
    for image, answer in zip(images, answers, strict=True):
        exported = said(capsys, "predict", image, "--weights", artifact)
        values = [{one["name"]: one["probability"] for one in record["classes"]} for record in (answer, exported)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)
    theirs = said(capsys, "eval", artifact, "--data", photographs, "--split", "all", "--workers", "0")
    assert theirs["metrics"]["top1"] == ours["metrics"]["top1"]


def test_pictures_of_four_channels_are_drawn_in_colours(
    photographs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["predict", str(photographs), "--weights", str(run), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*arguments, "--explain"]) == 0
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 11
    assert (tmp_path / "explain.png").is_file()


def test_a_recipe_adds_a_channel_to_a_named_network(photographs: Path, tmp_path: Path) -> None:
    save(Classifier(tiny_config(num_classes=2)), tmp_path / "rgb.safetensors", class_names=CLASSES)
    start = ["--model", str(tmp_path / "rgb.safetensors"), "--data", str(photographs), "--set", "in_chans=4"]
    assert main(["train", *start, "--out", str(tmp_path / "run"), *TRAIN]) == 0
    assert load(tmp_path / "run").config.in_chans == 4


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("augment.rand_augment=rand-m9", "set augment.rand_augment=null"),
        ("distillation={loss: hard, teacher: TEACHER}", "takes images of 3 channels, the student's have 4"),
    ],
)
def test_what_only_three_channels_can_do_is_refused(
    setting: str, complaint: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tmp_path / "rgb.safetensors"
    save(Classifier(tiny_config(num_classes=2)), teacher, class_names=CLASSES)
    start = ["--model", str(teacher), "--data", str(photographs), "--set", "in_chans=4"]
    setting = setting.replace("TEACHER", str(teacher))
    assert main(["train", *start, "--out", str(tmp_path / "run"), *TRAIN, "--set", setting]) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_page_needs_pictures_of_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = tmp_path / "four.safetensors"
    save(Classifier(tiny_config(num_classes=2, in_chans=4)), name, class_names=CLASSES)
    monkeypatch.setattr(manifest, "export_artifact", None)  # not called
    with pytest.raises(UserError) as caught:
        manifest.prepare_artifacts(str(name), ["onnx"], tmp_path)
    assert str(caught.value) == f"{name} takes 4 channels; a camera's pictures have 1 or 3"
    info = SimpleNamespace(runtime="onnx", preprocessing=SimpleNamespace(mean=(0.5,) * 4))
    monkeypatch.setattr(manifest, "read_record", lambda path: info)
    with pytest.raises(UserError, match=r"^my network takes 4 channels"):
        manifest.read_page_artifact(tmp_path / "net.onnx", [], label="my network")


def test_images_without_the_channel_are_named_before_training(
    photographs: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "mixed"
    for name in CLASSES:
        (data / name).mkdir(parents=True)
        for number in range(3):
            with Image.open(photographs / name / f"{number}.png") as image:
                image.save(data / name / f"{number}.png")
    Image.new("RGB", (40, 40)).save(data / "near" / "rgb.png")
    arguments = ["--model", str(run), "--data", str(data), "--out", str(tmp_path / "run")]
    assert main(["train", *arguments, *TRAIN]) == 1
    error = capsys.readouterr().err
    assert f"{data / 'near' / 'rgb.png'}: has 3 channels (RGB), the network takes 4" in error
    record = said(capsys, "predict", data / "near" / "rgb.png", "--weights", run, "--device", "cpu", code=1)
    assert "expected a PNG or TIFF of four channels" in str(record["error"])


@pytest.mark.full
def test_ncnn_gets_the_pixels_of_two_channels(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    from iformer.deploy.runtimes.ncnn import NcnnRunner

    runner = object.__new__(NcnnRunner)
    runner.ncnn = importlib.import_module("ncnn")
    image_HWC = np.random.default_rng(0).integers(0, 256, (64, 48, 2), dtype=np.uint8)
    for _ in range(20):
        mat = runner._mat(image_HWC)
        np.full((2, 64, 48), 7, np.float32)  # takes the memory of what was freed
        np.testing.assert_array_equal(np.array(mat), image_HWC.transpose(2, 0, 1))


def test_a_network_of_more_channels_than_files_have_exports(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    network, artifact = tmp_path / "six.safetensors", tmp_path / "six.onnx"
    save(Classifier(tiny_config(num_classes=2, in_chans=6)), network, class_names=CLASSES)
    parity = said(capsys, "export", network, "--to", "onnx", "--out", artifact)["parity"]
    assert parity["images"] == parity["generated_images"] == 3
    for weights in (network, artifact):
        assert main(["predict", str(photographs / "near" / "0.png"), "--weights", str(weights), "--json"]) == 1
        assert "the network takes images of 6 channels, image files have 1 to 4" in capsys.readouterr().err


def test_the_value_range_of_the_starting_network_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (8, 40, 40)).astype(np.uint16)
    arguments = ["train", "--data", str(write_in_two_classes(tmp_path / "data", values)), *TRAIN]
    save(Classifier(tiny_config(num_classes=2, in_chans=1)), tmp_path / "a.safetensors", class_names=("a", "b"))
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    start = ["--model", str(tmp_path / "a.safetensors"), "--set", "value_range=[0, 4095]"]
    assert main([*arguments, *start, "--out", str(first)]) == 0
    assert main([*arguments, "--model", str(first), "--out", str(second)]) == 0
    assert main([*arguments, "--model", str(first), "--set", "value_range=[0, 9]", "--out", str(third)]) == 0
    ranges = [load(run).metadata.preprocessing.value_range for run in (first, second, third)]
    assert ranges == [(0, 4095), (0, 4095), (0, 9)]
    evaluated = said(capsys, "eval", second, "--data", tmp_path / "data", "--workers", "0")["metrics"]
    log = [json.loads(line) for line in (second / "log.jsonl").read_text().splitlines()]
    trained = [line for line in log if line["event"] == "epoch"][-1]
    assert evaluated["loss"] == pytest.approx(trained["val_loss"], rel=1e-4)
