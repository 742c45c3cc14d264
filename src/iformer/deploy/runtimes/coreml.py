"""Core ML: an `.mlpackage` with an image input and class labels. It converts anywhere and runs on macOS only."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.dependencies import require
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.mil import evaluate_program
from iformer.deploy.spec import INPUT, OUTPUT, ExportSpec, Written, operation_counts
from iformer.errors import UserError

EXTRA = "coreml"
PROBABILITIES, LABEL = "probabilities", "classLabel"
_SMALL = 512
"""Weights of fewer values are not worth a scale or a palette."""


class _WithProbabilities(nn.Module):
    """Probabilities for Core ML's classifier interface, beside the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(image)
        return logits.softmax(1), logits


def write(graph: ExportSpec, path: Path) -> Written:
    """Convert a network to an ML program.

    The input is an image: Core ML's own normalisation has one scale for all channels, so mean and std are in
    the graph. With class names the outputs are a label, a probability for each name, and the logits.
    """
    coremltools = require("coremltools", extra=EXTRA)
    if not graph.raw and graph.channels not in (1, 3):
        raise UserError(f"Core ML's images have 1 or 3 channels, the network {graph.channels}; --raw takes any")
    model = _convert(coremltools, graph)
    for key, value in graph.embedded().items():
        model.user_defined_metadata[key] = value
    model.short_description = f"{graph.name}, exported by iformer"
    model.save(str(path))
    operations = Counter(
        operation.op_type
        for operation in model._mil_program.functions["main"].operations
        if operation.op_type != "const"
    )
    return Written(
        input_dtype="float32" if graph.raw else "image",
        input_layout="NCHW",
        graph=operation_counts(operations, reshapes=operations["reshape"], transposes=operations["transpose"]),
    )


def _convert(coremltools: Any, graph: ExportSpec) -> Any:
    example = graph.example("NCHW", torch.float32)
    module: nn.Module = graph.module("NCHW")
    names = [OUTPUT]
    if graph.class_names:
        module, names = _WithProbabilities(module).eval(), [PROBABILITIES, OUTPUT]
    kinds = coremltools.precision
    common = {
        "compute_precision": kinds.FLOAT32 if graph.precision == "fp32" else kinds.FLOAT16,
        "minimum_deployment_target": coremltools.target.iOS16,
    }
    program = coremltools.convert(
        torch.jit.trace(module, example, check_trace=False),  # type: ignore[no-untyped-call]
        inputs=[_input_type(coremltools, graph, example)],
        outputs=[coremltools.TensorType(name=name, dtype=np.float32) for name in names],
        convert_to="milinternal",
        **common,
    )
    if graph.calibration is not None:
        program = _compressed(coremltools, program, graph, common)
    labels = None
    if graph.class_names:
        labels = coremltools.ClassifierConfig(
            list(graph.class_names), predicted_feature_name=LABEL, predicted_probabilities_output=PROBABILITIES
        )
        # the converter counts a classifier's outputs wrongly where there is another one beside it; in two
        # steps the logits keep their name and the types are worked out anew
        program.functions["main"].set_output_types(None)
    return coremltools.convert(
        program, classifier_config=labels, convert_to="mlprogram", skip_model_load=True, **common
    )


def _compressed(coremltools: Any, program: Any, graph: ExportSpec, common: dict[str, Any]) -> Any:
    """The program with its weights in 8 bits a channel or 6-bit palettes; activations stay in half precision.

    Core ML's own calibration of activations runs on macOS only, and the Neural Engine gains little by it before
    the A17 Pro and M4.
    """
    optimize = require("coremltools.optimize.coreml", extra=EXTRA)
    assert graph.calibration is not None
    model = coremltools.convert(program, convert_to="mlprogram", skip_model_load=True, **common)
    # the converter forgets the layers' names, so they are found by their weights
    weights = [graph.network.get_parameter(f"{name}.weight") for name in graph.calibration.kept]
    kept = [weight.half().numpy().tobytes() for weight in weights]
    as_they_are = {
        name: None
        for name, weight in optimize.get_weights_metadata(model, weight_threshold=0).items()
        if np.ascontiguousarray(weight.val).astype(np.float16).tobytes() in kept
    }
    if graph.precision == "int8":
        how = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=_SMALL)
        compress = optimize.linear_quantize_weights
    else:
        how = optimize.OpPalettizerConfig(mode="kmeans", nbits=6, weight_threshold=_SMALL)
        compress = optimize.palettize_weights
    config = optimize.OptimizationConfig(global_config=how, op_name_configs=as_they_are)
    compressed = compress(model, config)._mil_program
    # a program that was read back has tensors where it had an image
    compressed.functions["main"].set_input_types(tuple(program.functions["main"].input_types))
    return compressed


