"""Tiny detectors and segmenters with class names, for exports; always the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from iformer.config.light_detector import LightDetectorConfig
from iformer.config.segmenter import LightSegmenterConfig, SegmenterConfig
from iformer.models.light_detector import LightDetector
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.models.weights.checkpoint import save
from tiny.networks import randomize, tiny_config

SIZE = (64, 96)
"""Height and width of the inputs."""

ModelT = TypeVar("ModelT", LightDetector, LightSegmenter, Segmenter)


def light_detector(class_names: tuple[str, ...] = ("disc", "square")) -> LightDetector:
    """Return a light detector."""
    torch.manual_seed(0)
    config = LightDetectorConfig(
        backbone=tiny_config(num_classes=0),
        num_classes=len(class_names),
        channels=8,
        kernel_size=3,
        head_depth=1,
        input_size=SIZE,
    )
    detector = _finished(LightDetector(config), class_names)
    for level in detector.one_to_one.levels:
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


def save_all(folder: Path) -> dict[str, Path]:
    """Save a checkpoint of each network, and return their paths by kind."""
    paths = {kind: folder / f"{kind}.safetensors" for kind in BUILDERS}
    for kind, build in BUILDERS.items():
        save(build(), paths[kind])
    return paths
