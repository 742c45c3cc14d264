"""INT8: the ranking of layers, the search for layers in higher precision, and the artifacts of each runtime."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from iformer.data.images import read_image
from iformer.data.transforms import Normalize, eval_transform
from iformer.deploy import quantize
from iformer.deploy.artifact import artifact_bytes, read_record
from iformer.deploy.export import export_artifact
from iformer.deploy.exportable import Forward
from iformer.deploy.quantize import (
    Quantization,
    few_images_note,
    layers,
    quantize_until_it_holds,
    rank_by_sensitivity,
    read_calibration_images,
)
from iformer.deploy.quiet import quiet
from iformer.deploy.runner import runtime_module
from iformer.deploy.runtimes.litert import products_of_activations
from iformer.deploy.runtimes.registry import QUANTIZED, RUNTIMES, find_runtime
from iformer.deploy.spec import Calibration, ExportSpec, folded_for_export, make_spec
from iformer.errors import MissingDependencyError, UserError
from iformer.models.classifier import Classifier
from iformer.tasks.export import exportable

PAIRS = [
    (name, precision) for name, row in RUNTIMES.items() for precision in row.precisions if precision in QUANTIZED
]
each_pair = pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*pair, marks=() if pair[0] == "onnx" else pytest.mark.sweep) for pair in PAIRS],
)
"""One runtime in the fast tests, all in the sweep: converters and quantizers of the others are slow."""
each_pair_once = pytest.mark.parametrize(
    ("name", "precision"),
    [pytest.param(*pair, marks=() if pair[0] == "onnx" else pytest.mark.full) for pair in PAIRS],
)
"""One runtime in the fast tests, all in the full ones."""


@pytest.fixture
def agreement(model: Classifier, photographs: list[Path]) -> Callable[[Forward], dict[str, float]]:
    """A metric: how many photographs get the network's own answer, in percent."""
    decode = eval_transform(model.metadata.preprocessing)
    pixels = torch.stack([decode(read_image(path)) for path in photographs])
    with torch.inference_mode():
        own = model(Normalize(model.metadata.preprocessing)(pixels)).argmax(1)
    return lambda forward: {"top1": 100 * float((forward(pixels)["logits"].argmax(1) == own).float().mean())}


@pytest.fixture
def spec(model: Classifier, photographs: list[Path]) -> ExportSpec:
    calibration = Calibration(images=read_calibration_images(photographs, model.metadata.preprocessing))
    return make_spec(exportable(model), precision="int8", calibration=calibration)


def need(name: str, precision: str) -> None:
    """Skip where a runtime or its quantizer is not installed."""
    try:
        RUNTIMES[name].require(precision)
    except MissingDependencyError as error:
        pytest.skip(str(error))


# ------------------------------------------------------------------------------------- shared by the runtimes


def test_the_layer_whose_channels_differ_most_is_ranked_first(spec: ExportSpec) -> None:
    """One channel a thousand times the others, and divided out again behind it: the same function in fp32."""
    network = copy.deepcopy(spec.network)
    expand = network.get_submodule("stages.0.blocks.0.depthwise")
    project = network.get_submodule("stages.0.blocks.0.expand")
    with torch.no_grad():
        expand.weight[0] *= 1000  # type: ignore[operator, index]
        expand.bias[0] *= 1000  # type: ignore[operator, index]
        project.weight[:, 0] /= 1000  # type: ignore[operator, index]
    ranked = rank_by_sensitivity(replace(spec, network=network))
    assert ranked[0][0] in ("stages.0.blocks.0.depthwise", "stages.0.blocks.0.expand")
    assert ranked[0][1] > 3 * ranked[2][1]
    assert {name for name, _ in ranked} == set(layers(network))
    before = dict(spec.network.state_dict())
    assert all(torch.equal(before[key], value) for key, value in spec.network.state_dict().items())


def runner_that_holds_from(count: int) -> Callable[[ExportSpec], Any]:
    """Stands for a conversion whose metric is 90 % with `count` layers left as they were, and 50 % before."""

    def build(spec: ExportSpec) -> Any:
        assert spec.calibration is not None
        return SimpleNamespace(top1=90.0 if len(spec.calibration.kept) >= count else 50.0)

    return build


