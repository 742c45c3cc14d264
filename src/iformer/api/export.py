"""`iformer.export`: export a network as checked artifacts for one or several runtimes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import nn

from iformer.config.checking import Count, FileName, check_arguments
from iformer.data.images import check_channels, check_image
from iformer.data.parallel import map_in_threads
from iformer.data.stream import find_images
from iformer.deploy.artifact import ArtifactInfo, is_artifact, record_path
from iformer.deploy.export import BatchSize, export_artifact, resolve_options
from iformer.deploy.quiet import quiet
from iformer.deploy.runtimes.registry import (
    BACKENDS,
    CALIBRATION_IMAGES,
    MAX_DROP,
    QUANTIZED,
    RUNTIMES,
    Int8Scheme,
    Runtime,
    find_runtime,
)
from iformer.device import resolve_device
from iformer.errors import UserError
from iformer.models.weights.header import backbone_config
from iformer.models.weights.resolve import load, load_classifier, require_name, resolve_weights
from iformer.models.weights.safetensors_file import WEIGHT_SUFFIXES
from iformer.plain_values import plain_arguments
from iformer.tasks.export import export_module, exportable
from iformer.tasks.subject import in_fp32, require_network
from iformer.torch_modes import default_cpu

Report = Callable[[str], None]
"""Callback for one line of text: the progress of a quantization, or a note about the export or its data."""


@dataclass(frozen=True, kw_only=True)
class ExportedArtifact(os.PathLike[str]):
    """An artifact that was exported and checked. It can be given wherever a path is expected."""

    path: Path
    info: ArtifactInfo = field(repr=False)
    """The record of the artifact: input, outputs, status, parity, accuracy, quantization."""

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def record(self) -> Path:
        """Path of the JSON file that describes the artifact and lies next to it."""
        return record_path(self.path)

    @property
    def runtime(self) -> Runtime:
        """The runtime of the artifact; for ExecuTorch, with the backend."""
        return find_runtime(self.info.runtime).with_backend(self.info.backend)

    @property
    def parity(self) -> dict[str, Any] | None:
        """Differences between the outputs of the artifact and of the network; None if they were not compared."""
        return self.info.parity

    @property
    def accuracy(self) -> dict[str, Any] | None:
        """Metrics of a quantized artifact and of the network on the validation images; None if not measured."""
        return self.info.accuracy


@overload
def export(model: Any, to: str = "onnx", **options: Any) -> ExportedArtifact: ...
@overload
def export(model: Any, to: Sequence[str], **options: Any) -> list[ExportedArtifact]: ...
@default_cpu()
def export(
    model: Any, to: str | Sequence[str] = "onnx", **options: Any
) -> ExportedArtifact | list[ExportedArtifact]:
    """Export a network, load each artifact in its own runtime, and check that it agrees with the network.

    The verb `export` does the same. An artifact that does not agree is not written.

    Args:
        model: a network of this package, or any name that `iformer.load` takes.
        to: a runtime, one of the names in `iformer.deploy.runtimes.registry.RUNTIMES` such as "onnx"; or several
            in a list.
        options: see `export_each`.

    Returns:
        The artifact, or a list of artifacts if `to` is a list.

    Raises:
        UserError: the network cannot be opened, an option is not for the runtime, a package is missing, or an
            artifact does not agree.
        OSError: an artifact cannot be written.
    """
    check_arguments(export, locals())
    names = [to] if isinstance(to, str) else list(to)
    exported = []
    for outcome in export_each(model, names, **options):
        if isinstance(outcome, Exception):
            raise outcome
        exported.append(outcome)
    return exported[0] if isinstance(to, str) else exported


@plain_arguments
def export_each(
    model: Any,
    to: Sequence[str],
    *,
    out: FileName | None = None,
    size: int | tuple[int, int] | None = None,
    batch: BatchSize | None = None,
    precision: str | None = None,
    raw: bool = False,
    opset: int | None = None,
    executorch_backend: str | None = None,
    soc_model: str | None = None,
    images: FileName | Iterable[Any] | None = None,
    calibration: FileName | None = None,
    max_drop: float = MAX_DROP,
    calibration_images: Count = CALIBRATION_IMAGES,
    accuracy_control: bool = False,
    int8_scheme: Int8Scheme = "asymmetric",
    attention: str | None = None,
    windows: str | None = None,
    entry: str | None = None,
    device: str | torch.device = "cpu",
    report: Report = lambda line: None,
) -> Iterator[ExportedArtifact | Exception]:
    """Export a network to several runtimes, one after the other.

    Args:
        model: a network of this package, or any name that `iformer.load` takes.
        to: names of runtimes.
        out: path of the artifact, or a folder for the artifacts; with several runtimes always a folder. None: a
            file in the current folder, named after the network, with the runtime's extension.
        size: side, or height and width, of the input in pixels. None: the network's own.
        batch: "dynamic", or a fixed number of images in each call. None: dynamic if the runtime supports it,
            else 1.
        precision: "fp32", "fp16", "int8", "int8-dynamic" or "palette6". None: fp32; for Core ML fp16.
        raw: export without normalisation: float32 input, N x C x H x W.
        opset: ONNX only: version of the operator set, 17 to 20. None: the exporter's default.
        executorch_backend: ExecuTorch only: "xnnpack", "coreml", "vulkan" or "qnn". None: "xnnpack". A program for
            a backend that does not run on this machine is not compared; its record says so.
        soc_model: ExecuTorch's backend "qnn" only: the phone's chip, such as "SM8650".
        images: photographs for the comparison: files, folders or patterns.
        calibration: labelled images for int8, int8-dynamic and palette6. Training images calibrate the artifact,
            validation images measure its accuracy.
        max_drop: percentage points of the metric (such as top-1, box AP or mIoU) that int8 may lose before layers
            return to higher precision.
        calibration_images: images for the calibration, at most.
        accuracy_control: OpenVINO in int8: NNCF uses the metric to choose operations for higher precision; slow.
        int8_scheme: ONNX in int8: "symmetric" for TensorRT, else "asymmetric".
        attention: attention design for large images; None: the network's own.
        windows: settings of the attention's windows, with `attention`.
        entry: which weights to take from the file of a training script, such as "model_ema".
        device: device on which the network computes its outputs for the comparison.
        report: called with each line about the progress.

    Yields:
        The artifact, or the error of a runtime that could not export; the next runtimes are still tried.

    Raises:
        UserError: the network cannot be opened, or an argument is invalid or does not fit one of the runtimes.
            Raised before the first export.
    """
    if isinstance(batch, bool | float):
        raise UserError(f"batch is {batch}; expected a whole number, or dynamic")
    if isinstance(max_drop, float) and not math.isfinite(max_drop):
        raise UserError(f"--max-drop is {max_drop}; expected percentage points such as {MAX_DROP:g}")
    check_arguments(export_each, locals())
    runtimes = [find_runtime(name).with_backend(executorch_backend) for name in dict.fromkeys(to)]
    if not runtimes:
        raise UserError("no runtime is given; give some of them, such as onnx")
    if isinstance(model, nn.Module):
        model, converted = in_fp32(require_network(model))
        for line in converted:
            report(f"note: {line}")
    _check(precision, calibration)
    on = resolve_device(device)
    for runtime in runtimes:  # report what cannot work before any work is done
        resolve_options(
            runtime,
            batch=batch,
            precision=precision,
            opset=opset,
            int8_scheme=int8_scheme,
            accuracy_control=accuracy_control,
            soc_model=soc_model,
        )
    if isinstance(images, np.ndarray | torch.Tensor):
        raise UserError(f"images is of type {type(images).__name__}; expected files, folders or patterns")
    sources = [images] if isinstance(images, str | os.PathLike) else list(images or ())
    photographs = find_images(sources) if sources else []
    config: Any = getattr(model, "config", None)
    name = backbone_config(config).name if isinstance(model, nn.Module) else artifact_name(require_name(model))
    paths = artifact_paths(None if out is None else Path(out), runtimes, name, precision)
    network = model
    if not isinstance(model, nn.Module):
        weights = resolve_weights(model, entry=entry)
        open_network = load_classifier if weights.task == "classify" else load
        network = open_network(weights, attention=attention, windows=windows)
    elif attention is not None or windows is not None or entry is not None:
        raise UserError("attention, windows and entry are for names; give them to iformer.load")
    for runtime in runtimes:  # last, because some packages take long to import
        with quiet():
            runtime.require(precision)
    pixels = (size, size) if isinstance(size, int) else size
    with _ready(network, on):
        prepared = exportable(network)
        if not photographs and calibration is None and executorch_backend in (None, BACKENDS[0].name):
            report("comparing on generated patterns only; give images (--images FOLDER) to compare on photographs")
        _check_photographs(photographs, prepared.channels)
        quantization = None
        if calibration is not None:
            quantization, warnings = export_module(network.metadata.task).quantization(
                network,
                os.fspath(calibration),
                size=pixels,
                images=calibration_images,
                max_drop=max_drop,
                accuracy_control=accuracy_control,
                report=report,
            )
            quantization = replace(quantization, scheme=int8_scheme)
            for line in warnings:
                report(f"note: {line}")
        for runtime, path in zip(runtimes, paths, strict=True):
            try:
                info = export_artifact(
                    prepared,
                    path,
                    runtime.name,
                    size=pixels,
                    batch=batch,
                    precision=precision,
                    raw=raw,
                    opset=opset,
                    executorch_backend=executorch_backend,
                    soc_model=soc_model,
                    images=photographs,
                    quantization=quantization,
                )
            except (UserError, OSError) as error:
                yield error
            else:
                yield ExportedArtifact(path=path, info=info)


def _check_photographs(paths: Sequence[Path], channels: int) -> None:
    """Raise `DataError` if a network of `channels` channels cannot read an image; converting would take longer."""

    def check(path: Path) -> None:
        check_image(path)
        if channels not in (1, 3):
            check_channels(path, channels)

    for _ in map_in_threads(check, paths):
        pass


@contextmanager
def _ready(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Put a network in eval mode and on a device; restore its mode and device afterwards."""
    training = network.training
    before = next((parameter.device for parameter in network.parameters()), device)
    network.eval().to(device)
    try:
        yield
    finally:
        network.train(training).to(before)


