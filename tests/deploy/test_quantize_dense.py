"""INT8 of detectors and segmenters: judged by box AP and mIoU, on the images that the artifact gets."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from iformer.data.sources.detection import load_detection
from iformer.data.sources.masks import load_semantic
from iformer.deploy.export import export_artifact
from iformer.deploy.quantize import (
    Quantization,
    layers,
    network_forward,
    rank_by_sensitivity,
    read_calibration_images,
)
from iformer.deploy.quiet import quiet
from iformer.deploy.runner import runtime_module
from iformer.deploy.runtimes.registry import RUNTIMES
from iformer.deploy.spec import Calibration, make_spec
from iformer.errors import DataError, MissingDependencyError
from iformer.models.weights.resolve import load
from iformer.tasks.detection.evaluate import evaluate_set as evaluate_detector
from iformer.tasks.export import export_module, exportable
from iformer.tasks.segmentation.evaluate import evaluate_set as evaluate_segmenter
from iformer.training.loop import train
from tiny.dense import BUILDERS, light_detector
from tiny.pyramid import light, light_segmentation
from tiny.shapes import make_shapes

OPTIONS: dict[str, Any] = {"images": 6, "max_drop": 1.0}


@pytest.mark.parametrize(("kind", "metric"), [("detector", "box_ap"), ("segmenter", "miou")])
def test_the_network_is_measured_as_by_eval(shapes_data: Path, kind: str, metric: str) -> None:
    model: Any = BUILDERS[kind]()
    task = model.metadata.task
    options, _ = export_module(task).quantization(model, str(shapes_data), **OPTIONS)
    assert options.metric == metric
    images = sorted((shapes_data / "images" / "train").iterdir())
    assert len(set(options.images)) == 6
    assert set(options.images) <= set(images), "no image of the validation calibrates"
    measured = options.measure(network_forward(make_spec(exportable(model))))
    if task == "detect":
        expected = evaluate_detector(model, load_detection(shapes_data, workers=1).val, workers=0).metrics
    else:
        expected = evaluate_segmenter(model, load_semantic(shapes_data, workers=1).val, workers=0).metrics
    assert measured[metric] == pytest.approx(expected[metric], abs=0.02)
    assert measured["per_class"].keys() == expected["per_class"].keys()


def test_boxes_do_not_drown_scores_in_the_ranking(photographs: list[Path]) -> None:
    """A pixel is hundreds of times a score; layers that only scores depend on are ranked all the same."""
    model = light_detector()
    calibration = Calibration(images=read_calibration_images(photographs[:2], model.config.preprocessing))
    spec = make_spec(exportable(model), precision="int8", calibration=calibration)
    ranked = rank_by_sensitivity(spec)
    assert {name for name, _ in ranked} == set(layers(spec.network))
    first = [name for name, _ in ranked[: len(ranked) // 2]]
    assert any(".classes." in name for name in first)
    assert any(".distances." in name for name in first)


def test_data_without_training_images_cannot_calibrate(tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "data", train=1, val=2, empty=0)
    (data / "annotations" / "instances_train.json").unlink()
    with pytest.raises(DataError):
        export_module("detect").quantization(light_detector(), str(data), **OPTIONS)


@pytest.fixture(scope="module")
def memorised(tmp_path_factory: pytest.TempPathFactory, shapes_data: Path) -> dict[str, Any]:
    """A detector and a segmenter that overfit eight images."""
    folder = tmp_path_factory.mktemp("memorised")
    fields = {"epochs": 60, "warmup_epochs": 3, "hflip": 0.0, "eval_every": 60, "ema_decay": 0.9}
    for name, make in (("detect", light), ("segment", light_segmentation)):
        train(make(shapes_data, folder / name, memorise=True, fields=fields))
    return {name: load(folder / name / "last.safetensors") for name in ("detect", "segment")}


@pytest.mark.full
@pytest.mark.parametrize("name", ["onnx", "openvino", "executorch", "litert"])
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_int8_loses_a_point_at_most(
    memorised: dict[str, Any], shapes_data: Path, tmp_path: Path, task: str, name: str
) -> None:
    try:
        RUNTIMES[name].require("int8")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    model = memorised[task]
    options, _ = export_module(task).quantization(model, str(shapes_data), images=8, max_drop=1.0)
    path = tmp_path / f"net{RUNTIMES[name].suffix}"
    info = export_artifact(exportable(model), path, name, precision="int8", quantization=options)
    assert info.accuracy is not None
    assert info.quantization is not None
    assert info.accuracy["drop"] <= 1.0
    assert info.accuracy["network"][options.metric] > 20
    assert len(info.quantization["kept"]) <= info.quantization["layers"] / 2
    assert info.parity is not None
    assert info.parity["max_relative_error"] > 1e-4, "it is not quantized"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("openvino", marks=pytest.mark.sweep),
        *(pytest.param(name, marks=pytest.mark.full) for name in ("onnx", "executorch", "litert")),
    ],
)
@pytest.mark.parametrize(
    ("kind", "kept", "other"),
    [
        (
            "detector",
            "head.levels.1.classes.0.pointwise",
            "head.levels.2.classes.0.pointwise",  # the same layer of another level
        ),
        ("segmenter", "head.mix.pointwise", "pyramid.neck.top_down.0.pointwise"),
    ],
)
def test_a_layer_that_is_kept_has_its_own_weights(
    photographs: list[Path], tmp_path: Path, name: str, kind: str, kept: str, other: str
) -> None:
    try:
        RUNTIMES[name].require("int8")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    network = exportable(BUILDERS[kind]())
    images = read_calibration_images(photographs[:2], network.metadata.preprocessing)
    spec = make_spec(network, precision="int8", calibration=Calibration(images=images, kept=(kept,)))
    path = tmp_path / f"kept{RUNTIMES[name].suffix}"
    with quiet(), torch.no_grad():
        runtime_module(name).write(spec, path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    content = b"".join(file.read_bytes() for file in files)

    def is_stored(layer: str) -> bool:
        weight = spec.network.get_parameter(f"{layer}.weight").numpy()
        orders = permutations(range(weight.ndim))
        return any(np.ascontiguousarray(weight.transpose(order)).tobytes() in content for order in orders)

    assert is_stored(kept)
    assert not is_stored(other)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("openvino", marks=pytest.mark.sweep),
        *(pytest.param(name, marks=pytest.mark.full) for name in ("onnx", "executorch", "litert")),
    ],
)
def test_large_boxes_leave_small_ones_as_they_are(photographs: list[Path], tmp_path: Path, name: str) -> None:
    """If decoded boxes were rounded to 8 bits, one box of thousands of pixels would round all others away."""
    try:
        RUNTIMES[name].require("int8")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    model = light_detector()
    for level, log_distance in zip(model.head.levels, (0.5, 0.5, 5.5), strict=True):
        torch.nn.init.constant_(level.distances[-1].bias, log_distance)
        torch.nn.init.normal_(level.distances[-1].weight, std=0.01)
    network = exportable(model)
    options = Quantization(images=photographs[:1], measure=lambda forward: {"top1": 100.0})
    path = tmp_path / f"boxes{RUNTIMES[name].suffix}"
    export_artifact(network, path, name, precision="int8", quantization=options)
    pixels = read_calibration_images(photographs[:1], network.metadata.preprocessing)
    expected = network_forward(make_spec(network))(pixels)["boxes"]
    found = runtime_module(name).RUNNER.for_check(path)(pixels)["boxes"]
    side = expected[..., 2] - expected[..., 0]
    assert side.max() > 5000
    small = side[0] < 40
    assert small.sum() > 50
    torch.testing.assert_close(found[0, small], expected[0, small], atol=2.0, rtol=0)
