"""Core ML: export to an `.mlpackage` with an image input and class labels. Core ML runs on macOS only."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from iformer.dependencies import require
from iformer.deploy.exportable import named
from iformer.deploy.runner import ArtifactRunner
from iformer.deploy.runtimes.mil import evaluate_program
from iformer.deploy.spec import INPUT, Calibration, ExportSpec, operation_counts
from iformer.errors import UserError

EXTRA = "coreml"
PROBABILITIES, LABEL = "probabilities", "classLabel"
_SMALL = 512
"""Smallest number of values of a weight tensor that is compressed; smaller weights stay in half precision."""


class _WithProbabilities(nn.Module):
    """A network with probabilities, which Core ML's classifier interface requires, added as the first output."""

    def __init__(self, model: nn.Module, spec: ExportSpec) -> None:
        super().__init__()
        self.model = model
        self.names, self.logits = spec.outputs, spec.class_logits or ""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = named(self.names, self.model(image))
        return outputs[self.logits].softmax(1), *outputs.values()


def write(spec: ExportSpec, path: Path) -> dict[str, Any]:
    """Convert a network to an ML program with an image input.

    Mean and std are applied inside the program, because Core ML's own normalisation has one scale for all
    channels. A classifier with class names also returns a label and one probability per class.

    Raises:
        UserError: the network has another number of channels than 1 or 3, and `spec.raw` is not set.
    """
    coremltools = require("coremltools", extra=EXTRA)
    if not spec.raw and spec.channels not in (1, 3):
        raise UserError(f"the network has {spec.channels} channels; Core ML's images have 1 or 3, --raw takes any")
    model = _convert(coremltools, spec)
    for key, value in spec.embedded().items():
        model.user_defined_metadata[key] = value
    model.short_description = f"{spec.name}, exported by iformer"
    model.save(str(path))
    kinds = Counter(operation.op_type for operation in model._mil_program.functions["main"].operations)
    del kinds["const"]
    return operation_counts(kinds, reshapes=kinds["reshape"], transposes=kinds["transpose"])


def _convert(coremltools: Any, spec: ExportSpec) -> Any:
    example = spec.example("NCHW", torch.float32)
    module, names = spec.module("NCHW"), list(spec.outputs)
    labels = None
    if spec.class_names and spec.class_logits:
        module, names = _WithProbabilities(module, spec).eval(), [PROBABILITIES, *names]
        labels = coremltools.ClassifierConfig(
            list(spec.class_names), predicted_feature_name=LABEL, predicted_probabilities_output=PROBABILITIES
        )
    kinds = coremltools.precision
    common = {
        "compute_precision": kinds.FLOAT32 if spec.precision == "fp32" else kinds.FLOAT16,
        "minimum_deployment_target": coremltools.target.iOS16,
    }
    program = coremltools.convert(
        torch.jit.trace(module, example, check_trace=False),  # type: ignore[no-untyped-call]
        inputs=[_input_type(coremltools, spec, example)],
        outputs=[coremltools.TensorType(name=name, dtype=np.float32) for name in names],
        convert_to="milinternal",
        **common,
    )
    if spec.calibration is not None:
        program = _compressed(coremltools, program, spec, spec.calibration, common)
    if labels is not None:
        # converting in two steps, because in one step the converter renames the other outputs of a classifier
        program.functions["main"].set_output_types(None)
    return coremltools.convert(
        program, classifier_config=labels, convert_to="mlprogram", skip_model_load=True, **common
    )


def _compressed(
    coremltools: Any, program: Any, spec: ExportSpec, calibration: Calibration, common: dict[str, Any]
) -> Any:
    """Compress a program's weights to 8 bits per channel or 6-bit palettes; activations stay in half precision.

    Activations are not quantized, because Core ML's calibration runs on macOS only and the Neural Engine gains
    little from INT8 activations before the A17 Pro and M4.
    """
    optimize = require("coremltools.optimize.coreml", extra=EXTRA)
    model = coremltools.convert(program, convert_to="mlprogram", skip_model_load=True, **common)
    # layers are found by their weights, because the converter does not keep their names
    weights = [spec.network.get_parameter(f"{name}.weight") for name in calibration.kept]
    kept = [weight.half().numpy().tobytes() for weight in weights]
    not_compressed = {
        name: None
        for name, weight in optimize.get_weights_metadata(model, weight_threshold=0).items()
        if np.ascontiguousarray(weight.val).astype(np.float16).tobytes() in kept
    }
    if spec.precision == "int8":
        how = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=_SMALL)
        compress = optimize.linear_quantize_weights
    else:
        how = optimize.OpPalettizerConfig(mode="kmeans", nbits=6, weight_threshold=_SMALL)
        compress = optimize.palettize_weights
    config = optimize.OptimizationConfig(global_config=how, op_name_configs=not_compressed)
    compressed = compress(model, config)._mil_program
    # compression turns an image input into a tensor
    compressed.functions["main"].set_input_types(tuple(program.functions["main"].input_types))
    return compressed


