"""`iformer export`: a network to a checked artifact for each runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iformer.cli.arguments import (
    MORE,
    AttentionOption,
    DeviceOption,
    EntryOption,
    WindowsOption,
    parse_size,
)
from iformer.cli.output import (
    FAILED,
    DebugOption,
    JsonOption,
    describe_error,
    note,
    print_json_line,
    print_table,
    say,
)
from iformer.cli.web_options import AssetsOption, LicenceOption
from iformer.deploy.runtimes.registry import (
    CALIBRATION_IMAGES,
    INT8_SCHEMES,
    MAX_DROP,
    OPSETS,
    RUNTIMES,
    ExecuTorchBackend,
    Int8Scheme,
    find_runtime,
)
from iformer.errors import UserError

if TYPE_CHECKING:
    from iformer.deploy.artifact import ArtifactInfo
    from iformer.deploy.export import BatchSize
    from iformer.deploy.runtimes.registry import Runtime

PRECISIONS = sorted({precision for runtime in RUNTIMES.values() for precision in runtime.precisions})


def export(
    weights: Annotated[
        str, typer.Argument(metavar="PATH|NAME", help="A checkpoint file, a shipped network or a released one.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help=f"Runtimes, separated by commas: {', '.join(RUNTIMES)}; or all. Or web: a folder with a page "
            "that runs the network, or an ONNX or LiteRT artifact, in the browser."
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            help="The artifact, or a folder for the artifacts; with several runtimes always a folder. "
            "[default: the network's name and the runtime's ending, in the current folder]"
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Input size in pixels: 224, or height x width. [default: the network's]"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="dynamic, or a fixed number of images per call. [default: dynamic if the runtime supports it, "
            "else 1]"
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(PRECISIONS)}. [default: fp32; for Core ML fp16]"),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Export without normalisation: float32 NCHW input instead of RGB pixels.",
            rich_help_panel=MORE,
        ),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(
            help=f"ONNX: version of the operator set, {OPSETS[0]} to {OPSETS[-1]}, for older runtimes. "
            "[default: that of the installed torch's exporter]",
            rich_help_panel=MORE,
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Photographs for the comparison: a file, folder or glob; can be repeated."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="For int8, int8-dynamic and palette6: labelled images, as --data of train takes them. Training "
            "images calibrate the artifact, validation images measure its accuracy.",
        ),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Points of the metric (top-1, box AP, mIoU) that int8 may lose before layers return to higher "
            "precision.",
            rich_help_panel=MORE,
        ),
    ] = MAX_DROP,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="Number of images for the calibration.", rich_help_panel=MORE)
    ] = CALIBRATION_IMAGES,
    accuracy_control: Annotated[
        bool,
        typer.Option(
            "--accuracy-control",
            help="OpenVINO: NNCF chooses the operations in higher precision by the metric; slow.",
            rich_help_panel=MORE,
        ),
    ] = False,
    int8_scheme: Annotated[
        Int8Scheme,
        typer.Option(
            help="ONNX in int8: ranges of activations, asymmetric, or symmetric (around zero) for TensorRT."
        ),
    ] = INT8_SCHEMES[0],
    executorch_backend: Annotated[
        ExecuTorchBackend | None,
        typer.Option(
            help="ExecuTorch: the backend that the program is for. Programs for another one than xnnpack are "
            "compared only where this machine runs it.",
            show_default="xnnpack",
        ),
    ] = None,
    soc_model: Annotated[
        str | None,
        typer.Option(
            metavar="CHIP",
            help="ExecuTorch's backend qnn: the phone's chip, such as SM8650.",
            rich_help_panel=MORE,
        ),
    ] = None,
    entry: EntryOption = None,
    attention: AttentionOption = None,
    windows: WindowsOption = None,
    device: DeviceOption = "cpu",
    assets: AssetsOption = None,
    licence: LicenceOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a network to a runtime and check the artifact.

    The network is folded and converted. The artifact is loaded in its runtime and compared with the network, which
    runs on --device.
    """
    if to == "web":
        own: tuple[Any, ...] = (size, batch, precision, opset, calibration, attention, windows, raw or None)
        own += (executorch_backend, soc_model)
        if int8_scheme != INT8_SCHEMES[0] or any(option is not None for option in own):
            raise UserError(
                "--to web takes no options of a conversion; export to onnx or litert with them and give that "
                "artifact"
            )
        _export_page(weights, out, json=json, assets=assets, images=images, licence=licence, entry=entry)
        return
    if assets is not None or licence is not None:
        raise UserError("--assets and --licence are for --to web")
    names = list(RUNTIMES) if to == "all" else [name.strip() for name in to.split(",")]
    runtimes = [find_runtime(name) for name in dict.fromkeys(names)]
    pixels = None if size is None else parse_size(size)
    count = _batch(batch)
    from iformer.api.export import ExportedArtifact, export_each

    failed = 0
    for outcome in export_each(
        weights,
        [runtime.name for runtime in runtimes],
        out=out,
        size=pixels,
        batch=count,
        precision=precision,
        raw=raw,
        opset=opset,
        executorch_backend=executorch_backend,
        soc_model=soc_model,
        images=images,
        calibration=calibration,
        max_drop=max_drop,
        calibration_images=calibration_images,
        accuracy_control=accuracy_control,
        int8_scheme=int8_scheme,
        attention=attention,
        windows=windows,
        entry=entry,
        device=device,
        report=note,
    ):
        if isinstance(outcome, ExportedArtifact):
            if json:
                plain = outcome.info.to_plain()
                print_json_line({"artifact": outcome.path, "record": outcome.record, **plain})
            else:
                _print(outcome.info, outcome.path, outcome.runtime)
            continue
        if len(runtimes) == 1:
            raise outcome
        note(describe_error(outcome, ("--batch", "--size")))
        failed += 1
    if failed:
        note(f"{failed} of {len(runtimes)} exports failed")
        raise typer.Exit(FAILED)


