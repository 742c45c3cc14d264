"""Export to every runtime: convert, load the artifact in its runtime, compare it on images, then keep the file."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from iformer._version import __version__
from iformer.config.network import MIN_INPUT_SIZE
from iformer.deploy.artifact import (
    MAX_BATCH,
    ArtifactInfo,
    artifact_hash,
    is_artifact,
    read_record,
    staged,
    weights_hash,
    write_record,
)
from iformer.deploy.exportable import Exportable, named
from iformer.deploy.parity import FP16_TOLERANCE, FP32_TOLERANCE, compare
from iformer.deploy.quantize import (
    Quantization,
    network_forward,
    quantize_until_it_holds,
    read_calibration_images,
    summary,
)
from iformer.deploy.quiet import quiet
from iformer.deploy.runner import ArtifactRunner, runtime_module
from iformer.deploy.runtimes.registry import INT8_SCHEMES, OPSETS, QUANTIZED, Runtime, find_runtime
from iformer.deploy.spec import Calibration, ExportSpec, make_spec
from iformer.errors import UserError, one_line

BatchSize = Literal["dynamic"] | int

_SPACE_FACTOR = 6
"""Disk space that a conversion may need, as a multiple of the size of the weights; pnnx writes them four times."""


def export_artifact(
    network: Exportable,
    path: Path,
    runtime: str,
    *,
    size: tuple[int, int] | None = None,
    batch: BatchSize | None = None,
    precision: str | None = None,
    raw: bool = False,
    opset: int | None = None,
    executorch_backend: str | None = None,
    soc_model: str | None = None,
    images: Sequence[Path] = (),
    quantization: Quantization | None = None,
) -> ArtifactInfo:
    """Export a folded copy of a network to a runtime, and check that the artifact agrees with the network.

    The artifact is loaded in its own runtime and compared with the network before it is moved to `path`. If the
    outputs disagree, nothing is written and an older artifact at `path` stays. If the runtime cannot run on this
    machine, the record's `status` is "converted, not run here".

    Args:
        network: a network prepared by its task; see `iformer.tasks.export.exportable`.
        path: path of the artifact; the record's path is `path` with `.json` appended.
        runtime: a name in `iformer.deploy.runtimes.registry.RUNTIMES`.
        size: height and width of the input in pixels. None: the network's own size.
        batch: "dynamic" for any number of images per call, or a fixed number. By default dynamic if the runtime
            supports it, else 1.
        precision: one of the runtime's precisions. None: the first one.
        raw: export without normalisation: the input is normalised float32, B x C x H x W.
        opset: ONNX only: version of the operator set, 17 to 20; by default the version of the installed torch's
            exporter.
        executorch_backend: ExecuTorch only: a name in `iformer.deploy.runtimes.registry.BACKENDS`; the first by
            default. If the backend cannot run here, the record's `parity` is None.
        soc_model: ExecuTorch's backend QNN only: the chip, such as "SM8650".
        images: photographs for the comparison, in addition to generated patterns.
        quantization: calibration and metric; required for quantized precisions and not allowed for others. Layers
            return to higher precision until the metric holds.

    Returns:
        The record of the artifact.

    Raises:
        UnknownNameError: the runtime is unknown.
        MissingDependencyError: the runtime or its converter is not installed.
        UserError: an option is invalid or not supported by the runtime, the artifact does not agree with the
            network, the metric of a quantized artifact falls too far, or an artifact of another kind is at `path`.
        OSError: the file cannot be written.
    """
    row = find_runtime(runtime).with_backend(executorch_backend)
    fixed_batch, chosen = resolve_options(
        row,
        batch=batch,
        precision=precision,
        opset=opset,
        int8_scheme=None if quantization is None else quantization.scheme,
        accuracy_control=quantization is not None and quantization.accuracy_control,
        soc_model=soc_model,
    )
    _check_limits(network, row, chosen)
    with quiet():
        row.require(precision)
    if size is not None and min(size) < MIN_INPUT_SIZE:
        raise UserError(
            f"size is {size[0]} x {size[1]}; the networks take sides of {MIN_INPUT_SIZE} pixels or more"
        )
    _check_quantization(chosen, quantization)
    _check_replaced(path, row, chosen)
    preprocessing = network.metadata.preprocessing
    if size is not None:
        preprocessing = replace(preprocessing, size=size)
    calibration = None
    if quantization is not None:
        calibration = Calibration(
            images=read_calibration_images(quantization.images, preprocessing), scheme=quantization.scheme
        )
    spec = make_spec(
        network,
        preprocessing=preprocessing,
        batch=fixed_batch,
        raw=raw,
        precision=chosen,
        calibration=calibration,
        opset=opset,
        backend=None if row.backend is None else row.backend.name,
        soc_model=soc_model,
    )
    with staged(path) as file:
        _check_space(file, spec)

        def build(spec: ExportSpec) -> ArtifactRunner | None:
            _remove(file)
            convert(
                row,
                spec,
                file,
                weights_sha256=weights_hash(network.model),
                provenance=network.metadata.provenance,
            )
            with quiet():
                return runtime_module(row.name).RUNNER.for_check(file)

        def build_to_measure(spec: ExportSpec) -> ArtifactRunner:
            built = build(spec)
            if built is None:
                raise UserError(f"{row.title} does not run on this machine, so {chosen} cannot be judged here")
            return built

        measured: dict[str, Any] = {}
        if quantization is None:
            runner = build(spec)
        else:
            reference = quantization.measure(network_forward(spec))
            runner, attempts = quantize_until_it_holds(spec, quantization, build_to_measure, reference)
            measured = summary(spec, quantization, reference, attempts)
        if runner is None:
            info = replace(read_record(file), status="converted, not run here")
        else:
            with quiet():
                parity = compare(network, runner, images, tolerance=_tolerance(chosen))
            parity.require(path)
            info = replace(
                runner.info,
                parity=parity.to_plain(),
                status="converted, not run here" if runner.stand_in else "run here",
                checked_by=runner.stand_in or row.title,
                **measured,
            )
        write_record(info, file)
        del runner  # the runner may keep open files that are about to be moved
    return info


def resolve_options(
    row: Runtime,
    *,
    batch: BatchSize | None,
    precision: str | None,
    opset: int | None = None,
    int8_scheme: str | None = None,
    accuracy_control: bool = False,
    soc_model: str | None = None,
) -> tuple[int | None, str]:
    """Check the options of an export; return the images per call (None means any number) and the precision.

    Raises:
        UserError: the runtime does not support the batch, precision, operator set, INT8 scheme or accuracy
            control; `soc_model` is missing for the backend QNN, or given for anything else.
    """
    needs_chip = row.backend is not None and row.backend.name == "qnn"
    if needs_chip and soc_model is None:
        raise UserError(
            "executorch-backend is 'qnn'; it needs soc-model too, the phone's chip: SM8650 is a Snapdragon 8 Gen 3"
        )
    if soc_model is not None and not needs_chip:
        raise UserError(f"soc-model is '{soc_model}'; it is for ExecuTorch's backend qnn, not for {row.title}")
    if int8_scheme not in (None, *INT8_SCHEMES):
        raise UserError(f"int8-scheme is '{int8_scheme}'; expected {' or '.join(INT8_SCHEMES)}")
    if int8_scheme == "symmetric" and (row.name, precision) != ("onnx", "int8"):
        raise UserError("int8-scheme symmetric is for ONNX in int8; other runtimes choose their ranges themselves")
    if accuracy_control and (row.name, precision) != ("openvino", "int8"):
        raise UserError("--accuracy-control is for OpenVINO in int8; leave it out")
    if opset is not None and row.name != "onnx":
        raise UserError(f"opset is {opset}; only ONNX has operator sets, not {row.title}")
    if opset is not None and opset not in OPSETS:
        raise UserError(f"opset is {opset}; expected a number from {OPSETS[0]} to {OPSETS[-1]}")
    if precision is not None and precision not in row.precisions:
        raise UserError(f"precision is '{precision}'; {row.title} supports {', '.join(row.precisions)}")
    precision = precision or row.precisions[0]
    if batch is None:
        batch = "dynamic" if row.any_batch else 1
    if batch == "dynamic":
        if not row.any_batch:
            raise UserError(f"batch is dynamic; {row.title} takes a fixed number of images, such as 1")
        return None, precision
    if not 1 <= batch <= MAX_BATCH:
        raise UserError(f"batch is {batch}; expected 'dynamic' or a whole number from 1 to {MAX_BATCH}")
    if row.one_image and batch != 1:
        raise UserError(f"batch is {batch}; {row.title} takes one image in one call")
    return batch, precision


def convert(
    row: Runtime, spec: ExportSpec, file: Path, *, weights_sha256: str, provenance: Mapping[str, Any]
) -> None:
    """Write an artifact and its record, without comparing it with the network.

    Raises:
        UserError: the converter cannot convert the network.
        OSError: the file cannot be written.
    """
    with quiet(), torch.no_grad():
        try:
            graph = runtime_module(row.name).write(spec, file)
        except (UserError, OSError):
            raise
        except Exception as error:  # the converters' errors have no common base class
            cause: BaseException = error
            while cause.__cause__ is not None:  # the converters wrap it in a page of advice to their developers
                cause = cause.__cause__
            raise UserError(f"the conversion for {row.title} failed: {one_line(cause, limit=300)}") from error
    if not file.exists():
        raise UserError(f"the conversion for {row.title} wrote nothing")
    names = {name: row.output_name.format(name=name, index=index) for index, name in enumerate(spec.outputs)}
    with torch.inference_mode():
        outputs = named(spec.outputs, spec.network(torch.zeros(1, spec.channels, *spec.preprocessing.size)))
    first = spec.outputs[0]
    info = ArtifactInfo(
        runtime=row.name,
        backend=None if row.backend is None else row.backend.name,
        file=file.name,
        sha256=artifact_hash(file),
        network=spec.name,
        precision=spec.precision,  # type: ignore[arg-type]
        input_name=row.input_name,
        input_dtype="float32" if spec.raw else row.input_dtype,
        input_layout="NCHW" if spec.raw else row.input_layout,
        normalized_by="caller" if spec.raw else "graph",
        batch=spec.batch,
        preprocessing=spec.preprocessing,
        output_name=names[first],
        output=first,
        more_outputs={name: inside for name, inside in names.items() if name != first},
        output_shapes={name: tuple(value.shape[1:]) for name, value in outputs.items()},
        postprocess=None if spec.postprocess is None else dict(spec.postprocess),
        task=spec.task,
        num_classes=spec.num_classes,
        class_names=spec.class_names,
        weights_sha256=weights_sha256,
        provenance=dict(provenance),
        versions={"iformer": __version__, "torch": torch.__version__} | row.versions(spec.precision),
        graph=graph,
    )
    write_record(info, file)


def _check_limits(network: Exportable, row: Runtime, precision: str) -> None:
    limits = network.limits
    if limits is None:
        return
    if row.name not in limits.runtimes:
        raise UserError(f"{network.name} cannot be exported to {row.title}: {limits.reason}")
    if precision not in limits.precisions:
        raise UserError(f"precision is '{precision}'; this network is exported in {', '.join(limits.precisions)}")


def _check_quantization(precision: str, quantization: Quantization | None) -> None:
    if precision in QUANTIZED and quantization is None:
        raise UserError(f"precision is '{precision}'; it needs labelled images to calibrate and judge with")
    if precision not in QUANTIZED and quantization is not None:
        raise UserError(f"precision is '{precision}'; images to calibrate with are for {', '.join(QUANTIZED)}")


def _check_replaced(path: Path, row: Runtime, precision: str) -> None:
    older = None
    with suppress(UserError):  # a damaged artifact may be replaced
        older = read_record(path) if is_artifact(path) else None
    if older is None:
        return
    if precision in QUANTIZED and older.precision not in QUANTIZED:
        raise UserError(
            f"{path} is an artifact in {older.precision}; choose another name for the one in {precision}"
        )
    if row.backend is not None and older.runtime == row.name:
        before = older.backend or row.backends[0].name
        if before != row.backend.name:
            raise UserError(
                f"{path} is an artifact for the backend {before}; choose another name for the one for "
                f"{row.backend.name}"
            )


def _tolerance(precision: str) -> float | None:
    if precision in QUANTIZED:
        return None
    return FP32_TOLERANCE if precision == "fp32" else FP16_TOLERANCE


def _remove(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _check_space(path: Path, spec: ExportSpec) -> None:
    weights = sum(parameter.numel() * 4 for parameter in spec.network.parameters())
    if shutil.disk_usage(path.parent).free < _SPACE_FACTOR * weights:
        # on a full disk some converters write a short file and report success
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent.parent.parent))
