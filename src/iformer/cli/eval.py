"""`iformer eval`: measure a trained network or an exported artifact on annotated images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from iformer.cli.arguments import (
    LABELLED_DATA,
    DeviceOption,
    EngineOption,
    EntryOption,
    IouOption,
    MaxDetectionsOption,
)
from iformer.cli.output import DebugOption, JsonOption, console, note_warnings, print_json_line, print_table
from iformer.errors import UserError

Split = Literal["val", "train", "all"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A checkpoint file, an exported artifact, or the name of a shipped network."),
    ],
    data: Annotated[str, typer.Option(help=LABELLED_DATA)],
    split: Annotated[
        Split | None,
        typer.Option(
            help="Images for validation, for training or, for classifiers, all.",
            show_default="val; classifiers: all, if the data is not split and not that of the training",
        ),
    ] = None,
    val_split: Annotated[
        float | None,
        typer.Option(
            help="Share of the images for validation, if the data is not split.",
            show_default="as in the network's training, else 0.2",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in one call.", show_default="64; detectors: 4")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="auto: bf16 if the processor has it.")] = "fp32",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    entry: EntryOption = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load images.")] = None,
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop at an image that cannot be read, instead of skipping it.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for metrics.json and the predictions.")] = None,
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Segmenters: overlapping windows instead of the whole image.")
    ] = False,
    max_detections: MaxDetectionsOption = None,
    iou: IouOption = None,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Measure accuracy, AP or mIoU on annotated images.

    Evaluates a network or an exported artifact. The metrics are also given per class.
    """

    from iformer.api.evaluate import evaluate as measure
    from iformer.files import json_text, removed_on_failure, write_text

    if out is not None and any(os.path.exists(out / name) for name in ("config.yaml", "fold-1")):
        raise UserError(f"{out} holds a training run, and its metrics.json would be replaced; give another --out")
    with removed_on_failure(out):
        evaluation = measure(
            checkpoint,
            data,
            split=split,
            val_split=val_split,
            batch_size=batch_size,
            precision=precision,
            device=device,
            engine=engine,
            workers=workers,
            strict=strict_data,
            sliding=sliding,
            max_detections=max_detections,
            iou=iou,
            entry=entry,
            warn=note_warnings,
        )
    record = {"checkpoint": checkpoint, "data": data, "split": evaluation.split, "metrics": evaluation.metrics}
    try:
        if json:
            print_json_line(record)
        else:
            console().print(evaluation.headline)
            print_table("", ["class", *evaluation.columns.values()], evaluation.class_rows())
    finally:  # neither a full disk nor a closed pipe loses the evaluation
        if out is not None:
            write_text(out / "metrics.json", json_text(record, indent=2))
            for name, content in evaluation.files().items():
                write_text(out / name, content)
