"""`iformer convert`: weights, image folders to tar shards, and annotated objects between formats."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from iformer.cli.arguments import EntryOption
from iformer.cli.output import DebugOption, JsonOption, note, print_json, say
from iformer.errors import UserError, counted

if TYPE_CHECKING:
    from iformer.data.sources.label_conversion import Format as LabelFormat
    from iformer.models.weights.checkpoint import Format
    from iformer.models.weights.convert import Conversion

_WARNINGS_SHOWN = 20
_WORTH_TELLING = 50


class Target(StrEnum):
    """Format to write: key names and file format of weights, shards of images, or coco or yolo for objects."""

    iformer = "iformer"
    timm = "timm"
    authors = "authors"
    shards = "shards"
    coco = "coco"
    yolo = "yolo"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A weight file of iformer, timm or the authors, recognised by its content, or another network "
            "with weights (elpv, iformer_m, a run folder, hf-hub:USER/NAME); for shards: images, as train --data; "
            "for coco and yolo: annotated objects, as train --task detect --data."
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="The file to write: .safetensors (iformer, timm) or .pth (timm, authors); else a folder."
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
    preprocessing: Annotated[
        str | None,
        typer.Option(
            metavar="FIELDS",
            help="Replace fields of the preprocessing, as YAML or JSON: '{size: [128, 128], crop_pct: 1}'.",
        ),
    ] = None,
    entry: EntryOption = None,
    half: Annotated[bool, typer.Option("--half", help="Store kernels and matrices in half precision.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT where it exists.")] = False,
    val_split: Annotated[
        float | None,
        typer.Option(help="For coco and yolo: share of the images for validation, if the data has none."),
    ] = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Convert weight files, pack images into tar shards, or write annotated objects as COCO or YOLO.

    The formats of weights are those of this package, of timm and of the authors.
    """
    if val_split is not None and to not in (Target.coco, Target.yolo):
        raise typer.BadParameter("--val-split is for --to coco and yolo")
    if to in (Target.shards, Target.coco, Target.yolo):
        given: dict[str, object] = {"--model": model, "--class-names": class_names, "--entry": entry}
        given |= {"--preprocessing": preprocessing, "--half": half or None, "--overwrite": overwrite or None}
        for option, value in given.items():
            if value is not None:
                raise typer.BadParameter(f"{option} is for weights, not for --to {to.value}")
        if to is Target.shards:
            _pack(source, out, json=json)
        else:
            _convert_labels(source, out, to=cast("LabelFormat", to.value), val_split=val_split, json=json)
        return
    from iformer.models.weights.convert import convert_file, read_class_names

    conversion = convert_file(
        source,
        out,
        to=cast("Format", to.value),
        model=model,
        class_names=None if class_names is None else read_class_names(class_names),
        preprocessing=None if preprocessing is None else _fields(preprocessing),
        half=half,
        overwrite=overwrite,
        entry=entry,
    )
    if json:
        print_json(asdict(conversion))
        return
    if conversion.preprocessing_assumed:
        note(
            f"note: {source} does not say how images are prepared; the defaults are assumed; --preprocessing "
            "replaces them"
        )
    say(_sentence(conversion))
    say(_images(conversion))


def _fields(text: str) -> dict[str, Any]:
    """Parse the fields of `--preprocessing`."""
    from iformer.config.checking import shown
    from iformer.safe_yaml import parse_yaml

    fields = parse_yaml(text, "--preprocessing")
    if not isinstance(fields, dict):
        raise UserError(f"--preprocessing is {shown(text)}; expected fields such as '{{size: [128, 128]}}'")
    return fields


def _pack(source: str, out: Path, *, json: bool) -> None:
    from iformer.data.sources import load_data
    from iformer.data.sources.shards.packing import check_empty, pack

    check_empty(out)  # before every image is decoded
    data = load_data(source, progress=lambda done, total: _say_progress("checked", "images", done, total))
    for warning in data.warnings[:_WARNINGS_SHOWN]:
        note(f"note: {warning}")
    packed = pack(data, out, progress=lambda done, total: _say_progress("verified", "shards", done, total))
    if json:
        print_json(asdict(packed))
        return
    say(
        f"wrote {packed.folder}: {counted(packed.images['train'], 'training image')} in "
        f"{counted(packed.shards['train'], 'shard')}, "
        f"{counted(packed.images['val'], 'validation image')} in {packed.shards['val']}, "
        f"{counted(packed.classes, 'class')}, "
        f"{packed.bytes / 1e9:.2f} GB; each was read again and compared"
    )


def _convert_labels(source: str, out: Path, *, to: LabelFormat, val_split: float | None, json: bool) -> None:
    from iformer.data.sources.label_conversion import convert_labels

    done = convert_labels(
        source,
        out,
        to=to,
        val_split=val_split,
        progress=lambda done, total: _say_progress("checked", "images", done, total),
    )
    for warning in done.notes[:_WARNINGS_SHOWN]:
        note(f"note: {warning}")
    if json:
        print_json(asdict(done))
        return
    images, objects = sum(done.images.values()), sum(done.objects.values())
    left_out = f" ({done.left_out:,} left out)" if done.left_out else ""
    say(
        f"wrote {done.folder} ({done.format}): {counted(images, 'image')} ({', '.join(done.images)}), "
        f"{counted(objects, 'object')}{left_out}, {counted(done.classes, 'class')}; it was read again and compared"
    )


def _say_progress(verb: str, noun: str, done: int, total: int) -> None:
    """Print about ten lines of progress during long work, and none for short work."""
    if total >= _WORTH_TELLING and done % max(1, total // 10) == 0:
        note(f"{verb} {done:,} of {total:,} {noun}")


def _sentence(done: Conversion) -> str:
    kept = "with class names" if done.class_names_written else "without class names"
    return (
        f"wrote {done.out} ({done.bytes / 1e6:.2f} MB, {done.format}, {kept}): {done.model}, "
        f"{counted(done.num_classes, 'class')}, {done.tensors} tensors, read from {done.source} "
        f"({done.source_format})"
    )


def _images(done: Conversion) -> str:
    """Return how images are prepared, and who reads it in the file."""
    whose = {"timm": "timm's", "authors": "the authors'"}.get(done.format)
    readers = f"; iformer reads this in the file, {whose} code does not" if whose else ""
    return f"images: {done.preprocessing.describe()}{readers}"
