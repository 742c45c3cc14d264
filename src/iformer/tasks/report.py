"""The parts of `report.md` that all tasks have: headline, curves, classes, provenance, settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iformer.tables import markdown_code, markdown_table, markdown_text
from iformer.tasks.registry import find_task
from iformer.training.records.figures import draw_curves
from iformer.training.records.results import TrainResult
from iformer.training.records.run_folder import RunFolder
from iformer.training.records.sections import making, settings, write_markdown


def write_task_report(
    result: TrainResult,
    headline: str,
    sections: Sequence[str],
    *,
    mean_row: Sequence[str] = (),
    loss_label: str = "cross entropy",
) -> Path:
    """Write `report.md` and `curves.png` into a run folder; older files of these names are replaced.

    Args:
        headline: the metrics of the final weights, in a paragraph.
        sections: the task's own sections, placed after the classes.
        mean_row: a last row for the table of classes.
        loss_label: what the training loss is.

    Returns:
        The path of `report.md`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    row, best, evaluation = find_task(result.metadata.task), result.best, result.evaluation
    draw_curves(
        result.history,
        result.folder / "curves.png",
        best_epoch=best.get("epoch"),
        metric=row.metric,
        metric_label=row.metric_label,
        loss_label=loss_label,
    )
    chosen = (
        f"The best evaluation was {best[row.metric]:.2f} % (epoch {best.get('epoch', '?')}, kept as "
        "`best.safetensors`). That epoch was selected on these same images, so its number is optimistic."
        if row.metric in best
        else ""
    )
    rows = evaluation.class_rows() + ([list(mean_row)] if mean_row else [])
    text = [
        f"# {markdown_text(result.model_name)} on {markdown_code(result.data_name)}",
        headline,
        chosen,
        f"## Curves\n\n![Loss, {row.metric_label} and learning rate by epoch](curves.png)",
        "## Classes\n\n" + markdown_table(["class", *evaluation.columns.values()], rows),
        *sections,
        making(result, result.history),
        settings(result),
    ]
    return write_markdown(RunFolder(result.folder).report, text)


def final_weights(result: TrainResult) -> str:
    """Return the words that say which weights the headline belongs to."""
    averaged = " (exponential moving average)" if result.recipe.ema_decay is not None else ""
    return f"the weights at the end of training{averaged}, in fp32"
