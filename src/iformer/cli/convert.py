"""`iformer convert`: weights between our format, timm's and the authors'."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iformer.cli.output import DebugOption, JsonOption, print_json

if TYPE_CHECKING:
    from iformer.models.convert import Conversion


class Target(StrEnum):
    """Whose key names and file format to write."""

    iformer = "iformer"
    timm = "timm"
    authors = "authors"


def convert(
    source: Annotated[
        Path, typer.Argument(help="A weight file of ours, timm's or the authors'; recognised by its content.")
    ],
    out: Annotated[
        Path, typer.Argument(help="The file to write: .safetensors (iformer, timm) or .pth (timm, authors).")
    ],
    to: Annotated[Target, typer.Option("--to", help="Whose key names and format to write.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="The size that SOURCE must hold; an error if it holds another."),
    ] = None,
    class_names: Annotated[
        str | None,
        typer.Option("--class-names", help="A text file with one class name a line, or 'imagenet'."),
    ] = None,
    entry: Annotated[
        str | None,
        typer.Option(
            "--entry",
            help="Which weights of a training checkpoint to take, such as model_ema; "
            "by default model, then state_dict, then their EMA.",
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store kernels and matrices in half precision.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it exists.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert weights from the authors' or timm's format into ours, and back."""
    from iformer.models.convert import convert_file, read_class_names

    conversion = convert_file(
        source,
        out,
        to=to.value,
        model=model,
        class_names=None if class_names is None else read_class_names(class_names),
        half=half,
        overwrite=overwrite,
        entry=entry,
    )
    if json:
        print_json(asdict(conversion))
    else:
        print(_sentence(conversion))


def _sentence(done: Conversion) -> str:
    kept = "with class names" if done.class_names_written else "without class names"
    return (
        f"wrote {done.out} ({done.bytes / 1e6:.2f} MB, {done.format}, {kept}): {done.model}, "
        f"{done.num_classes} classes, {done.tensors} tensors, read from {done.source} ({done.source_format})"
    )
