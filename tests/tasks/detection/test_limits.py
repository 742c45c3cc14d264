"""The most objects of an image and the overlap of the non-maximum suppression, chosen after the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from iformer.errors import UserError
from iformer.models.light_detector import LightDetector
from iformer.tasks.detection.evaluate import evaluate_data
from iformer.tasks.detection.inference import DetectionLimits, LetterboxDetector, object_detector
from iformer.tasks.interface import EvaluateOptions
from tiny.dense import SIZE, light_detector, rcnn

IMAGES = [torch.randint(0, 255, (3, 70, 90), generator=torch.Generator().manual_seed(0)).to(torch.uint8)]


def letterboxed(limits: DetectionLimits) -> LetterboxDetector:
    """What an artifact of the light detector is."""
    network = light_detector()

    def forward(images: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            boxes, scores = network(images.float() / 255)
        return {"boxes": boxes, "scores": scores}

    rule = limits.apply(network.rule)
    return LetterboxDetector(forward, rule, size=SIZE, fill=network.config.fill, num_classes=2)


def found(kind: str, **fields: Any) -> dict[str, Tensor]:
    limits = DetectionLimits(**fields)
    if kind == "artifact":
        return letterboxed(limits).detect(IMAGES)[0]
    return object_detector(light_detector() if kind == "light" else rcnn(masks=False), limits).detect(IMAGES)[0]


@pytest.mark.parametrize("kind", ["light", "rcnn", "artifact"])
def test_fewer_objects_and_less_overlap(kind: str) -> None:
    usual = found(kind)
    fewer = found(kind, detections=2)
    assert len(usual["scores"]) > 3
    assert torch.equal(fewer["scores"], usual["scores"][:2])
    assert torch.equal(fewer["boxes"], usual["boxes"][:2])
    apart = found(kind, nms_iou=0.1)
    assert len(apart["scores"]) < len(found(kind, nms_iou=0.9)["scores"])
    for label in range(2):
        boxes = apart["boxes"][apart["labels"] == label]
        overlap = box_iou(boxes, boxes).nan_to_num()  # boxes at the edge may have no area
        assert (overlap.fill_diagonal_(0) <= 0.1 + 1e-4).all()
    assert torch.equal(found(kind)["boxes"], usual["boxes"])


def test_what_has_no_suppression_says_so() -> None:
    network = light_detector()
    one_to_one = LightDetector(replace(network.config, nms=False)).eval()
    with pytest.raises(UserError, match=r"--iou is 0\.5; this detector suppresses no boxes"):
        object_detector(one_to_one, DetectionLimits(nms_iou=0.5))
    assert object_detector(one_to_one, DetectionLimits(detections=7)).detections == 7
    with pytest.raises(UserError, match="--max-detections is 0"):
        DetectionLimits(detections=0)
    with pytest.raises(UserError, match=r"--iou is 1\.5"):
        DetectionLimits(nms_iou=1.5)


def test_evaluation_takes_them(shapes_data: Path) -> None:
    options = EvaluateOptions(device=torch.device("cpu"), workers=0, max_detections=1)
    evaluation, notes = evaluate_data(light_detector(), str(shapes_data), options)
    assert max(len([r for r in evaluation.results if r["image_id"] == n]) for n in range(100, 104)) == 1
    (note,) = (note for note in notes if "the network reports up to 1" in note)
    assert "give --max-detections 3, or train with --set detections=3" in note
