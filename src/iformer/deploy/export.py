"""One way to every runtime: convert, load again in the runtime, compare on images, and only then keep it."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from iformer._version import __version__
from iformer.config.network import MIN_INPUT_SIZE
from iformer.deploy.artifact import (
    ArtifactInfo,
    Runner,
    artifact_hash,
    read_record,
    staged,
    weights_hash,
    write_record,
)
from iformer.deploy.parity import FP16_TOLERANCE, FP32_TOLERANCE, compare
from iformer.deploy.quantize import (
    Quantization,
    network_predictor,
    quantize_until_it_holds,
    read_calibration_images,
    summary,
)
from iformer.deploy.runtimes.registry import QUANTIZED, Runtime, find_runtime
from iformer.deploy.spec import Calibration, ExportSpec, graph_of
from iformer.errors import UserError
from iformer.models.classifier import Classifier

Batch = Literal["dynamic"] | int

_SPACE_FACTOR = 6
"""Free disk that a conversion may need, in multiples of the weights: pnnx alone writes them four times."""


def export_artifact(
    model: Classifier,
    path: Path,
    runtime: str,
    *,
    size: tuple[int, int] | None = None,
    batch: Batch | None = None,
    precision: str | None = None,
    raw: bool = False,
    images: Sequence[Path] = (),
    quantization: Quantization | None = None,
) -> ArtifactInfo:
    """Write a folded copy of a network for a runtime, with its record beside it, and prove that it is the network.

    The artifact is loaded in its own runtime and compared with the network before it takes its place: where
    they disagree, nothing is written and what was there stays. A runtime that cannot run on this machine
    leaves `status` at "converted, not run here".

    Args:
        model: a classifier in eval mode, not folded; it is left as it was.
        path: the artifact; the record is `path` with `.json` added.
        runtime: a name of `iformer.deploy.runtimes.registry.RUNTIMES`.
        size: height and width of the input; None: those of the network's preprocessing.
        batch: "dynamic" for any number of images in one call, or a fixed number; None: dynamic where the
            runtime has it, else 1.
        precision: one of the runtime's; None: its first.
        raw: leave normalisation out of the graph: the input is then float32, B x 3 x H x W, normalised.
        images: photographs for the comparison, beside the generated patterns that are always used.
        quantization: where a quantized artifact's ranges come from and how it is judged; needed for int8 and
            palette6 and for no other precision. Such an artifact is judged by its metric, not by its logits:
            layers go back to higher precision until the metric holds.

    Raises:
        UnknownNameError: there is no such runtime.
        MissingDependencyError: the runtime, or what converts to it, is not installed.
        UserError: the network is folded or has no classes, the runtime cannot take the size, batch or
            precision, what was exported does not agree with the network, or a quantized artifact's metric
            falls too far.
        OSError: the file cannot be written.
    """
    row = find_runtime(runtime)
    wanted = check_wishes(row, batch=batch, precision=precision)
    with quiet():
        row.require(precision)
    _check_network(model, size)
    _check_quantization(row, wanted[1], quantization)
    preprocessing = (
        model.metadata.preprocessing if size is None else replace(model.metadata.preprocessing, size=size)
    )
    calibration = None
    if quantization is not None:
        calibration = Calibration(images=read_calibration_images(quantization.images, preprocessing))
    graph = graph_of(
        model, preprocessing=preprocessing, batch=wanted[0], raw=raw, precision=wanted[1], calibration=calibration
    )
    with staged(path) as file:
        _check_space(file, graph)

        def build(graph: ExportSpec) -> Runner:
            _remove(file)
            convert(row, graph, file, weights_sha256=weights_hash(model), provenance=model.metadata.provenance)
            with quiet():
                return row.module().load_for_check(file)

        judged: dict[str, Any] = {}
        if quantization is None:
            runner = build(graph)
        else:
            reference = quantization.measure(network_predictor(graph))
            runner, attempts = quantize_until_it_holds(graph, quantization, build, reference)
            judged = summary(graph, quantization, reference, attempts)
        with quiet():
            parity = compare(model, runner, images, tolerance=_tolerance(graph.precision))
        parity.require(path)
        info = replace(
            runner.info,
            parity=parity.to_plain(),
            status="converted, not run here" if runner.stands_in_for else "run here",
            checked_by=runner.stands_in_for or row.title,
            **judged,
        )
        write_record(info, file)
        del runner  # it may hold the files open that are about to move
    return info


def open_artifact(path: Path, *, threads: int = 0) -> Runner:
    """An artifact in its own runtime, whatever that is.

    Args:
        threads: threads of the runtime; 0 lets it choose.

    Raises:
        MissingDependencyError: the runtime is not installed.
        UserError: there is no record, the artifact is not the one it describes, or the runtime cannot load it
            or cannot run on this machine.
    """
    row = find_runtime(read_record(path).runtime)
    return row.module().load(path, threads=threads)


def check_wishes(row: Runtime, *, batch: Batch | None, precision: str | None) -> tuple[int | None, str]:
    """The batch (None: any) and precision of an artifact, or a `UserError` where the runtime lacks them."""
    if precision is not None and precision not in row.precisions:
        raise UserError(f"precision is '{precision}'; for {row.title} it may be {', '.join(row.precisions)}")
    if batch is None:
        batch = "dynamic" if row.any_batch else 1
    if batch == "dynamic":
        if not row.any_batch:
            raise UserError(f"batch is dynamic; {row.title} takes a fixed number of images, such as 1")
        return None, precision or row.precisions[0]
    if batch < 1:
        raise UserError(f"batch is {batch}; expected 'dynamic' or a whole number of 1 or more")
    if row.one_image and batch != 1:
        raise UserError(f"batch is {batch}; {row.title} takes one image in one call")
    return batch, precision or row.precisions[0]


def _check_network(model: Classifier, size: tuple[int, int] | None) -> None:
    if not isinstance(model, Classifier) or model.num_classes == 0:
        raise UserError("export takes a classifier with one class or more")
    if model.is_folded:
        raise UserError("export folds the network itself; give it the network before folding")
    if size is not None and min(size) < MIN_INPUT_SIZE:
        raise UserError(
            f"size is {size[0]} x {size[1]}; the networks take sides of {MIN_INPUT_SIZE} pixels or more"
        )


def _check_quantization(row: Runtime, precision: str, quantization: Quantization | None) -> None:
    if precision in QUANTIZED and quantization is None:
        raise UserError(f"precision is '{precision}'; it needs labelled images to calibrate and judge with")
    if precision not in QUANTIZED and quantization is not None:
        raise UserError(f"precision is '{precision}'; images to calibrate with are for {', '.join(QUANTIZED)}")
    if quantization is not None and quantization.accuracy_control and row.name != "openvino":
        raise UserError(f"NNCF's accuracy control is for OpenVINO; {row.title} has none")


def _tolerance(precision: str) -> float | None:
    if precision in QUANTIZED:
        return None
    return FP32_TOLERANCE if precision == "fp32" else FP16_TOLERANCE


def _remove(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


def _check_space(path: Path, graph: ExportSpec) -> None:
    weights = sum(parameter.numel() * 4 for parameter in graph.network.parameters())
    if shutil.disk_usage(path.parent).free < _SPACE_FACTOR * weights:
        # some converters leave a short file behind on a full disk and call it a success
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent.parent.parent))


def convert(
    row: Runtime, graph: ExportSpec, file: Path, *, weights_sha256: str, provenance: Mapping[str, Any]
) -> None:
    """Write an artifact and its record, which nothing has compared with anything yet.

    Raises:
        UserError: the converter cannot convert the network.
        OSError: the file cannot be written.
    """
    with quiet(), torch.no_grad():
        try:
            written = row.module().write(graph, file)
        except (UserError, OSError):
            raise
        except Exception as error:  # each converter has its own kinds of errors
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"the conversion for {row.title} failed: {reason[:300]}") from error
    if not file.exists():
        raise UserError(f"the conversion for {row.title} wrote nothing")
    info = ArtifactInfo(
        runtime=row.name,
        file=file.name,
        sha256=artifact_hash(file),
        network=graph.name,
        precision=graph.precision,  # type: ignore[arg-type]
        input_name=written.input_name,
        input_dtype=written.input_dtype,
        input_layout=written.input_layout,
        normalized_by="caller" if graph.raw else "graph",
        batch=graph.batch,
        preprocessing=graph.preprocessing,
        output_name=written.output_name,
        task=graph.task,
        num_classes=graph.num_classes,
        class_names=graph.class_names,
        weights_sha256=weights_sha256,
        provenance=dict(provenance),
        versions={"iformer": __version__, "torch": torch.__version__} | row.versions(graph.precision),
        graph=written.graph,
    )
    write_record(info, file)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep converters and runtimes, their C++ parts and child processes too, from writing to the terminal.

    What they said is added to the notes of an error that leaves the block, which `--debug` shows.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = [os.dup(descriptor) for descriptor in (1, 2)]
        streams = sys.stdout, sys.stderr
        try:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            with open(os.devnull, "w", encoding="utf-8") as nowhere:
                sys.stdout = sys.stderr = nowhere
                try:
                    yield
                finally:
                    sys.stdout, sys.stderr = streams
        except Exception as error:
            said.seek(0, os.SEEK_END)
            said.seek(max(0, said.tell() - 4000))
            error.add_note(said.read().decode(errors="replace"))
            raise
        finally:
            for descriptor, original in zip((1, 2), saved, strict=True):
                os.dup2(original, descriptor)
                os.close(original)
