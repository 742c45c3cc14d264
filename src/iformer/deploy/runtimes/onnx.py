"""ONNX: export to one file, and the runner with ONNX Runtime on the CPU."""

from __future__ import annotations

import copy
import platform
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iformer._version import __version__
from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.spec import INPUT, Calibration, ExportSpec, operation_counts
from iformer.errors import UserError

EXTRA = "onnx"
_OLDEST_OF_EXPORTER = 18
"""Oldest operator set that torch's exporter can write."""

_EXTERNAL_DATA = b"\x0a\x08location\x12"
"""Bytes of a serialized tensor entry that names an external file with the tensor's values."""


def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
    """Convert a network to one `.onnx` file."""
    onnx = require("onnx", extra=EXTRA)
    if spec.precision == "fp16":
        spec = replace(spec, network=_Half(spec.network))
    proto = _traced(spec, path) if spec.limits is not None and spec.limits.traced else _exported(spec)
    _remove_notes(proto)
    if spec.calibration is not None:
        proto = _quantized(proto, spec, spec.calibration, path)
    _halve_last(proto)
    if spec.opset is not None and spec.opset < _OLDEST_OF_EXPORTER:
        _lower_to_17(proto)
    # the exporter writes its newest format for every operator set; older runtimes refuse it
    proto.ir_version = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    proto.producer_name, proto.producer_version = "iformer", __version__
    onnx.helper.set_model_props(proto, spec.embedded())
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())
    return operation_counts(Counter(node.op_type for node in proto.graph.node))


def _traced(spec: ExportSpec, path: Path) -> Any:
    """Convert a network by tracing, for networks whose shapes depend on the image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer names every Python number that becomes a constant
        torch.onnx.export(
            spec.module("NHWC", float_first=True),
            (spec.example("NHWC"),),
            path,
            dynamo=False,
            input_names=[INPUT],
            output_names=list(spec.outputs),
            opset_version=max(spec.opset or _OLDEST_OF_EXPORTER, _OLDEST_OF_EXPORTER),
        )
    return require("onnx", extra=EXTRA).load(path)


def _exported(spec: ExportSpec) -> Any:
    """Convert a network by `torch.export`."""
    program = torch.onnx.export(
        # TensorRT accepts a uint8 input only if a cast follows directly
        spec.module("NHWC", float_first=True),
        (spec.example("NHWC"),),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(spec.outputs),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},) if spec.batch is None else None,
        opset_version=None if spec.opset is None else max(spec.opset, _OLDEST_OF_EXPORTER),
        verbose=False,
    )
    assert program is not None
    return program.model_proto


class _Half(nn.Module):
    """A network in half precision with float32 inputs and outputs. The normalisation before it stays float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, x: Tensor) -> Any:
        found = self.network(x.half())
        return found.float() if isinstance(found, Tensor) else tuple(output.float() for output in found)


class OnnxRunner(ArtifactRunner):
    """Runner of ONNX artifacts: ONNX Runtime on the CPU."""

    def open(self, threads: int) -> Mapping[str, str]:
        """Load the model and return its metadata. `threads=0` uses one thread per core.

        Raises:
            UserError: the model keeps weights in an external file.
        """
        runtime = require("onnxruntime", extra=EXTRA)
        if _EXTERNAL_DATA in self.path.read_bytes():
            raise UserError(f"{self.path} keeps weights in another file, not covered by its hash; export it again")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        found: Mapping[str, str] = self.session.get_modelmeta().custom_metadata_map
        return found

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Run the session once; see `ArtifactRunner.run`."""
        outputs: Sequence[Any] = self.session.run(
            list(self.info.outputs.values()), {self.info.input_name: fed.numpy()}
        )
        return outputs


RUNNER = OnnxRunner


def _quantized(proto: Any, spec: ExportSpec, calibration: Calibration, path: Path) -> Any:
    """Quantize convolutions to INT8 with one scale per weight channel; all other operations stay fp32.

    In the symmetric scheme, for TensorRT, activations are signed with zero point 0 and biases stay fp32.

    With every operation in INT8 the network would be slower: in ONNX Runtime, INT8 versions of GELU, softmax and
    matrix products save less time than the conversions around them cost.

    If this CPU's INT8 products saturate, weights get 7 bits, so that the artifact answers alike on all CPUs.
    """
    quantization = require("onnxruntime.quantization", extra=EXTRA)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inputs: Iterator[Tensor] = spec.calibration_inputs("NHWC")

        def get_next(self) -> dict[str, np.ndarray] | None:
            fed = next(self.inputs, None)
            return None if fed is None else {INPUT: fed.numpy()}

    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    # the exporter names weights after their modules: model.stem.conv1.weight
    kept = tuple(f".{name}.weight" for name in calibration.kept)
    symmetric = calibration.scheme == "symmetric"
    quantization.quantize_static(
        proto,
        path,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=[node.name for node in convolutions if f".{node.input[1]}".endswith(kept)],
        per_channel=True,
        activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        reduce_range=_products_saturate() and not symmetric,
        extra_options={"ActivationSymmetric": True, "QuantizeBias": False} if symmetric else None,
    )
    return require("onnx", extra=EXTRA).load(path)


def _products_saturate() -> bool:
    """Return whether INT8 products saturate on this CPU.

    x86 without VNNI instructions adds two products of 8-bit numbers in 16 bits, which overflow if the weights use
    all 8 bits.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return not any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def _halve_last(proto: Any) -> None:
    """Rewrite decomposed GELUs from x (0.5 (1 + erf)) to (x (1 + erf)) 0.5, with bit-identical results.

    OpenCV 4 expects the second form and crashes on the first.
    """
    made = {node.output[0]: node for node in proto.graph.node}

    def is_made_by(name: str, operation: str) -> bool:
        return name in made and made[name].op_type == operation

    for last in proto.graph.node:
        for x, halved in (tuple(last.input), tuple(last.input)[::-1]) if last.op_type == "Mul" else ():
            if not is_made_by(halved, "Mul"):
                continue
            half, added = sorted(made[halved].input, key=lambda name: name in made)
            if (
                half not in made
                and is_made_by(added, "Add")
                and any(is_made_by(name, "Erf") for name in made[added].input)
            ):
                made[halved].input[:] = [x, added]
                last.input[:] = [halved, half]
                break


def _lower_to_17(proto: Any) -> None:
    """Rewrite a model from operator set 18 to set 17. `onnx.checker` refuses operations that are not rewritten.

    Set 18 turned the axes of reductions from an attribute into an input, and added the attribute `num_outputs` to
    Split, which is redundant.
    """
    new = {"num_outputs", "noop_with_empty_axes"}
    onnx = require("onnx", extra=EXTRA)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) == 2:
            axes = onnx.numpy_helper.to_array(constants[node.input.pop()])
            node.attribute.append(onnx.helper.make_attribute("axes", axes.tolist()))
        kept = [attribute for attribute in node.attribute if attribute.name not in new]
        del node.attribute[:]
        node.attribute.extend(kept)
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = 17


def _remove_notes(proto: Any) -> None:
    """Remove the exporter's notes from the graph: stack traces with file paths of this machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
