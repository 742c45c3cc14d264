"""The snippets that run a detector's or segmenter's artifact without this package, as the pages have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from iformer.models.letterbox import letterbox
from iformer.tasks.segmentation.predict import SegmentationPredictor
from tiny.dense import SIZE, copy_of_export, light_detector, light_segmenter
from tiny.pages import code

PAGE = "how-to/export-detectors.md"
OTHERS = ("openvino", "litert", "executorch", "ncnn")


@pytest.fixture
def photograph(photographs: list[Path]) -> Path:
    return photographs[3]


@pytest.mark.parametrize(
    "name",
    [
        "onnx",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("openvino", "litert", "executorch", "ncnn")),
    ],
)
def test_a_detector(
    photograph: Path, tmp_path: Path, shared_exports: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    network = light_detector()
    artifact = copy_of_export("detector", name, shared_exports, tmp_path)
    scope: dict[str, Any] = {"artifact": artifact, "photograph": photograph}
    exec(code(PAGE, "letterbox"), scope)
    image = Image.open(photograph).convert("RGB")
    placed = letterbox(torch.from_numpy(np.array(image)).permute(2, 0, 1), SIZE, fill=network.config.fill)
    difference = placed.image.permute(1, 2, 0).numpy().astype(int) - scope["pixels"][0]
    assert not difference.any()
    exec(code(f"how-to/runtimes/{name}.md", "detector"), scope)
    with torch.inference_mode():
        boxes, scores = network(torch.from_numpy(scope["pixels"]).permute(0, 3, 1, 2) / 255)
    np.testing.assert_allclose(scope["boxes"], boxes[0], atol=0.01)
    np.testing.assert_allclose(scope["scores"], scores[0], atol=1e-4)
    capsys.readouterr()
    exec(code(PAGE, "detections").replace("score > 0.5", "score > 0.1"), scope)
    found = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = network.rule.select(placed.restore(boxes[0]), scores[0], min_score=0.1)
    assert len(found) == len(expected["scores"]) > 3
    # as sets: of two with the same score either may come first, or be the last one that counts
    around = replace(network.rule, detections=200).select(placed.restore(boxes[0]), scores[0])
    rows = torch.cat([around["labels"][:, None], around["scores"][:, None], around["boxes"]], 1)
    names = network.metadata.class_names
    values = torch.tensor([[names.index(words[0]), *map(float, words[1:])] for words in found])
    close = (values[:, None] - rows).abs() <= torch.tensor([0, 2e-3, 0.1, 0.1, 0.1, 0.1])
    assert close.all(2).any(1).all()


@pytest.mark.sweep
def test_a_segmenter(
    photograph: Path, tmp_path: Path, shared_exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    network = light_segmenter()
    artifact = copy_of_export("segmenter", "onnx", shared_exports, tmp_path)
    scope: dict[str, Any] = {"artifact": artifact, "photograph": photograph}
    exec(code(PAGE, "letterbox"), scope)
    session = onnxruntime.InferenceSession(scope["artifact"])
    scope["logits"] = session.run(["logits"], {"image": scope["pixels"]})[0][0]
    exec(code(PAGE, "classes"), scope)
    mask = np.asarray(Image.open("mask.png"))
    answer = SegmentationPredictor(network).answer(Image.open(photograph).convert("RGB"))
    assert mask.shape == answer.shape
    assert (mask == answer).mean() > 0.8
