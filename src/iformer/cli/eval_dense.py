"""`iformer eval` for detectors and segmenters."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from iformer.cli.output import console, print_json_line
from iformer.cli.train import note_warnings
from iformer.device import resolve_device
from iformer.errors import UserError
from iformer.tables import terminal_table

if TYPE_CHECKING:
    from iformer.training.records.results import Evaluation


def evaluate_dense(
    checkpoint: Path,
    data: str,
    *,
    part: Literal["val", "train"],
    precision: str,
    device: str,
    batch_size: int | None,
    workers: int | None,
    strict: bool,
    sliding: bool,
    out: Path | None,
    json: bool,
) -> None:
    """Evaluate a checkpoint on a data set and print, or write to `out`, what was found.

    Raises:
        UserError: the checkpoint or the data cannot be used.
    """
    from iformer.files import write_text
    from iformer.models.detector import Detector
    from iformer.models.weights.dense_checkpoint import load_dense
    from iformer.training.network.precision import resolve_precision
    from iformer.training.records.logs import ProgressView
    from iformer.training.records.results import DetectionEvaluation

    on = resolve_device(device)
    network = load_dense(checkpoint).to(on)
    evaluation: Evaluation
    warnings: Sequence[str]
    options: dict[str, Any] = {"workers": workers, "device": on, "precision": resolve_precision(precision, on)}
    if isinstance(network, Detector):
        from iformer.data.sources.coco import load_detection
        from iformer.tasks.detection.training import evaluate_detection_set

        detection = load_detection(data, strict=strict)
        warnings = detection.warnings
        images = getattr(detection, part)
        with ProgressView(total=len(images), what="evaluating") as view:
            options["progress"] = lambda _done, total: view.advance(len(images) // max(total, 1))
            evaluation = evaluate_detection_set(network, images, batch_size=batch_size or 4, **options)
    else:
        if batch_size is not None:
            raise UserError("--batch-size: a segmenter looks at one image at a time; leave it out")
        from iformer.data.sources.masks import load_semantic
        from iformer.tasks.segmentation.training import evaluate_semantic_set

        semantic = load_semantic(data, strict=strict)
        warnings = semantic.warnings
        masks = getattr(semantic, part)
        with ProgressView(total=len(masks), what="evaluating") as view:
            options["progress"] = lambda _done, total: view.advance(len(masks) // max(total, 1))
            evaluation = evaluate_semantic_set(network, masks, sliding=sliding, **options)
    note_warnings(warnings)
    record = {"checkpoint": str(checkpoint), "data": data, "part": part, "metrics": evaluation.metrics}
    if out is not None:
        write_text(out / "metrics.json", json_module.dumps(record, indent=2))
        if isinstance(evaluation, DetectionEvaluation):
            write_text(out / "coco_results.json", json_module.dumps(evaluation.results))
    if json:
        print_json_line(record)
    else:
        _print(evaluation.metrics)


def _print(metrics: dict[str, Any]) -> None:
    screen = console()
    summary = [
        f"{name.replace('_', ' ')} {value:.2f} %" for name, value in metrics.items() if isinstance(value, float)
    ]
    screen.print(f"{', '.join(summary)} on {metrics['images']} images")
    columns = list(next(iter(metrics["per_class"].values())))
    rows = [
        [name, *(_cell(scores[column], count=column == "support") for column in columns)]
        for name, scores in metrics["per_class"].items()
    ]
    screen.print(terminal_table("", ["class", *(column.replace("_", " ") for column in columns)], rows))


def _cell(value: Any, *, count: bool) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if count else f"{value:.1f}"
