"""The snippets that run a detector's or segmenter's artifact without this package, as the pages have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from iformer.deploy.export import export_artifact
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import MissingDependencyError
from iformer.models.letterbox import letterbox
from iformer.tasks.detection.predict import DetectionPredictor
from iformer.tasks.export import exportable
from iformer.tasks.segmentation.predict import SegmentationPredictor
from tiny.dense import SIZE, light_detector, light_segmenter
from tiny.pages import code

PAGE = "how-to/export-detectors.md"
OTHERS = ("openvino", "litert", "executorch", "ncnn")


@pytest.fixture
def photograph(photographs: list[Path]) -> Path:
    return photographs[3]


def artifact_of(network: Any, name: str, folder: Path) -> Path:
    try:
        RUNTIMES[name].require()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    path = folder / f"net{RUNTIMES[name].suffix}"
    export_artifact(exportable(network), path, name)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "onnx",
        *(pytest.param(name, marks=pytest.mark.sweep) for name in ("openvino", "litert", "executorch", "ncnn")),
    ],
)
def test_a_detector(photograph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    network = light_detector()
    for level in network.one_to_one.levels:  # scores on both sides of the 0.5 that the snippet shows
        torch.nn.init.constant_(level.classes[-1].bias, 1.5)  # type: ignore[union-attr, index, arg-type]
    scope: dict[str, Any] = {"artifact": artifact_of(network, name, tmp_path), "photograph": photograph}
    exec(code(PAGE, "letterbox"), scope)
    image = Image.open(photograph).convert("RGB")
    expected = letterbox(torch.from_numpy(np.array(image)).permute(2, 0, 1), SIZE, fill=network.config.fill)
    difference = expected.image.permute(1, 2, 0).numpy().astype(int) - scope["pixels"][0]
    assert abs(difference).max() <= 1, "Pillow and torchvision round differently"
    exec(code(f"how-to/runtimes/{name}.md", "detector"), scope)
    capsys.readouterr()
    exec(code(PAGE, "detections"), scope)
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    answer = DetectionPredictor(network, min_score=0.5).answer(image)
    assert len(found) == len(answer["scores"]) > 3
    for words, score in zip(found, answer["scores"].tolist(), strict=True):
        assert float(words[1]) == pytest.approx(score, abs=0.01)
    boxes = torch.tensor([[float(value) for value in words[2:]] for words in found])
    limits = torch.tensor([image.width, image.height] * 2)
    cut = torch.minimum(boxes.clamp(min=0), limits)
    assert box_iou(cut, answer["boxes"]).amax(1).min() > 0.95


def test_a_segmenter(photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    network = light_segmenter()
    scope: dict[str, Any] = {"artifact": artifact_of(network, "onnx", tmp_path), "photograph": photograph}
    exec(code(PAGE, "letterbox"), scope)
    session = onnxruntime.InferenceSession(scope["artifact"])
    scope["logits"] = session.run(["logits"], {"image": scope["pixels"]})[0][0]
    exec(code(PAGE, "classes"), scope)
    mask = np.asarray(Image.open("mask.png"))
    answer = SegmentationPredictor(network).answer(Image.open(photograph).convert("RGB"))
    assert mask.shape == answer.shape
    assert (mask == answer).mean() > 0.8
