"""OpenVINO: a folder with `model.xml` and `model.bin`, and running it on the CPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iformer.data.transforms import Normalize
from iformer.dependencies import require, without_telemetry
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.spec import INPUT, OUTPUT, ExportSpec, Written, operation_counts
from iformer.errors import UserError

EXTRA = "openvino"
SECTION = "iformer"
"""The part of the model's `rt_info` that holds class names and preprocessing."""


def write(graph: ExportSpec, path: Path) -> Written:
    """Convert a network; with fp16 the weights are stored in half precision and computed with in fp32."""
    openvino = require("openvino", extra=EXTRA)
    # NNCF's statistics of a graph with a fixed batch crash the CPU plugin: it is fixed when they are done
    free = graph if graph.calibration is None else replace(graph, batch=None)
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if free.batch is None else None
    example = free.example("NHWC")
    program = torch.export.export(graph.module("NHWC"), (example,), dynamic_shapes=dynamic)
    with without_telemetry():
        model = openvino.convert_model(program)
    # with a free batch the converter frees all four sides, which costs the runtime its choice of kernels
    model.reshape([-1 if free.batch is None else free.batch, *example.shape[1:]])
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    if graph.precision == "int8":
        model = _quantized(model, graph)
        model.reshape([-1 if graph.batch is None else graph.batch, *example.shape[1:]])
    for key, value in graph.embedded().items():
        model.set_rt_info(value, [SECTION, key])
    path.mkdir()
    openvino.save_model(model, path / "model.xml", compress_to_fp16=graph.precision == "fp16")
    return Written(
        input_dtype="float32" if graph.raw else "uint8",
        input_layout="NCHW" if graph.raw else "NHWC",
        graph=operation_counts(
            Counter(
                operation.get_type_name()
                for operation in model.get_ops()
                if operation.get_type_name() not in ("Constant", "Parameter", "Result")
            )
        ),
    )


def _quantized(model: Any, graph: ExportSpec) -> Any:
    """The graph with NNCF's quantizers: a scale for each channel of weights, one for each activation."""
    nncf = require("nncf", extra=EXTRA)
    assert graph.calibration is not None
    images = [fed.numpy() for fed in graph.calibration_inputs("NHWC")]
    calibrated: dict[str, Any] = {"subset_size": len(images), "preset": nncf.QuantizationPreset.PERFORMANCE}
    control = graph.calibration.control
    with without_telemetry():
        if control is None:
            kept = nncf.IgnoredScope(names=_operations_of(graph.calibration.kept, model, graph))
            return nncf.quantize(model, nncf.Dataset(images), ignored_scope=kept, **calibrated)

        def metric(compiled: Any, _images: Any) -> tuple[float, None]:
            return control.measure(lambda pixels: _logits(compiled, pixels, graph)), None

        return nncf.quantize_with_accuracy_control(
            model, nncf.Dataset(images), nncf.Dataset(images), metric, max_drop=control.max_drop, **calibrated
        )


def _logits(compiled: Any, images_B3HW: Tensor, graph: ExportSpec) -> Tensor:
    fed = Normalize(graph.preprocessing)(images_B3HW) if graph.raw else images_B3HW.permute(0, 2, 3, 1)
    return torch.tensor(compiled([fed.contiguous().numpy()])[0])


def _operations_of(layers: tuple[str, ...], model: Any, graph: ExportSpec) -> list[str]:
    """Names of the operations that have the weights of some layers; the converter forgets the layers' names."""
    weights = {graph.network.get_parameter(f"{name}.weight").numpy().tobytes() for name in layers}
    found = []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            source = operation.input_value(1).get_node()
            while source.get_type_name() != "Constant" and source.get_input_size():
                source = source.input_value(0).get_node()
            if source.get_type_name() == "Constant" and np.ascontiguousarray(source.data).tobytes() in weights:
                found.append(operation.get_friendly_name())
    return found


def load(path: Path, *, threads: int = 0) -> OpenVinoRunner:
    """An artifact in OpenVINO on the CPU."""
    return OpenVinoRunner(path, threads=threads)


load_for_check = load


class OpenVinoRunner(ArtifactRunner):
    """An OpenVINO artifact on the CPU, in single precision."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load an artifact and its record.

        Raises:
            MissingDependencyError: openvino is not installed.
            UserError: the artifact cannot be loaded, or what is written in it is not what its record says.
        """
        openvino = require("openvino", extra=EXTRA)
        super().__init__(path)
        # without the hint a CPU that has bf16 computes in it, with errors of 6e-3
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        try:
            model = core.read_model(path / "model.xml")
            self.compiled = core.compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise UserError(f"{path} cannot be loaded by OpenVINO: {error}") from None
        keys = ("class_names", "preprocessing")
        found = {key: [SECTION, key] for key in keys if model.has_rt_info([SECTION, key])}
        self.check_embedded({key: str(model.get_rt_info(where).value) for key, where in found.items()})

    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: the input as `prepare` makes it to logits, a NumPy array of B x K."""
        return self.compiled({self.info.input_name: fed.numpy()})[self.info.output_name]
