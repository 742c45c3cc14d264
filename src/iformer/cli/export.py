"""`iformer export`: one network to a checked artifact for each runtime."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iformer.cli.arguments import AttentionOption, WindowsOption, parse_size
from iformer.cli.output import (
    FAILED,
    DebugOption,
    JsonOption,
    console,
    describe_error,
    note,
    print_json_line,
)
from iformer.deploy.runtimes.registry import CALIBRATION_IMAGES, MAX_DROP, QUANTIZED, RUNTIMES, find_runtime
from iformer.errors import UserError
from iformer.tables import terminal_table

if TYPE_CHECKING:
    from iformer.deploy.artifact import ArtifactInfo
    from iformer.deploy.quantize import Quantization
    from iformer.deploy.runtimes.registry import Runtime
    from iformer.models.classifier import Classifier

PRECISIONS = sorted({precision for runtime in RUNTIMES.values() for precision in runtime.precisions})


def export(
    weights: Annotated[
        str, typer.Argument(metavar="PATH|NAME", help="A checkpoint file, a shipped network or a released one.")
    ],
    to: Annotated[
        str, typer.Option(help=f"One runtime or several with commas between: {', '.join(RUNTIMES)}; or all.")
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The artifact; with several runtimes, or where it is a folder, the folder for them. "
            "[default: the network's name and the runtime's ending, in this folder]"
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Input size: 224, or height x width. [default: the network's own]"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="dynamic, or a fixed number of images in one call. [default: dynamic where the runtime has it, "
            "else 1]"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(PRECISIONS)}. [default: fp32; for Core ML fp16]"),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Leave normalisation out of the graph: float32 NCHW in, not RGB pixels."),
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Photographs to compare on: a file, folder or glob; may be given often."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="For int8 and palette6: a folder with one sub-folder a class (also in train/ and val/), or elpv. "
            "Ranges come from its images for training, the metric is measured on those for validation.",
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0.0, help="Points of top-1 that int8 may cost before layers go back.")
    ] = MAX_DROP,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="How many images the ranges come from.")
    ] = CALIBRATION_IMAGES,
    accuracy_control: Annotated[
        bool,
        typer.Option("--accuracy-control", help="OpenVINO: NNCF chooses what goes back, by the metric; slow."),
    ] = False,
    attention: AttentionOption = None,
    windows: WindowsOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a folded network, load what came out in its own runtime, and prove that it is the network."""
    runtimes = _runtimes(to)
    _check_calibration(precision, calibration)
    pixels = None if size is None else parse_size(size)
    count = _batch(batch)
    from iformer.data.stream import find_images
    from iformer.deploy.artifact import record_path
    from iformer.deploy.export import check_wishes, export_artifact, quiet
    from iformer.models.weights.resolve import open_network

    for runtime in runtimes:  # what cannot work is said before any of the work is done
        check_wishes(runtime, batch=count, precision=precision)
        with quiet():
            runtime.require(precision)
    photographs = find_images(images) if images else []
    paths = _paths(out, runtimes, _name(weights))
    model = open_network(weights, attention=attention, windows=windows)
    if not photographs:
        note("comparing on generated patterns only; --images FOLDER adds photographs of yours")
    quantization = None
    if calibration is not None:
        quantization = _quantization(
            model,
            calibration,
            pixels,
            count=calibration_images,
            max_drop=max_drop,
            accuracy_control=accuracy_control,
        )
    failed = 0
    for runtime, path in zip(runtimes, paths, strict=True):
        try:
            info = export_artifact(
                model,
                path,
                runtime.name,
                size=pixels,
                batch=count,
                precision=precision,
                raw=raw,
                images=photographs,
                quantization=quantization,
            )
        except (UserError, OSError) as error:
            if len(runtimes) == 1:
                raise
            note(describe_error(error))
            failed += 1
            continue
        if json:
            print_json_line({"artifact": path, "record": record_path(path), **info.to_plain()})
        else:
            _print(info, path, runtime)
    if failed:
        note(f"{failed} of {len(runtimes)} exports failed")
        raise typer.Exit(FAILED)


def _check_calibration(precision: str | None, calibration: str | None) -> None:
    if precision in QUANTIZED and calibration is None:
        raise UserError(
            f"--precision {precision} needs --calibration DATA, labelled images to calibrate and judge with"
        )
    if calibration is not None and precision not in QUANTIZED:
        raise UserError(f"--calibration is for --precision {' and '.join(QUANTIZED)}")


