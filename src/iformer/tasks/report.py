"""The parts of `report.md` that all tasks have: headline, curves, classes, provenance, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iformer.files import write_text
from iformer.tables import markdown_code, markdown_table, markdown_text
from iformer.tasks.model_card import model_card
from iformer.tasks.registry import find_task
from iformer.training.records.figures import draw_curves
from iformer.training.records.results import TrainResult
from iformer.training.records.run_folder import RunFolder
from iformer.training.records.sections import making, settings, write_markdown

EXAMPLES = "predictions.png"
"""Name of the sheet with annotations and predictions of detectors and segmenters, next to the report."""
EXAMPLES_SECTION = f"## Predictions\n\n![Annotations and predictions on validation images]({EXAMPLES})"


def write_task_report(
    result: TrainResult,
    headline: str,
    sections: Sequence[str],
    *,
    mean_row: Sequence[str] = (),
    loss_label: str = "cross entropy",
) -> Path:
    """Write `report.md`, `curves.png` and the model card into a run folder; older files are replaced.

    Args:
        headline: a paragraph with the metrics of the final weights.
        sections: the task's own sections, placed after the classes.
        mean_row: a last row for the table of classes.
        loss_label: name of the training loss, for the curves.

    Returns:
        The path of `report.md`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    best, evaluation, metadata = result.best, result.evaluation, result.metadata
    metric, metric_label = find_task(metadata.task).headline(multi_label=metadata.multi_label)
    draw_curves(
        result.history,
        result.folder / "curves.png",
        best_epoch=best.get("epoch"),
        metric=metric,
        metric_label=metric_label,
        loss_label=loss_label,
    )
    precision = f", in {best['precision']}" if "precision" in best else ""
    chosen = (
        f"The best evaluation was {best[metric]:.2f} % (epoch {best.get('epoch', '?')}, kept as "
        f"`best.safetensors`){precision}. That epoch was selected on these same images, so its number is "
        "optimistic."
        if metric in best
        else ""
    )
    rows = evaluation.class_rows() + ([list(mean_row)] if mean_row else [])
    text = [
        f"# {markdown_text(result.model_name)} on {markdown_code(result.data_name)}",
        headline,
        chosen,
        f"## Curves\n\n![Loss, {metric_label} and learning rate by epoch](curves.png)",
        "## Classes\n\n" + markdown_table(["class", *evaluation.columns.values()], rows) if rows else "",
        *sections,
        making(result, result.history),
        settings(result),
    ]
    files = RunFolder(result.folder)
    card = model_card(metadata, name=result.model_name, parameters=result.parameters, checkpoint=files.last.name)
    write_text(files.card, card)
    return write_markdown(files.report, text)


def final_weights(result: TrainResult) -> str:
    """Return a phrase that says which weights were evaluated for the headline."""
    averaged = " (exponential moving average)" if result.recipe.ema_decay is not None else ""
    return f"the weights at the end of training{averaged}, in fp32"