def _check(precision: str | None, calibration: Any) -> None:
    if precision in QUANTIZED and calibration is None:
        raise UserError(
            f"--precision {precision} needs --calibration DATA, labelled images to calibrate and judge with"
        )
    if calibration is not None and precision not in QUANTIZED:
        quantized = f"{', '.join(QUANTIZED[:-1])} and {QUANTIZED[-1]}"
        raise UserError(f"--calibration is for --precision {quantized}")


def artifact_paths(out: Path | None, runtimes: Sequence[Runtime], name: str, precision: str | None) -> list[Path]:
    """Return the path of each runtime's artifact. `out` is a file with the runtime's extension, or a folder.

    Raises:
        UserError: `out` is a file of another kind or has another extension of files of this package, or a path is
            not UTF-8, as runtimes need it.
    """
    if precision in QUANTIZED:
        name += f"_{precision}"
    folder = out or Path()
    if out is not None and (is_artifact(out) or not os.path.isdir(out)):
        if len(runtimes) == 1 and out.suffix == runtimes[0].suffix:
            return [_utf8(out)]
        files = {".json", *WEIGHT_SUFFIXES, *(runtime.suffix for runtime in RUNTIMES.values())}
        if out.suffix in files or os.path.isfile(out):
            several = "several runtimes need a folder"
            one = f"artifacts of {runtimes[0].title} end with {runtimes[0].suffix}"
            raise UserError(f"--out is '{out}'; {one if len(runtimes) == 1 else several}")
    return [_utf8(folder / f"{name}{_backend_mark(runtime)}{runtime.suffix}") for runtime in runtimes]


def _utf8(path: Path) -> Path:
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{path}: the name is not UTF-8, and runtimes open no such file; give another --out"
        ) from None
    return path


def _backend_mark(runtime: Runtime) -> str:
    """Return the part of a file name that names the backend, such as "_coreml"; empty for the default backend."""
    if runtime.backend is None or runtime.backend == runtime.backends[0]:
        return ""
    return f"_{runtime.backend.name}"


def artifact_name(weights: str) -> str:
    """Return the last part of a path or of a name on the hub, without the extension of a file."""
    path = Path(weights)
    return path.stem if os.path.isfile(path) else path.name or path.resolve().name