def _quantization(
    model: Classifier,
    data: str,
    size: tuple[int, int] | None,
    *,
    count: int,
    max_drop: float,
    accuracy_control: bool,
) -> Quantization:
    """Calibration images from the data's training part, the metric from its validation part."""
    from iformer.cli.train import note_warnings
    from iformer.deploy.quantize import Quantization
    from iformer.deploy.spec import Predictor
    from iformer.tasks.registry import find_task

    preprocessing = model.metadata.preprocessing
    if size is not None:
        preprocessing = replace(preprocessing, size=size)
    row = find_task("classify")
    evaluation = row.module("evaluate")
    found = row.module("dataset").find_labelled(model.metadata, model.num_classes, data)
    note_warnings(list(found.notes))
    # decoded once for all runtimes and attempts
    loader = evaluation.evaluation_loader(found.images, preprocessing, batch_size=16, workers=0, cache="ram")

    def measure(predictor: Predictor) -> dict[str, Any]:
        metrics: dict[str, Any] = evaluation.evaluate(predictor, loader).metrics
        return metrics

    samples = found.train.samples
    # in random order: LiteRT's ranges are moving averages, which images sorted by class would bias
    chosen = random.Random(0).sample(range(len(samples)), min(count, len(samples)))
    return Quantization(
        images=[samples[index] for index in chosen],
        measure=measure,
        metric=row.metric,
        max_drop=max_drop,
        accuracy_control=accuracy_control,
        data=f"{data} (validation)",
        report=note,
    )


def _runtimes(text: str) -> list[Runtime]:
    if text == "all":
        return list(RUNTIMES.values())
    return [find_runtime(name.strip()) for name in dict.fromkeys(text.split(","))]


def _batch(text: str | None) -> Literal["dynamic"] | int | None:
    if text is None:
        return None
    if text == "dynamic":
        return "dynamic"
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--batch is '{text}'; expected dynamic or a whole number of 1 or more")
    return int(text)


def _paths(out: Path | None, runtimes: list[Runtime], name: str) -> list[Path]:
    from iformer.deploy.artifact import is_artifact

    if out is None:
        return [Path(f"{name}{runtime.suffix}") for runtime in runtimes]
    if len(runtimes) > 1 or (out.is_dir() and not is_artifact(out)):
        return [out / f"{name}{runtime.suffix}" for runtime in runtimes]
    if out.suffix != runtimes[0].suffix:
        raise UserError(f"--out is '{out}'; artifacts of {runtimes[0].title} end with {runtimes[0].suffix}")
    return [out]


def _name(weights: str) -> str:
    return Path(weights).stem if Path(weights).is_file() else weights


def _print(info: ArtifactInfo, path: Path, runtime: Runtime) -> None:
    from iformer.deploy.artifact import artifact_bytes, record_path

    parity: dict[str, Any] = info.parity or {}
    shape = " x ".join("N" if side is None else str(side) for side in info.input_shape)
    photographs = parity["images"] - parity["generated_images"]
    rows = [
        ["file", f"{path} ({artifact_bytes(path) / 1e6:.2f} MB)"],
        ["record", str(record_path(path))],
        ["input", f"{info.input_name}: {info.input_dtype} {info.input_layout}, {shape}"],
        ["normalisation", "in the graph" if info.normalized_by == "graph" else "left to the caller (--raw)"],
        ["classes", f"{len(info.class_names)} names" if info.class_names else "names not known"],
        ["status", info.status],
        ["checked by", info.checked_by],
        ["compared on", f"{photographs} photographs and {parity['generated_images']} generated patterns"],
        [
            "largest error",
            f"{parity['max_abs_error']:.2g} ({parity['max_relative_error']:.2g} of the largest logit)",
        ],
        ["same first class", f"{100 * parity['top1_agreement']:.1f} % of {parity['clear_images']} clear images"],
    ]
    if info.accuracy is not None and info.quantization is not None:
        metric, kept = info.accuracy["metric"], info.quantization["kept"]
        own, now = info.accuracy["network"][metric], info.accuracy["metrics"][metric]
        rows += [
            [metric, f"{now:.2f} %, the network's own {own:.2f} %, on {info.accuracy['data']}"],
            ["left as they were", ", ".join([f"{len(kept)} of {info.quantization['layers']} layers", *kept])],
        ]
    if "not_delegated" in info.graph:
        left = ", ".join(f"{count} {name}" for name, count in info.graph["not_delegated"].items())
        rows.append(["not in XNNPACK", left or "nothing"])
    if "transposes" in info.graph:
        rows.append(["rearranged", f"{info.graph['reshapes']} reshapes, {info.graph['transposes']} transposes"])
    console().print(
        terminal_table(f"{info.network} for {runtime.title}, {info.precision}", ["", ""], rows, left=2)
    )
