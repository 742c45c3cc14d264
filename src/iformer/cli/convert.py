"""`iformer convert`: weights between our format, timm's and the authors'; image folders to tar shards."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from iformer.cli.arguments import EntryOption
from iformer.cli.output import DebugOption, JsonOption, note, print_json, say

if TYPE_CHECKING:
    from iformer.models.weights.checkpoint import Format
    from iformer.models.weights.convert import Conversion

_WARNINGS_SHOWN = 20
_WORTH_TELLING = 50


class Target(StrEnum):
    """Whose key names and file format to write; or shards, for images."""

    iformer = "iformer"
    timm = "timm"
    authors = "authors"
    shards = "shards"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A weight file of iformer, timm or the authors, recognised by its content, or another network "
            "with weights (elpv, iformer_m, a run folder, hf-hub:USER/NAME); for shards: images, as train --data."
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="The file to write: .safetensors (iformer, timm) or .pth (timm, authors); for shards a folder."
        ),
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
    entry: EntryOption = None,
    half: Annotated[bool, typer.Option("--half", help="Store kernels and matrices in half precision.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it exists.")] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert weight files, or pack images into tar shards.

    The formats of weights are those of this package, of timm and of the authors.
    """
    if to is Target.shards:
        given: dict[str, object] = {"--model": model, "--class-names": class_names, "--entry": entry}
        given |= {"--half": half or None, "--overwrite": overwrite or None}
        for option, value in given.items():
            if value is not None:
                raise typer.BadParameter(f"{option} is for weights, not for --to shards")
        _pack(source, out, json=json)
        return
    from iformer.models.weights.convert import convert_file, read_class_names

    conversion = convert_file(
        source,
        out,
        to=cast("Format", to.value),
        model=model,
        class_names=None if class_names is None else read_class_names(class_names),
        half=half,
        overwrite=overwrite,
        entry=entry,
    )
    if json:
        print_json(asdict(conversion))
    else:
        say(_sentence(conversion))


def _pack(source: str, out: Path, *, json: bool) -> None:
    from iformer.data.sources import load_data
    from iformer.data.sources.shards.packing import pack

    data = load_data(source, progress=lambda done, total: _say_progress("checked", "images", done, total))
    for warning in data.warnings[:_WARNINGS_SHOWN]:
        note(f"note: {warning}")
    packed = pack(data, out, progress=lambda done, total: _say_progress("verified", "shards", done, total))
    if json:
        print_json(asdict(packed))
        return
    say(
        f"wrote {packed.folder}: {packed.images['train']:,} training images in {packed.shards['train']} shards, "
        f"{packed.images['val']:,} validation images in {packed.shards['val']}, {packed.classes} classes, "
        f"{packed.bytes / 1e9:.2f} GB; each was read again and compared"
    )


def _say_progress(verb: str, noun: str, done: int, total: int) -> None:
    """Tell ten times of work that may take an hour, and never of what is done at once."""
    if total >= _WORTH_TELLING and done % max(1, total // 10) == 0:
        note(f"{verb} {done:,} of {total:,} {noun}")


def _sentence(done: Conversion) -> str:
    kept = "with class names" if done.class_names_written else "without class names"
    return (
        f"wrote {done.out} ({done.bytes / 1e6:.2f} MB, {done.format}, {kept}): {done.model}, "
        f"{done.num_classes} classes, {done.tensors} tensors, read from {done.source} ({done.source_format})"
    )
