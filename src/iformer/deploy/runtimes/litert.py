"""LiteRT (TensorFlow Lite): one `.tflite` file, and running it through its XNNPACK delegate."""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.xnnpack import SplitDepthwise, for_xnnpack
from iformer.deploy.spec import INPUT, OUTPUT, ExportSpec, Written, operation_counts
from iformer.errors import UserError

EXTRA = "litert"
LABELS, METADATA = "labels.txt", "iformer.json"


class _Named(nn.Module):
    """A dict as output: its keys become the names of the signature's outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {OUTPUT: self.model(image)}


def write(graph: ExportSpec, path: Path) -> Written:
    """Convert a network; names and preprocessing are files of a zip at its end, where TensorFlow Lite has them."""
    litert_torch = require("litert_torch", extra=EXTRA)
    graph = for_xnnpack(graph)
    converted = litert_torch.convert(
        _Named(graph.module("NHWC")).eval(), sample_kwargs={INPUT: graph.example("NHWC")}
    )
    content = converted.model_content()
    if graph.precision == "int8":
        content = _quantized(content, graph)
    # the converter's own writer ends the process where the disk is full
    path.write_bytes(content)
    with zipfile.ZipFile(path, "a") as attached:
        _attach(attached, LABELS, "".join(f"{name}\n" for name in graph.class_names))
        _attach(attached, METADATA, json.dumps(graph.embedded()))
    return Written(
        input_dtype="float32" if graph.raw else "uint8",
        input_layout="NCHW" if graph.raw else "NHWC",
        graph=operation_counts(_operations(path)),
    )


def _quantized(content: bytes, graph: ExportSpec) -> bytes:
    """Convolutions, linear layers and GELU, which is a table of 256 values, in INT8; what lies between in fp32.

    With all operations in INT8 XNNPACK is slower: the attention's products, sigmoids and additions gain nothing.
    """
    quantizer = require("ai_edge_quantizer.quantizer", extra=EXTRA)
    recipes = require("ai_edge_quantizer.recipe", extra=EXTRA)
    assert graph.calibration is not None
    work = quantizer.Quantizer(content)
    for operation in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "GELU", "PAD"):
        work.add_static_config(".*", recipes.TFLOperationName[operation], 8, 8)
    # the sums inside a split convolution lie between operations in INT8
    work.add_static_config(f".*{SplitDepthwise.__qualname__}.*", recipes.TFLOperationName.ADD, 8, 8)
    no_quantization = recipes.AlgorithmName.NO_QUANTIZE
    for name in graph.calibration.kept:
        work.update_quantization_recipe(
            _scope(graph.network, name), recipes.TFLOperationName.ALL_SUPPORTED, algorithm_key=no_quantization
        )
    interpreter = require("ai_edge_litert.interpreter", extra=EXTRA)
    (signature,) = interpreter.Interpreter(model_content=content).get_signature_list()
    images = [{INPUT: fed.numpy()} for fed in graph.calibration_inputs("NHWC")]
    ranges = work.calibrate({signature: images})
    return bytes(work.quantize(ranges).quantized_model)


def _scope(network: nn.Module, name: str) -> str:
    """A pattern for the outputs of a layer: the converter writes the class and attribute of each module it calls.

    It calls no list, and a sequence only where the sequence itself is called and not its members.
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


def load(path: Path, *, threads: int = 0) -> LiteRtRunner:
    """An artifact in LiteRT on the CPU."""
    return LiteRtRunner(path, threads=threads)


load_for_check = load


class LiteRtRunner(ArtifactRunner):
    """A LiteRT artifact in its interpreter, with the XNNPACK delegate."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Load an artifact and its record.

        Raises:
            MissingDependencyError: ai-edge-litert is not installed.
            UserError: the file cannot be loaded, or what is written in it is not what its record says.
        """
        interpreter = require("ai_edge_litert.interpreter", extra=EXTRA)
        super().__init__(path)
        try:
            with zipfile.ZipFile(path) as attached:
                found = json.loads(attached.read(METADATA))
                names = attached.read(LABELS).decode().splitlines()
            self.interpreter = interpreter.Interpreter(str(path), num_threads=threads or None)
            self.signature = self.interpreter.get_signature_runner()
        except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be loaded by LiteRT: {error}") from None
        self.check_embedded(found)
        if names != list(self.info.class_names):
            raise UserError(f"{path}: {LABELS} inside the file and the class names in its record differ")

    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: the input as `prepare` makes it to logits, a NumPy array of B x K."""
        return self.signature(**{self.info.input_name: fed.numpy()})[self.info.output_name]


def _attach(archive: zipfile.ZipFile, name: str, content: str) -> None:
    # a fixed date, so that the same network gives the same file
    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)


def _operations(path: Path) -> Counter[str]:
    interpreter = require("ai_edge_litert.interpreter", extra=EXTRA)
    plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    reader = interpreter.Interpreter(str(path), experimental_op_resolver_type=plain)
    return Counter(operation["op_name"] for operation in reader._get_ops_details())
