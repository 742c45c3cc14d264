"""LiteRT (TensorFlow Lite): export to one `.tflite` file, and the interpreter with the XNNPACK delegate."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iformer.dependencies import require
from iformer.deploy.exportable import Outputs, named
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.xnnpack import SplitDepthwise, for_xnnpack
from iformer.deploy.spec import INPUT, Calibration, ExportSpec, operation_counts
from iformer.errors import UserError

EXTRA = "litert"
LABELS, METADATA = "labels.txt", "iformer.json"
_MAX_ATTACHED = 16_000_000


class _Named(nn.Module):
    """A network that returns its outputs as a dict, whose keys become the output names of the signature."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, image: Tensor) -> Outputs:
        return named(self.names, self.model(image))


def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
    """Convert a network. Class names and preprocessing are stored in a zip archive appended to the model file."""
    litert_torch = require("litert_torch", extra=EXTRA)
    spec = for_xnnpack(spec)
    converted = litert_torch.convert(
        _Named(spec.module("NHWC"), spec.outputs).eval(), sample_kwargs={INPUT: spec.example("NHWC")}
    )
    content = converted.model_content()
    if spec.precision == "fp16":
        content = _halved(content)
    elif spec.calibration is not None:
        content = _quantized(content, spec, spec.calibration)
    # the converter's own writer aborts the process if the disk is full
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as attached:
        _attach(attached, LABELS, _labels(spec.class_names))
        _attach(attached, METADATA, json.dumps(spec.embedded()))
    return operation_counts(_operations(path))