def test_the_fewest_layers_go_back_the_worst_first(spec: ExportSpec) -> None:
    options = Quantization(images=(), measure=lambda forward: {"top1": forward.top1})  # type: ignore[attr-defined]
    ranked = [name for name, _ in rank_by_sensitivity(spec)]
    _, attempts = quantize_until_it_holds(spec, options, runner_that_holds_from(3), {"top1": 90.5})
    assert [len(attempt.kept) for attempt in attempts] == [0, 1, 2, 4]
    assert [attempt.drop for attempt in attempts] == [40.5, 40.5, 40.5, 0.5]
    assert list(attempts[-1].kept) == ranked[:4]
    most = len(ranked) // 2
    _, attempts = quantize_until_it_holds(spec, options, runner_that_holds_from(most), {"top1": 90.5})
    assert len(attempts[-1].kept) == most
    with pytest.raises(UserError, match=r"falls by more than 1 points from 90.50 % .*40.50 with 0, 40.50 with 1"):
        quantize_until_it_holds(spec, options, runner_that_holds_from(most + 1), {"top1": 90.5})


@pytest.mark.parametrize(
    ("images", "max_drop", "expected"),
    [
        (8, 1.0, "one of 8 validation images is worth about 12.5 points of top-1, and --max-drop is 1: "),
        (3, 30.0, "--max-drop 33.4"),
        (8, 12.5, None),
        (100, 1.0, None),
    ],
)
def test_few_validation_images_are_named(images: int, max_drop: float, expected: str | None) -> None:
    lines = few_images_note(images, metric="top-1", max_drop=max_drop)
    assert lines == [] if expected is None else len(lines) == 1 and expected in lines[0]


# ------------------------------------------------------------------------------------------- every runtime


def forms(weight: torch.Tensor, dtype: Any) -> list[bytes]:
    """A weight's bytes in every order of axes that a format may keep it in."""
    value = weight.numpy().astype(dtype)
    return [np.ascontiguousarray(value.transpose(order)).tobytes() for order in permutations(range(value.ndim))]


def everything_in(path: Path) -> bytes:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return b"".join(file.read_bytes() for file in files)


@each_pair
def test_the_artifact_answers_as_the_network_does(
    model: Classifier,
    tmp_path: Path,
    photographs: list[Path],
    agreement: Callable[[Forward], dict[str, float]],
    name: str,
    precision: str,
) -> None:
    need(name, precision)
    said: list[str] = []
    path = tmp_path / f"tiny{RUNTIMES[name].suffix}"
    options = Quantization(
        images=photographs, measure=agreement, max_drop=30, data="photographs", report=said.append
    )
    info = export_artifact(
        exportable(model), path, name, precision=precision, images=photographs, quantization=options
    )
    assert read_record(path) == info
    assert info.precision == precision
    assert info.accuracy is not None
    assert info.quantization is not None
    assert info.accuracy["network"]["top1"] == 100
    assert info.accuracy["drop"] == 100 - info.accuracy["metrics"]["top1"] <= 30
    assert info.quantization["calibration_images"] == len(photographs)
    assert info.quantization["kept"] == []
    assert len(said) == len(info.quantization["tried"]) == 1
    assert info.parity is not None
    assert info.parity["max_relative_error"] > 1e-4, "it is not quantized"
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]
    # the fp32 weights are 0.14 MB
    assert artifact_bytes(path) < 400_000
    weight = folded_for_export(exportable(model)).get_submodule("stages.2.blocks.0.expand").weight
    assert isinstance(weight, torch.Tensor)
    content = everything_in(path)
    assert not any(form in content for dtype in (np.float32, np.float16) for form in forms(weight, dtype))


@each_pair_once
def test_a_layer_that_is_kept_has_its_own_weights(
    spec: ExportSpec, tmp_path: Path, name: str, precision: str
) -> None:
    need(name, precision)
    kept = "stages.2.blocks.0.expand"
    assert spec.calibration is not None
    calibration = Calibration(images=spec.calibration.images[:2], kept=(kept,))
    changed = replace(spec, precision=precision, calibration=calibration)
    path = tmp_path / f"kept{find_runtime(name).suffix}"
    with quiet(), torch.no_grad():
        runtime_module(name).write(changed, path)
    weight, other = (spec.network.get_submodule(layer).weight for layer in (kept, "stages.2.blocks.0.project"))
    assert isinstance(weight, torch.Tensor)
    assert isinstance(other, torch.Tensor)
    dtype = np.float16 if name == "coreml" else np.float32
    content = everything_in(path)
    assert any(form in content for form in forms(weight, dtype))
    assert not any(form in content for form in forms(other, dtype))
    if name == "litert":
        # LiteRT's own kernels for INT8 products of activations round differently on ARM and on x86
        flatbuffers = pytest.importorskip("ai_edge_litert.tools.flatbuffer_utils")
        (graph,) = flatbuffers.read_model(path).subgraphs
        types = {tensor.name.decode(): tensor.type for tensor in graph.tensors}
        products = products_of_activations(path.read_bytes())
        assert products
        assert {types[product] for product in products} == {flatbuffers.TensorType.FLOAT32}


