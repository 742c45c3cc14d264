"""The runtimes a network can be exported to, one row each. No torch here, so that naming them is quick."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from iformer.dependencies import require
from iformer.errors import UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

    from iformer.deploy.artifact import Runner
    from iformer.deploy.spec import ExportSpec, Written


QUANTIZED = ("int8", "palette6")
"""Precisions that lose enough to be judged by a metric and not by the logits."""

MAX_DROP = 1.0
"""Points of the metric that a quantized artifact may cost."""

CALIBRATION_IMAGES = 128
"""How many images the ranges of its activations come from."""


class RuntimeModule(Protocol):
    """What each runtime's own file has to offer."""

    def write(self, graph: ExportSpec, path: Path) -> Written:
        """Convert a network; everything the artifact consists of lies at `path` afterwards."""

    def load(self, path: Path, *, threads: int = 0) -> Runner:
        """An artifact and its record, in the runtime itself; 0 threads lets the runtime choose.

        Raises:
            MissingDependencyError: the runtime is not installed.
            UserError: the artifact cannot be loaded here, or what is written in it is not what its record says.
        """

    def load_for_check(self, path: Path) -> Runner:
        """What the parity check asks: `load`, or, where the runtime cannot run here, its graph's definition."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One row: what a runtime needs and what it can take."""

    name: str
    """Also the name of the extra that installs it."""
    title: str
    packages: tuple[tuple[str, str], ...]
    """Name to import and name to install of each package it needs."""
    suffix: str
    """What its artifacts' names end with."""
    precisions: tuple[str, ...]
    """What `--precision` may be; the first is the default."""
    int8_packages: tuple[tuple[str, str], ...] = ()
    """The same of what INT8 needs beside them."""
    any_batch: bool = False
    """Whether one artifact can take any number of images in one call."""
    one_image: bool = False
    """Whether a call always takes a single image."""

    def require(self, precision: str | None = None) -> None:
        """Raise `MissingDependencyError` with what to install, unless all of its packages are here."""
        for module, _ in self.needs(precision):
            require(module, extra=self.name)

    def needs(self, precision: str | None = None) -> tuple[tuple[str, str], ...]:
        """Its packages, with those of INT8 where that is the precision."""
        return self.packages + (self.int8_packages if precision == "int8" else ())

    def module(self) -> RuntimeModule:
        """The file that converts to it and runs it."""
        return cast(RuntimeModule, importlib.import_module(f"iformer.deploy.runtimes.{self.name}"))

    def versions(self, precision: str | None = None) -> dict[str, str]:
        """The version of each of its packages."""
        return {package: importlib.metadata.version(package) for _, package in self.needs(precision)}


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            name="onnx",
            title="ONNX Runtime",
            packages=(("onnx", "onnx"), ("onnxscript", "onnxscript"), ("onnxruntime", "onnxruntime")),
            suffix=".onnx",
            precisions=("fp32", "int8"),
            any_batch=True,
        ),
        Runtime(
            name="coreml",
            title="Core ML",
            packages=(("coremltools", "coremltools"),),
            suffix=".mlpackage",
            precisions=("fp16", "fp32", "int8", "palette6"),
            one_image=True,
        ),
        Runtime(
            name="executorch",
            title="ExecuTorch",
            packages=(("executorch", "executorch"),),
            suffix=".pte",
            precisions=("fp32", "int8"),
        ),
        Runtime(
            name="litert",
            title="LiteRT",
            packages=(("litert_torch", "litert-torch"), ("ai_edge_litert", "ai-edge-litert")),
            suffix=".tflite",
            precisions=("fp32", "int8"),
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
        ),
    )
}
"""Every runtime by its name."""


def find_runtime(name: str) -> Runtime:
    """The row of a runtime.

    Raises:
        UnknownNameError: there is none of that name; the message suggests the nearest ones.
    """
    if name not in RUNTIMES:
        raise UnknownNameError("runtime", name, RUNTIMES)
    return RUNTIMES[name]