def _export_page(name: str, out: Path | None, *, json: bool, **options: Any) -> None:
    from iformer.web.static import write_page

    if out is None:
        raise UserError("--to web needs --out FOLDER")
    folder = write_page(name, out, report=note, **options)
    if json:
        print_json_line({"page": folder})
    else:
        say(f"{folder}: serve it with any web server, for example: python -m http.server --directory {folder}")


def _batch(text: str | None) -> BatchSize | None:
    if text is None:
        return None
    if text == "dynamic":
        return "dynamic"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"--batch is '{text[:100]}'; expected dynamic or a whole number of 1 or more")
    return int(text)


def _print(info: ArtifactInfo, path: Path, runtime: Runtime) -> None:
    from iformer.deploy.artifact import artifact_bytes, record_path

    shape = " x ".join("N" if side is None else str(side) for side in info.input_shape)
    rows = [
        ["file", f"{path} ({artifact_bytes(path) / 1e6:.2f} MB)"],
        ["record", str(record_path(path))],
        ["input", f"{info.input_name}: {info.input_dtype} {info.input_layout}, {shape}"],
        ["normalisation", "in the artifact" if info.normalized_by == "graph" else "by the caller (--raw)"],
        ["classes", f"{info.num_classes}{'' if info.class_names else ', without names'}"],
        ["status", info.status],
        ["checked by", info.checked_by or f"nothing: {runtime.title} does not run on this machine"],
        *_parity_rows(info.parity),
    ]
    if info.accuracy is not None and info.quantization is not None:
        metric, kept = info.accuracy["metric"], info.quantization["kept"]
        own, now = info.accuracy["network"][metric], info.accuracy["metrics"][metric]
        rows += [
            [metric, f"{own:.2f} -> {now:.2f} %, {now - own:+.2f}; on {info.accuracy['data']}"],
            ["in higher precision", ", ".join([f"{len(kept)} of {info.quantization['layers']} layers", *kept])],
        ]
    if "not_delegated" in info.graph:
        left = ", ".join(f"{count} {name}" for name, count in info.graph["not_delegated"].items())
        rows.append([f"not in {runtime.backend.title if runtime.backend else 'a delegate'}", left or "none"])
    if "transposes" in info.graph:
        rows.append(["rearranged", f"{info.graph['reshapes']} reshapes, {info.graph['transposes']} transposes"])
    title = f"{info.network} for {runtime.title}, {info.precision}"
    print_table(title, ["", ""], rows, left=2)
    if info.accuracy is not None and "per_class" in info.accuracy["metrics"]:
        print_classes(info.accuracy)


_NOT_NEAR = "without those whose first two classes are nearly equal"
_NOT_NEAR_THRESHOLD = "without those that are nearly at the threshold"


def _parity_rows(parity: dict[str, Any] | None) -> list[list[str]]:
    """Return table rows on the comparison with the network; `parity` is None if the artifact was not compared."""
    if parity is None:
        return []
    photographs = parity["images"] - parity["generated_images"]
    rows = [
        [
            "compared on",
            f"{photographs} photographs and {parity['generated_images']} generated patterns"
            if photographs
            else f"{parity['generated_images']} generated patterns; --images FOLDER adds photographs",
        ],
        [
            "largest error",
            f"{parity['max_abs_error']:.2g} ({parity['max_relative_error']:.2g} of the largest value)",
        ],
    ]
    if "top1_agreement" in parity:
        agreement = (
            f"{100 * parity['top1_agreement']:.1f} % of {parity['clear_images']} images, {_NOT_NEAR}"
            if parity["clear_images"]
            else "not compared: no image has a clear first class"
        )
        rows.append(["same first class", agreement])
    if "label_agreement" in parity:
        agreement = (
            f"{100 * parity['label_agreement']:.1f} % of {parity['clear_labels']:,} labels, {_NOT_NEAR_THRESHOLD}"
        )
        rows.append(["same labels", agreement])
    if "compared_detections" in parity:
        agreement = f"{parity['compared_detections'] - parity['unmatched_detections']} of "
        agreement += f"{parity['compared_detections']}, IoU {parity['min_iou']:.4f} or more"
        rows.append(["same detections", agreement])
    if "point_agreement" in parity:
        agreement = f"{100 * parity['point_agreement']:.1f} % of {parity['clear_points']:,} points, {_NOT_NEAR}"
        rows.append(["same class", agreement])
    return rows


def print_classes(accuracy: dict[str, Any]) -> None:
    """Print the network's and the artifact's score for each class, the largest drop first."""
    own, now = accuracy["network"]["per_class"], accuracy["metrics"]["per_class"]
    score = next(iter(next(iter(own.values()))))

    def drop(name: str) -> float:
        return (own[name][score] or 0.0) - (now[name][score] or 0.0)

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    def gain(name: str) -> str:
        return "-" if own[name][score] is None else f"{0.0 - drop(name):+.2f}"

    rows = [
        [name, shown(own[name][score]), shown(now[name][score]), gain(name)]
        for name in sorted(own, key=drop, reverse=True)
    ]
    print_table("", ["class", f"{score}, network", "artifact", "gained or lost"], rows)
