"""`iformer eval`: how right a trained network is on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from iformer.cli.arguments import DeviceOption, output_folder
from iformer.cli.output import DebugOption, JsonOption, console, print_json_line
from iformer.cli.train import note_warnings
from iformer.device import resolve_device
from iformer.errors import UserError
from iformer.tables import terminal_table

if TYPE_CHECKING:
    import torch

    from iformer.config.metadata import Metadata
    from iformer.tasks.classification.evaluate import Predictor
    from iformer.training.records.results import ClassificationEvaluation

    Subject = tuple[Predictor, Metadata, int, torch.device]
    """What is evaluated, what is known about it, its number of classes, and where the metric is computed."""

Split = Literal["val", "train", "all"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A checkpoint file, an exported artifact, or the name of a shipped network."),
    ],
    data: Annotated[
        str, typer.Option(help="A folder with one sub-folder a class (also in train/ and val/), or elpv.")
    ],
    split: Annotated[
        Split, typer.Option(help="Which images: those for validation, those for training, or all.")
    ] = "val",
    val_split: Annotated[
        float | None,
        typer.Option(
            help="Share of each class that is for validation, where the data has no part for it.",
            show_default="as in the network's training, else 0.2",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once.", show_default="64; detectors: 4")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="auto: bf16 where the processor has it.")] = "fp32",
    device: DeviceOption = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that load images.")] = None,
    strict_data: Annotated[
        bool, typer.Option("--strict-data", help="Stop at an image that cannot be read, instead of skipping it.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A folder for metrics.json and predictions.jsonl.")] = None,
    sliding: Annotated[
        bool, typer.Option("--sliding", help="Segmenters: overlapping windows instead of the whole image.")
    ] = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Accuracy, AP or mIoU, class by class, of a network or an artifact on labelled images."""
    from iformer.deploy.artifact import is_artifact
    from iformer.models.weights.dense_checkpoint import is_dense_checkpoint
    from iformer.tasks.classification.evaluate import evaluate_on_data

    if out is not None:
        output_folder(out)
    if Path(checkpoint).is_file() and is_dense_checkpoint(checkpoint):
        from iformer.cli.eval_dense import evaluate_dense

        if split == "all" or val_split is not None:
            raise UserError("--split all and --val-split are for classification")
        evaluate_dense(
            Path(checkpoint),
            data,
            part=split,
            precision=precision,
            device=device,
            batch_size=batch_size,
            workers=workers,
            strict=strict_data,
            sliding=sliding,
            out=out,
            json=json,
        )
        return
    subject, metadata, num_classes, on = (
        _artifact(checkpoint, precision, device)
        if is_artifact(checkpoint)
        else _network(checkpoint, precision, device)
    )
    evaluation, notes = evaluate_on_data(
        subject,
        metadata,
        num_classes,
        data,
        part=split,
        val_split=val_split,
        batch_size=batch_size or 64,
        workers=workers,
        strict=strict_data,
        device=on,
    )
    note_warnings(notes)
    record = {"checkpoint": checkpoint, "data": data, "part": split, "metrics": evaluation.metrics}
    if out is not None:
        _write(out, evaluation, record)
    if json:
        print_json_line(record)
    else:
        _print(evaluation)


def _network(checkpoint: str, precision: Precision, device: str) -> Subject:
    import torch

    from iformer.models.weights.resolve import open_network
    from iformer.tasks.classification.evaluate import NetworkPredictor
    from iformer.training.network.precision import resolve_precision

    on = resolve_device(device)
    network = open_network(checkpoint).to(on, memory_format=torch.channels_last)  # type: ignore[call-overload]
    predictor = NetworkPredictor(
        network, network.metadata.preprocessing, device=on, precision=resolve_precision(precision, on)
    )
    return predictor, network.metadata, network.num_classes, on


def _artifact(path: str, precision: Precision, device: str) -> Subject:
    """An artifact in its own runtime, which decides on the device and whose file decides on the precision."""
    import torch

    from iformer.config.metadata import Metadata
    from iformer.deploy.export import open_artifact, quiet

    if precision != "fp32" or device not in ("auto", "cpu"):
        raise UserError("--precision and --device are for checkpoints; an artifact runs as it was exported")
    with quiet():
        runner = open_artifact(Path(path))
    info = runner.info
    metadata = Metadata(
        task=info.task,
        class_names=info.class_names,
        preprocessing=info.preprocessing,
        provenance=info.provenance,
    )
    return runner, metadata, info.num_classes, torch.device("cpu")


def _write(out: Path, evaluation: ClassificationEvaluation, record: dict[str, Any]) -> None:
    """`metrics.json`, and `predictions.jsonl` with one line an image."""
    import json

    from iformer.files import write_text

    names = evaluation.image_set.class_names
    lines = []
    for index, label, probabilities in zip(
        evaluation.indices, evaluation.labels, evaluation.probabilities, strict=True
    ):
        answer = int(probabilities.argmax())
        lines.append(
            json.dumps(
                {
                    "image": str(evaluation.image_set.samples[index]),
                    "label": names[label],
                    "predicted": names[answer],
                    "probability": float(probabilities[answer]),
                }
            )
        )
    write_text(out / "metrics.json", json.dumps(record, indent=2))
    write_text(out / "predictions.jsonl", "".join(f"{line}\n" for line in lines))


def _print(evaluation: ClassificationEvaluation) -> None:
    metrics = evaluation.metrics
    top5 = f", top-5 {metrics['top5']:.2f} %" if "top5" in metrics else ""
    screen = console()
    screen.print(f"top-1 {metrics['top1']:.2f} %{top5}, loss {metrics['loss']:.4f} on {metrics['images']} images")
    rows = [
        [name, *(f"{scores[column]:.1f}" for column in ("precision", "recall", "f1")), str(scores["support"])]
        for name, scores in metrics["per_class"].items()
    ]
    screen.print(terminal_table("", ["class", "precision %", "recall %", "F1 %", "images"], rows))
