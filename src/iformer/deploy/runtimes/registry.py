"""The runtimes that a network can be exported to, one row each. Importing this module does not import torch."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass, replace
from typing import Literal, get_args

from iformer.dependencies import require
from iformer.errors import UnknownNameError, UserError

QUANTIZED = ("int8", "int8-dynamic", "palette6")
"""Quantized precisions. Their artifacts are judged by a metric, because the outputs differ too much to compare."""

MAX_DROP = 1.0
"""Largest drop of a quantized artifact's metric that is allowed by default, in percentage points."""

OPSETS = range(17, 21)
"""Versions of ONNX's operator set that can be exported. Version 17 is from 2022; version 20 has GELU."""

Int8Scheme = Literal["asymmetric", "symmetric"]
INT8_SCHEMES = get_args(Int8Scheme)
"""How INT8 activations are scaled: from minimum to maximum, or symmetrically around zero, as TensorRT requires."""

CALIBRATION_IMAGES = 128
"""Default number of images from which the ranges of activations are taken."""


ExecuTorchBackend = Literal["xnnpack", "coreml", "vulkan", "qnn"]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend of ExecuTorch: a library that runs a program's operations on one kind of processor."""

    name: ExecuTorchBackend
    title: str
    precisions: tuple[str, ...]
    """Values of `--precision`; the first is the default."""
    packages: tuple[tuple[str, str], ...] = ()
    """Packages that the backend needs in addition to ExecuTorch: (name to import, name to install)."""
    extra: str = "executorch"
    """The extra of this package that installs `packages`."""


BACKENDS = (
    Backend(name="xnnpack", title="XNNPACK", precisions=("fp32", "int8")),
    Backend(
        name="coreml",
        title="Core ML",
        precisions=("fp16", "fp32"),
        packages=(("coremltools", "coremltools"),),
        extra="coreml",
    ),
    Backend(name="vulkan", title="Vulkan", precisions=("fp32", "fp16")),
    Backend(name="qnn", title="QNN", precisions=("fp16",)),
)
"""ExecuTorch's backends, the default first: CPUs, Apple's processors, GPUs of Android phones, Qualcomm's NPUs."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime: the packages that it needs and the form of its artifacts."""

    name: str
    """Name of the runtime, of its module, and of the extra that installs it."""
    title: str
    packages: tuple[tuple[str, str], ...]
    """Required packages: (name to import, name to install)."""
    suffix: str
    """Ending of an artifact's file name."""
    precisions: tuple[str, ...]
    """Values of `--precision`; the first is the default."""
    int8_packages: tuple[tuple[str, str], ...] = ()
    """Further packages that INT8 needs."""
    any_batch: bool = False
    """Whether an artifact can take any number of images per call."""
    one_image: bool = False
    """Whether every artifact takes exactly one image per call."""
    input_name: str = "image"
    input_dtype: Literal["uint8", "float32", "image"] = "uint8"
    """Type of the input; see `ArtifactInfo.input_dtype`. With `--raw` it is always float32."""
    input_layout: Literal["NHWC", "NCHW"] = "NHWC"
    """Layout of the input. With `--raw` it is always NCHW."""
    output_name: str = "{name}"
    """Format string for the name of an output in the artifact, with the fields `name` and `index`."""
    backends: tuple[Backend, ...] = ()
    """ExecuTorch only: the backends that a program can be made for, the default first."""
    backend: Backend | None = None
    """ExecuTorch only: the backend to which `precisions` and `title` belong."""

    def with_backend(self, name: str | None) -> Runtime:
        """Return the runtime for one of its backends.

        Args:
            name: name of the backend in `BACKENDS`. None: keep the current backend.

        Raises:
            UnknownNameError: the backend is unknown.
            UserError: the runtime has no backends.
        """
        if name is None:
            return self
        if not self.backends:
            raise UserError(f"executorch-backend is '{name}'; only ExecuTorch has backends, not {self.title}")
        named: dict[str, Backend] = {backend.name: backend for backend in self.backends}
        if name not in named:
            raise UnknownNameError("backend", name, named)
        found = named[name]
        if found == self.backend:
            return self
        title = f"{self.title} with {found.title}"
        return replace(self, backend=found, precisions=found.precisions, title=title)

    def require(self, precision: str | None = None) -> None:
        """Raise `MissingDependencyError` if a package is not installed; the message says how to install it."""
        for module, _ in self.needs(precision):
            require(module, extra=self.name)
        if self.backend is not None:
            for module, _ in self.backend.packages:
                require(module, extra=self.backend.extra)

    def needs(self, precision: str | None = None) -> tuple[tuple[str, str], ...]:
        """Return the packages that the runtime needs for a precision: (name to import, name to install)."""
        return self.packages + (self.int8_packages if precision in ("int8", "int8-dynamic") else ())

    def versions(self, precision: str | None = None) -> dict[str, str]:
        """Return the installed version of each package that the runtime needs for a precision."""
        return {package: importlib.metadata.version(package) for _, package in self.needs(precision)}


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="onnx",
            title="ONNX Runtime",
            packages=(("onnx", "onnx"), ("onnxscript", "onnxscript"), ("onnxruntime", "onnxruntime")),
            suffix=".onnx",
            precisions=("fp32", "fp16", "int8"),
            any_batch=True,
        ),
        Runtime(
            name="coreml",
            title="Core ML",
            packages=(("coremltools", "coremltools"),),
            suffix=".mlpackage",
            precisions=("fp16", "fp32", "int8", "palette6"),
            one_image=True,
            input_dtype="image",
            input_layout="NCHW",
        ),
        Runtime(
            name="executorch",
            title="ExecuTorch",
            packages=(("executorch", "executorch"),),
            suffix=".pte",
            precisions=BACKENDS[0].precisions,
            backends=BACKENDS,
            backend=BACKENDS[0],
        ),
        Runtime(
            name="litert",
            title="LiteRT",
            packages=(("litert_torch", "litert-torch"), ("ai_edge_litert", "ai-edge-litert")),
            suffix=".tflite",
            precisions=("fp32", "fp16", "int8", "int8-dynamic"),
            int8_packages=(("ai_edge_quantizer", "ai-edge-quantizer"),),
        ),
        Runtime(
            name="openvino",
            title="OpenVINO",
            packages=(("openvino", "openvino"),),
            suffix=".openvino",
            precisions=("fp32", "fp16", "int8"),
            any_batch=True,
            int8_packages=(("nncf", "nncf"),),
        ),
        Runtime(
            name="ncnn",
            title="ncnn",
            packages=(("ncnn", "ncnn"), ("pnnx", "pnnx")),
            suffix=".ncnn",
            precisions=("fp32", "fp16"),
            one_image=True,
            input_name="in0",
            input_dtype="float32",
            input_layout="NCHW",
            output_name="out{index}",
        ),
    )
}
"""All runtimes by name."""


def find_runtime(name: str) -> Runtime:
    """Return the row of a runtime.

    Raises:
        UnknownNameError: the runtime is unknown; the message suggests the nearest names.
    """
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, RUNTIMES)
    return RUNTIMES[name]