@pytest.mark.parametrize("saturates", [True, False])
def test_onnx_weights_have_7_bits_where_products_of_8_saturate(
    spec: ExportSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    need("onnx", "int8")
    import onnx

    monkeypatch.setattr("iformer.deploy.runtimes.onnx._products_saturate", lambda: saturates)
    assert spec.calibration is not None
    calibration = Calibration(images=spec.calibration.images[:2])
    path = tmp_path / "a.onnx"
    with quiet(), torch.no_grad():
        runtime_module("onnx").write(replace(spec, precision="int8", calibration=calibration), path)
    tensors = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    weights = [array for array in tensors if array.dtype == np.int8 and array.ndim == 4]
    assert len(weights) > 10
    assert max(np.abs(array.astype(int)).max() for array in weights) == (64 if saturates else 127)


@pytest.mark.full
def test_the_symmetric_scheme_is_what_tensorrt_takes(
    model: Classifier, tmp_path: Path, photographs: list[Path], agreement: Callable[[Forward], dict[str, float]]
) -> None:
    """Signed activations with the zero point 0, and biases that are not quantized."""
    need("onnx", "int8")
    onnx: Any = pytest.importorskip("onnx")
    path = tmp_path / "tiny.onnx"
    options = Quantization(images=photographs, measure=agreement, max_drop=30, scheme="symmetric")
    info = export_artifact(exportable(model), path, "onnx", precision="int8", quantization=options)
    assert info.quantization is not None
    assert info.quantization["scheme"] == "symmetric"
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantizers = ("QuantizeLinear", "DequantizeLinear")
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type in quantizers]
    assert len(zeros) > 50
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros)
    biases = [node.input[2] for node in graph.node if node.op_type == "Conv"]
    assert {constants[bias].dtype for bias in biases} == {np.dtype(np.float32)}


@pytest.mark.sweep
def test_nothing_is_left_of_an_artifact_that_cannot_hold(
    model: Classifier, tmp_path: Path, photographs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx", "int8")
    monkeypatch.setattr(quantize, "MAX_KEPT_SHARE", 0.01)  # none and one layer: two conversions
    answers = iter([90.0])
    options = Quantization(images=photographs, measure=lambda _forward: {"top1": next(answers, 10.0)})
    with pytest.raises(UserError, match="top1 falls by more than 1 points from 90"):
        export_artifact(
            exportable(model), tmp_path / "new" / "a.onnx", "onnx", precision="int8", quantization=options
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.sweep
def test_accuracy_control_is_nncfs(
    model: Classifier, tmp_path: Path, photographs: list[Path], agreement: Callable[[Forward], dict[str, float]]
) -> None:
    need("openvino", "int8")
    options = Quantization(images=photographs, measure=agreement, max_drop=30, accuracy_control=True)
    info = export_artifact(
        exportable(model), tmp_path / "a.openvino", "openvino", precision="int8", quantization=options
    )
    assert info.accuracy is not None
    assert info.accuracy["drop"] <= 30


@pytest.mark.parametrize(
    ("name", "precision", "quantization", "message"),
    [
        ("onnx", "int8", None, "precision is 'int8'; it needs labelled images"),
        ("onnx", "fp32", {}, "precision is 'fp32'; images to calibrate with are for int8"),
        ("onnx", "int8", {"accuracy_control": True}, "--accuracy-control is for OpenVINO in int8"),
        ("onnx", "int8", {}, "needs images to calibrate with"),
        ("openvino", "int8", {"scheme": "symmetric"}, "int8-scheme symmetric is for ONNX in int8"),
        ("onnx", "int8", {"scheme": "odd"}, "int8-scheme is 'odd'; expected asymmetric or symmetric"),
        ("ncnn", "int8", {}, "precision is 'int8'; ncnn supports fp32, fp16"),
    ],
)
def test_impossible_options(
    model: Classifier, tmp_path: Path, name: str, precision: str, quantization: Any, message: str
) -> None:
    need(name, precision)
    chosen = None
    if quantization is not None:
        chosen = Quantization(images=(), measure=lambda _forward: {"top1": 1.0}, **quantization)
    with pytest.raises(UserError, match=message):
        export_artifact(exportable(model), tmp_path / "new" / "a", name, precision=precision, quantization=chosen)
    assert not list(tmp_path.iterdir())
