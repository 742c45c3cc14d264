"""OpenVINO: export to a folder with `model.xml` and `model.bin`, and the runner on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iformer.data.transforms import Normalize
from iformer.dependencies import require, without_telemetry
from iformer.deploy.exportable import Outputs, named
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.spec import EMBEDDED, INPUT, Calibration, ExportSpec, operation_counts

EXTRA = "openvino"
SECTION = "iformer"
"""Name of the section in the model's `rt_info` that holds class names and preprocessing."""


def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
    """Convert a network. The precision fp16 stores the weights in half precision; arithmetic stays fp32."""
    openvino = require("openvino", extra=EXTRA)
    # NNCF's statistics crash the CPU plugin if the batch is fixed, so it is fixed after quantization
    free = spec if spec.calibration is None else replace(spec, batch=None)
    example = free.example("NHWC")
    program = torch.export.export(
        spec.module("NHWC"),
        (example,),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if free.batch is None else None,
    )
    with without_telemetry():
        model = openvino.convert_model(program)
    # with a dynamic batch the converter makes all four axes dynamic, which prevents the fastest kernels
    model.reshape([-1 if free.batch is None else free.batch, *example.shape[1:]])
    for port, name in zip((model.inputs[0], *model.outputs), (INPUT, *spec.outputs), strict=True):
        port.get_tensor().set_names({name})
    if spec.calibration is not None:
        model = _quantized(model, spec, spec.calibration)
        model.reshape([-1 if spec.batch is None else spec.batch, *example.shape[1:]])
    for key, value in spec.embedded().items():
        model.set_rt_info(value, [SECTION, key])
    path.mkdir()
    openvino.save_model(model, path / "model.xml", compress_to_fp16=spec.precision == "fp16")
    kinds = Counter(operation.get_type_name() for operation in model.get_ops())
    return operation_counts(
        {kind: kinds[kind] for kind in kinds if kind not in ("Constant", "Parameter", "Result")}
    )


class OpenVinoRunner(ArtifactRunner):
    """Runner of OpenVINO artifacts on the CPU, in single precision."""

    def open(self, threads: int) -> Mapping[str, str]:
        """Compile the model for the CPU and return its metadata."""
        openvino = require("openvino", extra=EXTRA)
        # without this hint, CPUs that support bf16 compute in bf16, with errors of 6e-3
        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        model = core.read_model(self.path / "model.xml")
        self.compiled = core.compile_model(model, "CPU", options)
        keys = [key for key in EMBEDDED if model.has_rt_info([SECTION, key])]
        return {key: str(model.get_rt_info([SECTION, key]).value) for key in keys}

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Run the compiled model once; see `ArtifactRunner.run`."""
        found = self.compiled({self.info.input_name: fed.numpy()})
        return [found[name] for name in self.info.outputs.values()]


RUNNER = OpenVinoRunner


def _quantized(model: Any, spec: ExportSpec, calibration: Calibration) -> Any:
    """Quantize a model with NNCF: one scale per weight channel, one scale per activation."""
    nncf = require("nncf", extra=EXTRA)
    images = [fed.numpy() for fed in spec.calibration_inputs("NHWC")]
    options: dict[str, Any] = {"subset_size": len(images), "preset": nncf.QuantizationPreset.PERFORMANCE}
    control = calibration.control
    with without_telemetry():
        if control is None:
            kept = nncf.IgnoredScope(names=_operations_of(calibration.kept, model, spec))
            return nncf.quantize(model, nncf.Dataset(images), ignored_scope=kept, **options)

        def metric(compiled: Any, _images: Any) -> tuple[float, None]:
            return control.measure(lambda pixels: _outputs(compiled, pixels, spec)), None

        return nncf.quantize_with_accuracy_control(
            model, nncf.Dataset(images), nncf.Dataset(images), metric, max_drop=control.max_drop, **options
        )


def _outputs(compiled: Any, images_BCHW: Tensor, spec: ExportSpec) -> Outputs:
    fed = Normalize(spec.preprocessing)(images_BCHW) if spec.raw else images_BCHW.permute(0, 2, 3, 1)
    found = compiled([fed.contiguous().numpy()])
    return named(spec.outputs, [torch.tensor(found[index]) for index in range(len(spec.outputs))])


def _operations_of(layers: tuple[str, ...], model: Any, spec: ExportSpec) -> list[str]:
    """Return the names of the operations that have the weights of `layers`; layer names are lost in conversion."""
    weights = {spec.network.get_parameter(f"{name}.weight").numpy().tobytes() for name in layers}
    found = []
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in ("Convolution", "GroupConvolution", "MatMul"):
            source = operation.input_value(1).get_node()
            while source.get_type_name() != "Constant" and source.get_input_size():
                source = source.input_value(0).get_node()
            if source.get_type_name() == "Constant" and np.ascontiguousarray(source.data).tobytes() in weights:
                found.append(operation.get_friendly_name())
    return found
