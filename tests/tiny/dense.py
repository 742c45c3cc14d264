"""Tiny detectors and segmenters with class names, for exports; always the same weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from filelock import FileLock
from torch import nn

from iformer.config.detector import DetectorConfig
from iformer.config.light_detector import LightDetectorConfig
from iformer.config.segmenter import LightSegmenterConfig, SegmenterConfig
from iformer.deploy.artifact import is_artifact, record_path
from iformer.deploy.export import export_artifact
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.errors import MissingDependencyError
from iformer.models.detector import Detector
from iformer.models.light_detector import LightDetector
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.tasks.export import exportable
from tiny.networks import randomize, tiny_config

SIZE = (64, 96)
"""Height and width of the inputs."""

ModelT = TypeVar("ModelT", Detector, LightDetector, LightSegmenter, Segmenter)


def light_detector(class_names: tuple[str, ...] = ("disc", "square"), **options: Any) -> LightDetector:
    """Return a light detector; `options` are fields of its config."""
    torch.manual_seed(0)
    config = LightDetectorConfig(
        backbone=tiny_config(num_classes=0),
        num_classes=len(class_names),
        channels=8,
        kernel_size=3,
        head_depth=1,
        input_size=SIZE,
        **options,
    )
    detector = _finished(LightDetector(config), class_names)
    for level in detector.head.levels:
        _spread(level.classes[-1], std=20.0, bias=0.0)  # type: ignore[union-attr, index]
        _spread(level.distances[-1], std=2.0, bias=0.7)  # type: ignore[union-attr, index]
    return detector


def light_segmenter(class_names: tuple[str, ...] = ("background", "disc", "square")) -> LightSegmenter:
    """Return a light segmenter."""
    torch.manual_seed(0)
    config = LightSegmenterConfig(
        backbone=tiny_config(num_classes=0),
        num_classes=len(class_names),
        channels=8,
        kernel_size=3,
        input_size=SIZE,
    )
    segmenter = _finished(LightSegmenter(config), class_names)
    _spread(segmenter.head.classify, std=10.0, bias=0.0)
    return segmenter


def semantic_fpn(class_names: tuple[str, ...] = ("background", "disc", "square")) -> Segmenter:
    """Return a Semantic FPN."""
    torch.manual_seed(0)
    config = SegmenterConfig(
        backbone=tiny_config(num_classes=0),
        num_classes=len(class_names),
        size=64,
        max_size=128,
        fpn_channels=8,
        head_channels=32,
    )
    return _finished(Segmenter(config), class_names)


def rcnn(class_names: tuple[str, ...] = ("disc", "square"), *, masks: bool = True) -> Detector:
    """Return a Mask R-CNN or Faster R-CNN that finds something on any image."""
    torch.manual_seed(0)
    config = DetectorConfig(
        backbone=tiny_config(num_classes=0),
        num_classes=len(class_names),
        size=96,
        max_size=128,
        masks=masks,
        fpn_channels=32,
        box_head_channels=32,
        mask_head_channels=16,
        mask_head_depth=1,
        proposals=40,
        detections=100,
    )
    detector = _finished(Detector(config), class_names)
    heads: Any = detector.rcnn.roi_heads
    _spread(heads.box_predictor.cls_score, std=20.0, bias=0.0)
    _spread(heads.box_predictor.bbox_pred, std=5.0, bias=0.0)
    return detector


BUILDERS = {"detector": light_detector, "segmenter": light_segmenter, "semantic-fpn": semantic_fpn}


def _spread(conv: Any, *, std: float, bias: float) -> None:
    """Give the last layer outputs that differ from point to point as those of a trained network do."""
    torch.manual_seed(1)
    nn.init.normal_(conv.weight, std=std)
    nn.init.constant_(conv.bias, bias)


def _finished(network: ModelT, class_names: tuple[str, ...]) -> ModelT:
    randomize(network)
    network.metadata = replace(network.metadata, class_names=class_names)
    return network.eval()


def copy_of_export(kind: str, runtime: str, shared: Path, folder: Path) -> Path:
    """Return a fresh copy, in `folder`, of a network's fp32 artifact, which is made once for all tests.

    Args:
        kind: one of `BUILDERS`.
        runtime: one of `RUNTIMES`; the test is skipped where it is not installed.
        shared: the fixture `shared_exports`.
        folder: where the copy and its record go.
    """
    row = RUNTIMES[runtime]
    try:
        row.require()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    path = shared / f"{kind}{row.suffix}"
    with FileLock(shared / f"{path.name}.lock"):
        if not is_artifact(path):
            photographs = sorted(shared.glob("*.jpg"))
            export_artifact(
                exportable(BUILDERS[kind]()), path, runtime, size=SIZE, precision="fp32", images=photographs
            )
    copied = folder / path.name
    (shutil.copytree if path.is_dir() else shutil.copy)(path, copied)
    shutil.copy(record_path(path), folder)
    return copied