class LiteRtRunner(ArtifactRunner):
    """Runner of LiteRT artifacts: the interpreter on the CPU with the XNNPACK delegate."""

    def open(self, threads: int) -> Mapping[str, str]:
        """Start the interpreter and return the metadata in the attached archive."""
        interpreter = require("ai_edge_litert.interpreter", extra=EXTRA)
        with zipfile.ZipFile(self.path) as attached:
            if any(file.file_size > _MAX_ATTACHED for file in attached.infolist()):
                raise UserError(f"{self.path}: a file attached to it has more than {_MAX_ATTACHED:,} bytes")
            found: Mapping[str, str] = json.loads(attached.read(METADATA))
            labels = attached.read(LABELS).decode()
        self.interpreter = interpreter.Interpreter(str(self.path), num_threads=threads or None)
        self.signature = self.interpreter.get_signature_runner()
        if labels != _labels(self.info.class_names):
            raise UserError(f"{self.path}: {LABELS} inside the file and the class names in its record differ")
        return found

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Run the interpreter once; see `ArtifactRunner.run`."""
        found = self.signature(**{self.info.input_name: fed.numpy()})
        return [found[name] for name in self.info.outputs.values()]


RUNNER = LiteRtRunner


def _halved(content: bytes) -> bytes:
    """Return a model with convolution and linear weights in half precision; arithmetic stays fp32."""
    quantizer = require("ai_edge_quantizer.quantizer", extra=EXTRA)
    recipes = require("ai_edge_quantizer.recipe", extra=EXTRA)
    work = quantizer.Quantizer(content)
    for operation in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        work.add_weight_only_config(
            ".*", recipes.TFLOperationName[operation], 16, algorithm_key=recipes.AlgorithmName.FLOAT_CASTING
        )
    return bytes(work.quantize().quantized_model)


def _quantized(content: bytes, spec: ExportSpec, calibration: Calibration) -> bytes:
    """Quantize convolutions, linear layers and GELU (a table of 256 values) to INT8; the rest stays fp32.

    XNNPACK is slower with every operation in INT8, because attention products, sigmoids and additions gain
    nothing. int8-dynamic quantizes only the weights of convolutions and linear layers and stores no activation
    ranges.
    """
    quantizer = require("ai_edge_quantizer.quantizer", extra=EXTRA)
    recipes = require("ai_edge_quantizer.recipe", extra=EXTRA)
    work = quantizer.Quantizer(content)
    dynamic = spec.precision == "int8-dynamic"
    if dynamic:
        for operation in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            work.add_dynamic_config(".*", recipes.TFLOperationName[operation], 8)
    else:
        for operation in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "GELU", "PAD"):
            work.add_static_config(".*", recipes.TFLOperationName[operation], 8, 8)
        for name in products_of_activations(content):
            work.update_quantization_recipe(
                f"^{re.escape(name)}",
                recipes.TFLOperationName.FULLY_CONNECTED,
                algorithm_key=recipes.AlgorithmName.NO_QUANTIZE,
            )
        # the additions inside a split convolution lie between INT8 operations
        work.add_static_config(f".*{SplitDepthwise.__qualname__}.*", recipes.TFLOperationName.ADD, 8, 8)
    for name in calibration.kept:
        work.update_quantization_recipe(
            _scope(spec.network, name),
            recipes.TFLOperationName.ALL_SUPPORTED,
            algorithm_key=recipes.AlgorithmName.NO_QUANTIZE,
        )
    if dynamic:
        return bytes(work.quantize().quantized_model)
    interpreter = require("ai_edge_litert.interpreter", extra=EXTRA)
    (signature,) = interpreter.Interpreter(model_content=content).get_signature_list()
    images = [{INPUT: fed.numpy()} for fed in spec.calibration_inputs("NHWC")]
    ranges = work.calibrate({signature: images})
    return bytes(work.quantize(ranges).quantized_model)


def products_of_activations(content: bytes) -> list[str]:
    """Return the output names of the matrix products in attention: FULLY_CONNECTED with computed weights.

    XNNPACK does not run them in INT8, and LiteRT's own INT8 kernels round differently on ARM and x86.
    """
    flatbuffers = require("ai_edge_litert.tools.flatbuffer_utils", extra=EXTRA)
    model = flatbuffers.read_model_from_bytearray(bytearray(content))
    (graph,) = model.subgraphs
    names = []
    for operation in graph.operators:
        code = flatbuffers.get_builtin_code_from_operator_code(model.operatorCodes[operation.opcodeIndex])
        weight = graph.tensors[operation.inputs[1]] if len(operation.inputs) > 1 else None
        if code == flatbuffers.BuiltinOperator.FULLY_CONNECTED and weight is not None:
            buffer = model.buffers[weight.buffer]
            if buffer.data is None and not buffer.offset:
                names.append(graph.tensors[operation.outputs[0]].name.decode())
    return names


def _scope(network: nn.Module, name: str) -> str:
    """Return a regular expression for the names of a layer's outputs.

    The converter's names contain the class and attribute name of every called module. A `ModuleList` is never
    called; a `Sequential` is called unless the network calls its members one by one.
    """
    pattern, module = "/", network
    *parents, _ = attributes = name.split(".")
    for place, attribute in enumerate(attributes):
        module = module.get_submodule(attribute)
        part = re.escape(f"{type(module).__module__}.{type(module).__qualname__}_{attribute}")
        if place == len(parents):
            pattern += f"{part};"
        elif isinstance(module, nn.Sequential):
            pattern += f"({part}/)?"
        elif not isinstance(module, nn.ModuleList):
            pattern += f"{part}/"
    return pattern


def _labels(class_names: Sequence[str]) -> str:
    """Return the class names, one per line; line breaks inside a name become spaces."""
    return "".join(f"{' '.join(name.splitlines())}\n" for name in class_names)


def _attach(archive: zipfile.ZipFile, name: str, content: str) -> None:
    # a fixed date, so that the same network always gives the same file
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def _operations(path: Path) -> Counter[str]:
    interpreter = require("ai_edge_litert.interpreter", extra=EXTRA)
    plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    reader = interpreter.Interpreter(str(path), experimental_op_resolver_type=plain)
    return Counter(operation["op_name"] for operation in reader._get_ops_details())
