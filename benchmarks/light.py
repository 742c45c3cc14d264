"""Latency and size of the light detector and segmenter against their backbone alone, in ONNX Runtime.

fp32, one thread, batch 1, iFormer-T, random weights, outputs without post-processing. The backbone is a classifier
of the same design at the same size; Mask R-CNN and Semantic FPN are beside them. The networks take turns.

    python benchmarks/light.py --out benchmarks/results/light.json
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import append_record
from torch import nn

import iformer
from iformer.bench.latency import measure
from iformer.bench.subjects import BenchSubject, prepare_subject
from iformer.config.metadata import Metadata
from iformer.config.network import NetworkConfig
from iformer.config.pyramid import PyramidRecipe
from iformer.deploy.export import convert
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.deploy.spec import make_spec
from iformer.models.detector import Detector
from iformer.models.factory import build
from iformer.models.light_detector import LightDetector
from iformer.models.light_segmenter import LightSegmenter
from iformer.models.segmenter import Segmenter
from iformer.tasks.detection.config import DetectionRecipe
from iformer.tasks.export import exportable
from iformer.tasks.registry import load_recipe
from iformer.tasks.segmentation.config import SegmentationRecipe

SIZES = (320, 512)
RECIPES = ("detection-light", "detection", "segmentation-light", "segmentation")
CLASSES = {"detect": 80, "segment": 150}


def networks(model: str, size: int) -> dict[str, nn.Module]:
    """Return the networks of the recipes by their label; the first one is the backbone of the light ones."""

    def features(recipe: PyramidRecipe) -> NetworkConfig:
        backbone = iformer.create_model(model, features_only=True, **recipe.network_options)
        return backbone.config.with_options(num_classes=0)

    light_boxes, boxes, light_pixels, pixels = (load_recipe(name, {"size": size}) for name in RECIPES)
    assert isinstance(light_boxes, DetectionRecipe)
    assert isinstance(boxes, DetectionRecipe)
    assert isinstance(light_pixels, SegmentationRecipe)
    assert isinstance(pixels, SegmentationRecipe)
    backbone = features(light_boxes)
    classifier = build(backbone.with_options(num_classes=1000))
    classifier.metadata = Metadata(preprocessing=replace(classifier.metadata.preprocessing, size=(size, size)))
    detect, segment = ({"num_classes": CLASSES[task]} for task in ("detect", "segment"))
    return {
        "backbone": classifier,
        "light detector": LightDetector(light_boxes.light_config(backbone, **detect)),
        "light segmenter": LightSegmenter(light_pixels.light_config(features(light_pixels), **segment)),
        "Mask R-CNN": Detector(boxes.detector_config(features(boxes), **detect)),
        "Semantic FPN": Segmenter(pixels.segmenter_config(features(pixels), **segment)),
    }


def artifact(label: str, network: nn.Module, folder: Path) -> BenchSubject:
    """Export without the comparison of outputs: an R-CNN with random weights has no score to compare."""
    runtime, path = RUNTIMES["onnx"], folder / f"{label.replace(' ', '_')}.onnx"
    spec = make_spec(exportable(network))
    convert(runtime, spec, path, weights_sha256=hashlib.sha256(b"").hexdigest(), provenance={"weights": "random"})
    return prepare_subject(str(path), runtime, folder, label=label)


def main() -> None:
    """Measure, print a table and, with --out, write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="iformer_t")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    parameters: dict[str, float] = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            subjects = []
            for label, network in networks(options.model, size).items():
                parameters[label] = sum(parameter.numel() for parameter in network.parameters()) / 1e6
                subjects.append(artifact(label, network.eval(), Path(folder)))
            rows = measure(subjects, rounds=options.rounds, calls=2)
        alone = rows[0].median_ms
        figures[str(size)] = {
            row.label: row.to_plain()
            | {"million parameters": parameters[row.label], "times the backbone": row.median_ms / alone}
            for row in rows
        }
        for row in rows:
            print(f"{size}  {row.label:16} {row.median_ms:8.1f} ms  {row.median_ms / alone:5.2f}x")
    if options.out:
        append_record(options.out, figures)


if __name__ == "__main__":
    main()