def _input_type(coremltools: Any, spec: ExportSpec, example: Tensor) -> Any:
    if spec.raw:
        return coremltools.TensorType(name=INPUT, shape=example.shape, dtype=np.float32)
    colors = coremltools.colorlayout
    layout = colors.RGB if spec.channels == 3 else colors.GRAYSCALE
    return coremltools.ImageType(name=INPUT, shape=example.shape, color_layout=layout)


class CoreMLRunner(ArtifactRunner):
    """Runner of Core ML artifacts, on macOS only."""

    @classmethod
    def for_check(cls, path: Path) -> ArtifactRunner:
        """Return a `CoreMLRunner` on macOS, elsewhere a `CoreMLReference` of the saved program."""
        return cls(path) if sys.platform == "darwin" else CoreMLReference(path)

    def open(self, threads: int) -> Mapping[str, str]:
        """Compile the package and return its metadata. `threads` is ignored: Core ML has no such setting."""
        if sys.platform != "darwin":
            raise UserError(f"{self.path}: Core ML runs on macOS only; this artifact was converted, not run here")
        coremltools = require("coremltools", extra=EXTRA)
        self.model: Any = coremltools.models.MLModel(str(self.path))
        found: Mapping[str, str] = self.model.user_defined_metadata
        return found

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Run the model once; see `ArtifactRunner.run`."""
        value: Any = fed.numpy()
        if self.info.input_dtype == "image":
            pixels = fed[0].permute(1, 2, 0).numpy()
            value = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        found = self.model.predict({self.info.input_name: value})
        return [found[name] for name in self.info.outputs.values()]


class CoreMLReference(ArtifactRunner):
    """Stand-in for Core ML that evaluates the saved program in PyTorch, operation by operation.

    It detects wrong conversions and damaged weights. It does not show Core ML's own rounding, or which processor
    runs an operation.
    """

    stand_in: str | None = "the saved program's definition, computed by PyTorch; Core ML runs on macOS only"

    def open(self, threads: int) -> Mapping[str, str]:
        """Read the program of a package, on any system, and return its metadata."""
        model, self.function = read_program(self.path)
        self._check_interface(model.get_spec().description)
        found: Mapping[str, str] = model.user_defined_metadata
        return found

    def run(self, fed: Tensor) -> Sequence[Any]:
        """Evaluate the program once; see `ArtifactRunner.run`."""
        found = evaluate_program(self.function, {self.info.input_name: fed})
        return [found[name].numpy() for name in self.info.outputs.values()]

    def _check_interface(self, description: Any) -> None:
        if self.info.input_dtype == "image":
            kinds = description.input[0].type.imageType
            expected = kinds.RGB if len(self.info.preprocessing.mean) == 3 else kinds.GRAYSCALE
            if kinds.colorSpace != expected:
                raise UserError(f"{self.path}: the input's colour space is not the network's")
        labels = [
            tuple(str(name) for name in np.asarray(operation.classes.val).flatten())
            for operation in self.function.operations
            if operation.op_type == "classify"
        ]
        has_labels = self.info.class_names and self.info.task == "classify"
        if labels != ([self.info.class_names] if has_labels else []):
            raise UserError(f"{self.path}: class labels inside the file and class names in its record differ")


RUNNER = CoreMLRunner


def read_program(path: Path) -> tuple[Any, Any]:
    """Return the uncompiled model of a package and its main MIL function, for `evaluate_program`."""
    coremltools = require("coremltools", extra=EXTRA)
    milproto = require("coremltools.converters.mil.frontend.milproto.load", extra=EXTRA)
    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    package = model.get_spec()
    program = milproto.load(package, package.specificationVersion, file_weights_dir=model.weights_dir)
    return model, program.functions["main"]
