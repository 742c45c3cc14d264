"""Tiny runs of detection and segmentation; also a program that evaluates in one of two processes."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from iformer.config.network import AttentionConfig, NetworkConfig, StageConfig
from iformer.config.recipe import Recipe
from iformer.data.sources.detection import load_detection
from iformer.data.sources.masks import load_semantic
from iformer.models.detector import Detector
from iformer.models.light_detector import LightDetector
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.tasks.detection.config import DetectionRecipe
from iformer.tasks.detection.training import detection_job
from iformer.tasks.segmentation.config import SegmentationRecipe
from iformer.tasks.segmentation.training import segmentation_job
from iformer.training.job import RunSettings, TrainJob

COMMON: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 4,
    "lr_batch": 4,
    "warmup_epochs": 1,
    "freeze": "none",
    "workers": 0,
    "clip_grad": 5.0,
    "ema_decay": 0.9,
    "size": 96,
    "max_size": 96,
    "hflip": 0.5,
    "precision": "fp32",
    "fpn_channels": 32,
    "log_every": 1,
}


def backbone_config() -> NetworkConfig:
    """Every kind of block, large enough to overfit eight images."""
    stages = tuple(
        StageConfig(
            channels=channels,
            pattern=(("conv", 1), ("attention", 1)) if index >= 2 else (("conv", 1),),
            conv_expansion_ratio=2,
            attention=AttentionConfig(ffn_expansion_ratio=2),
        )
        for index, channels in enumerate((16, 24, 32, 48))
    )
    return NetworkConfig(name="tiny", stages=stages, num_classes=0)


def run_settings(recipe: Recipe, folder: Path, **options: Any) -> RunSettings:
    """Settings of a tiny run; `options` are fields of `RunSettings`."""
    options = {"tensorboard": False, "report": False, "device": "cpu", **options}
    return RunSettings(data_name="shapes", recipe=recipe, recipe_name="tiny", folder=folder, **options)


def detection(data: Path, folder: Path, *, memorise: bool = False, fields: Any = None, **options: Any) -> TrainJob:
    """A Mask R-CNN of a few hundred thousand parameters; `memorise`: validated on its training images."""
    heads = {"box_head_channels": 64, "mask_head_channels": 32, "mask_head_depth": 1, "rois": 32, "proposals": 64}
    recipe = DetectionRecipe.from_plain({"lr": 2e-3, **COMMON, **heads, **(fields or {})})
    split = load_detection(data, workers=1)
    torch.manual_seed(0)
    return detection_job(
        replace(split, val=split.train) if memorise else split,
        run_settings(recipe, folder, **options),
        model=Detector(recipe.detector_config(backbone_config(), num_classes=2)),
    )


def segmentation(
    data: Path, folder: Path, *, memorise: bool = False, fields: Any = None, **options: Any
) -> TrainJob:
    """A Semantic FPN; see `detection`."""
    heads = {"head_channels": 32, "dropout": 0.0, "resize": (1.0, 1.0), "photometric": False}
    recipe = SegmentationRecipe.from_plain({"lr": 3e-3, **COMMON, **heads, **(fields or {})})
    split = load_semantic(data, workers=1)
    torch.manual_seed(0)
    return segmentation_job(
        replace(split, val=split.train) if memorise else split,
        run_settings(recipe, folder, **options),
        model=Segmenter(recipe.segmenter_config(backbone_config(), num_classes=3)),
    )


def light(data: Path, folder: Path, *, memorise: bool = False, fields: Any = None, **options: Any) -> TrainJob:
    """A light detector; see `detection`."""
    common = {name: value for name, value in COMMON.items() if name not in ("fpn_channels", "max_size")}
    network = {"network": "light", "light": {"channels": 32, "head_depth": 1}}
    recipe = DetectionRecipe.from_plain({"lr": 4e-3, **common, **network, **(fields or {})})
    split = load_detection(data, workers=1)
    torch.manual_seed(0)
    return detection_job(
        replace(split, val=split.train) if memorise else split,
        run_settings(recipe, folder, **options),
        model=LightDetector(recipe.light_config(backbone_config(), num_classes=2)),
    )


def light_segmentation(
    data: Path, folder: Path, *, memorise: bool = False, fields: Any = None, **options: Any
) -> TrainJob:
    """A light segmenter; see `detection`."""
    common = {name: value for name, value in COMMON.items() if name not in ("fpn_channels", "max_size")}
    network = {"network": "light", "light": {"channels": 32, "dropout": 0.0}}
    augment = {"resize": (1.0, 1.0), "photometric": False}
    recipe = SegmentationRecipe.from_plain({"lr": 4e-3, **common, **network, **augment, **(fields or {})})
    split = load_semantic(data, workers=1)
    torch.manual_seed(0)
    return segmentation_job(
        replace(split, val=split.train) if memorise else split,
        run_settings(recipe, folder, **options),
        model=LightSegmenter(recipe.light_config(backbone_config(), num_classes=3)),
    )


JOBS = {"detect": detection, "light": light, "segment": segmentation, "light-segment": light_segmentation}


def main() -> None:
    """Train a tiny job: `python -m tiny.pyramid TASK DATA OUT RECIPE-FIELDS-AS-JSON`."""
    from iformer.training.loop import train

    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=JOBS)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("fields", type=json.loads)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(JOBS[arguments.task](arguments.data, arguments.out, fields=arguments.fields))


if __name__ == "__main__":
    sys.exit(main())
