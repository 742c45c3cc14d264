"""`iformer export`: one network to one checked artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iformer.cli.arguments import parse_size
from iformer.cli.output import DebugOption, JsonOption, console, note, print_json, table
from iformer.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from iformer.deploy.artifact import ArtifactInfo

RUNTIMES = ("onnx",)


def export(
    weights: Annotated[
        str, typer.Argument(metavar="PATH|NAME", help="A checkpoint file, a shipped network or a released one.")
    ],
    to: Annotated[str, typer.Option(help=f"The runtime: {', '.join(RUNTIMES)}.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="The artifact. [default: the network's name, in this folder]"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Input size: 224, or height x width. [default: the network's own]"),
    ] = None,
    batch: Annotated[str, typer.Option(help="dynamic, or a fixed number of images in one call.")] = "dynamic",
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Leave normalisation out of the graph: float32 NCHW in, not uint8 RGB NHWC."),
    ] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Photographs to compare on: a file, folder or glob; may be given often."),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Export a folded network, load what came out in its own runtime, and prove that it is the network."""
    if to not in RUNTIMES:
        raise UnknownNameError("runtime", to, RUNTIMES)
    pixels = None if size is None else parse_size(size)
    count = _batch(batch)
    from iformer.data.stream import find_images
    from iformer.deploy.artifact import record_path
    from iformer.deploy.onnx import export_onnx
    from iformer.models.shipped import open_network

    photographs = find_images(images) if images else []
    model = open_network(weights)
    path = out or Path(f"{_name(weights)}.onnx")
    if not photographs:
        note("comparing on generated patterns only; --images FOLDER adds photographs of yours")
    info = export_onnx(model, path, size=pixels, batch=count, raw=raw, images=photographs)
    if json:
        print_json({"artifact": path, "record": record_path(path), **info.to_plain()})
    else:
        _print(info, path, record_path(path))


def _batch(text: str) -> Literal["dynamic"] | int:
    if text == "dynamic":
        return "dynamic"
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--batch is '{text}'; expected dynamic or a whole number of 1 or more")
    return int(text)


def _name(weights: str) -> str:
    return Path(weights).stem if Path(weights).is_file() else weights


def _print(info: ArtifactInfo, path: Path, record: Path) -> None:
    parity: dict[str, Any] = info.parity or {}
    shape = " x ".join("N" if side is None else str(side) for side in info.input_shape)
    photographs = parity["images"] - parity["generated_images"]
    rows = [
        ["file", f"{path} ({path.stat().st_size / 1e6:.2f} MB)"],
        ["record", str(record)],
        ["input", f"{info.input_name}: {info.input_dtype} {info.input_layout}, {shape}"],
        ["normalisation", "in the graph" if info.input_dtype == "uint8" else "left to the caller (--raw)"],
        ["classes", f"{len(info.class_names)} names in the file" if info.class_names else "names not known"],
        ["compared on", f"{photographs} photographs and {parity['generated_images']} generated patterns"],
        [
            "largest error",
            f"{parity['max_abs_error']:.2g} ({parity['max_relative_error']:.2g} of the largest logit)",
        ],
        ["same first class", f"{100 * parity['top1_agreement']:.1f} % of {parity['clear_images']} clear images"],
    ]
    console().print(table(f"{info.network} for {info.runtime}, {info.precision}", ["", ""], rows, left=2))
