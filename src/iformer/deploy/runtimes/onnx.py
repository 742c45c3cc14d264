"""ONNX: export, and running what was exported in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iformer._version import __version__
from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.spec import INPUT, OUTPUT, ExportSpec, Written, operation_counts
from iformer.errors import UserError

EXTRA = "onnx"


def write(graph: ExportSpec, path: Path) -> Written:
    """Convert a network to one `.onnx` file."""
    onnx = require("onnx", extra=EXTRA)
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if graph.batch is None else None
    program = torch.onnx.export(
        graph.module("NHWC"),
        (graph.example("NHWC"),),
        dynamo=True,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=dynamic,
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    _forget_this_machine(proto)
    if graph.precision == "int8":
        proto = _quantized(proto, graph, path)
    proto.producer_name, proto.producer_version = "iformer", __version__
    onnx.helper.set_model_props(proto, {**graph.embedded(), "task": graph.task})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return Written(
        input_dtype="float32" if graph.raw else "uint8",
        input_layout="NCHW" if graph.raw else "NHWC",
        graph=operation_counts(Counter(node.op_type for node in proto.graph.node)),
    )


def load(path: Path, *, threads: int = 0) -> OnnxRunner:
    """An artifact in ONNX Runtime on the CPU."""
    return OnnxRunner(path, threads=threads)


load_for_check = load


class OnnxRunner(ArtifactRunner):
    """An ONNX artifact in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load an artifact and its record.

        Args:
            threads: threads of ONNX Runtime; 0 lets it take all cores.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
            UserError: the file cannot be loaded, or what is written in it is not what its record says.
        """
        runtime = require("onnxruntime", extra=EXTRA)
        super().__init__(path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base class of its errors
            raise UserError(f"{path} cannot be loaded by ONNX Runtime: {error}") from None
        self.check_embedded(self.session.get_modelmeta().custom_metadata_map)

    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: the input as `prepare` makes it to logits, a NumPy array of B x K."""
        return self.session.run([self.info.output_name], {self.info.input_name: fed.numpy()})[0]


def _quantized(proto: Any, graph: ExportSpec, path: Path) -> Any:
    """Convolutions in INT8 with a scale for each channel; what lies between them in fp32.

    With every operation in INT8 the graph is slower: ONNX Runtime has no GELU, softmax or products in INT8 that
    are worth the conversions around them.
    """
    quantization = require("onnxruntime.quantization", extra=EXTRA)
    assert graph.calibration is not None

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inputs: Iterator[Tensor] = graph.calibration_inputs("NHWC")

        def get_next(self) -> dict[str, np.ndarray] | None:
            fed = next(self.inputs, None)
            return None if fed is None else {INPUT: fed.numpy()}

    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    # the exporter names weights after their modules: model.stem.conv1.weight
    kept = tuple(f".{name}.weight" for name in graph.calibration.kept)
    quantization.quantize_static(
        proto,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=[node.name for node in convolutions if f".{node.input[1]}".endswith(kept)],
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return require("onnx", extra=EXTRA).load(path)


def _forget_this_machine(proto: Any) -> None:
    """Drop the exporter's notes (stack traces with paths of this machine) from every part of the graph."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