def _input_type(coremltools: Any, graph: ExportSpec, example: Tensor) -> Any:
    if graph.raw:
        return coremltools.TensorType(name=INPUT, shape=example.shape, dtype=np.float32)
    colors = coremltools.colorlayout
    layout = colors.RGB if graph.channels == 3 else colors.GRAYSCALE
    return coremltools.ImageType(name=INPUT, shape=example.shape, color_layout=layout)


def load(path: Path, *, threads: int = 0) -> CoreMLRunner:
    """An artifact in Core ML itself, which has no setting for threads.

    Raises:
        UserError: this machine does not run macOS.
    """
    if sys.platform != "darwin":
        raise UserError(f"{path}: Core ML runs on macOS only; this artifact was converted, not run here")
    return CoreMLRunner(path)


def load_for_check(path: Path) -> ArtifactRunner:
    """Core ML itself on macOS; elsewhere the saved program's definition, computed by PyTorch."""
    return CoreMLRunner(path) if sys.platform == "darwin" else CoreMLReference(path)


class _CoreMLArtifact(ArtifactRunner):
    """Reads a package and checks what is written in it."""

    def __init__(self, path: Path, **options: Any) -> None:
        """Load an artifact and its record.

        Raises:
            MissingDependencyError: coremltools is not installed.
            UserError: the package cannot be loaded, or what is written in it is not what its record says.
        """
        coremltools = require("coremltools", extra=EXTRA)
        super().__init__(path)
        try:
            self.model = coremltools.models.MLModel(str(path), **options)
            self.spec = self.model.get_spec()
        except Exception as error:  # coremltools and protobuf have no common base class of their errors
            raise UserError(f"{path} cannot be loaded by Core ML: {error}") from None
        self.check_embedded(self.model.user_defined_metadata)


class CoreMLRunner(_CoreMLArtifact):
    """An artifact in Core ML, on macOS."""

    def run(self, fed: Tensor) -> Any:
        """What a benchmark times: one image to logits, 1 x K."""
        value: Any = fed.numpy()
        if self.info.input_dtype == "image":
            pixels = fed[0].permute(1, 2, 0).numpy()
            value = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.model.predict({self.info.input_name: value})[self.info.output_name]


class CoreMLReference(_CoreMLArtifact):
    """The program as it was saved, operation by operation in PyTorch: what Core ML is told to compute.

    It finds a wrong conversion or a damaged weight. It says nothing about Core ML's own arithmetic or
    about where the operations run.
    """

    stands_in_for: str | None = "the saved program's definition, computed by PyTorch; Core ML runs on macOS only"

    def __init__(self, path: Path) -> None:
        """Read a package on any system.

        Raises:
            MissingDependencyError: coremltools is not installed.
            UserError: it cannot be read, holds an operation without a definition here, or is labelled wrongly.
        """
        super().__init__(path, skip_model_load=True)
        milproto = require("coremltools.converters.mil.frontend.milproto.load", extra=EXTRA)
        try:
            program = milproto.load(
                self.spec, self.spec.specificationVersion, file_weights_dir=self.model.weights_dir
            )
        except Exception as error:  # a damaged program makes coremltools raise anything
            raise UserError(f"{path} holds no program that can be read: {error}") from None
        self.function = program.functions["main"]
        self._check_interface()

    def run(self, fed: Tensor) -> Any:
        """One image to logits, 1 x K."""
        return evaluate_program(self.function, {self.info.input_name: fed})[self.info.output_name].numpy()

    def _check_interface(self) -> None:
        description = self.spec.description
        if self.info.input_dtype == "image":
            kinds = description.input[0].type.imageType
            expected = kinds.RGB if len(self.info.preprocessing.mean) == 3 else kinds.GRAYSCALE
            if kinds.colorSpace != expected:
                raise UserError(f"{self.path}: its input is not an image with the colours in the network's order")
        labels = [
            tuple(str(name) for name in np.asarray(operation.classes.val).flatten())
            for operation in self.function.operations
            if operation.op_type == "classify"
        ]
        if labels != ([self.info.class_names] if self.info.class_names else []):
            raise UserError(f"{self.path}: class labels inside the file and class names in its record differ")
