"""Write the `report.md` of a classifier: accuracy, classes, confusion and mistakes."""

from __future__ import annotations

import math
from pathlib import Path

from iformer.tables import Markdown, markdown_table
from iformer.tasks.classification.evaluate import ClassificationEvaluation, MultiLabelEvaluation
from iformer.tasks.classification.figures import (
    draw_confusion,
    draw_mistakes,
    draw_reliability,
    labels_subtitle,
    worst_labels,
    worst_mistakes,
)
from iformer.tasks.classification.metric import confusion_entries
from iformer.tasks.report import final_weights, write_task_report
from iformer.training.records.results import TrainResult

_PAIRS = 10
_LOSS = (
    "## Loss\n\nThe loss is binary for each class, because `multi_label` is set; the setting `loss` says whether "
    "it is the binary cross entropy (`bce`) or its focal form."
)


def write_report(result: TrainResult) -> Path:
    """Write the `report.md` of a classifier and its figures into the run folder.

    The figures are `curves.png`, `confusion.png`, `reliability.png` and, if there are mistakes, `mistakes.png`.
    Multi-label networks have neither `confusion.png` nor `reliability.png`. Older files are replaced.

    Returns:
        The path of `report.md`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    evaluation, folder = result.evaluation, result.folder
    if isinstance(evaluation, MultiLabelEvaluation):
        return _write_multi_label_report(result, evaluation)
    assert isinstance(evaluation, ClassificationEvaluation)
    draw_confusion(evaluation.metrics["confusion"], evaluation.image_set.class_names, folder / "confusion.png")
    draw_reliability(evaluation, folder / "reliability.png")
    shown = draw_mistakes(worst_mistakes(evaluation), folder / "mistakes.png")
    macro = [Markdown(f"**{value:.1f}**") for value in evaluation.metrics["macro"].values()]
    return write_task_report(
        result,
        _headline(result),
        [_confusion(result), _calibration(result), _mistakes(wrong=result.metrics["top1"] < 100, shown=shown)],
        mean_row=[Markdown("**mean over classes**"), *macro, f"{evaluation.metrics['images']:,}"],
    )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval (Wilson's) of a share of `count` images; shares are 0 to 1."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def _headline(result: TrainResult) -> str:
    metrics = result.metrics
    count = metrics["images"]
    low, high = wilson_interval(metrics["top1"] / 100, count)
    largest = max(per_class["support"] for per_class in metrics["per_class"].values())
    top5 = f", top-5 {metrics['top5']:.2f} %" if "top5" in metrics else ""
    return (
        f"**Top-1 {metrics['top1']:.2f} %**{top5} on {count} validation images: {final_weights(result)}, at "
        f"{result.recipe.size} x {result.recipe.size}. The 95 % confidence interval for this number of images "
        f"is {100 * low:.1f} to {100 * high:.1f} %. Always answering the largest class would reach "
        f"{100 * largest / max(count, 1):.1f} %."
    )


def _confusion(result: TrainResult) -> str:
    names = list(result.metrics["per_class"])
    support = [scores["support"] for scores in result.metrics["per_class"].values()]
    entries = confusion_entries(result.metrics["confusion"]).tolist()
    pairs = sorted((entry for entry in entries if entry[0] != entry[1]), key=lambda entry: -entry[2])
    text = "## Confusion\n\n![Confusion matrix](confusion.png)"
    if len(names) > 2 and pairs:
        rows = [
            [names[true], names[predicted], str(count), f"{100 * count / support[true]:.1f}"]
            for true, predicted, count in pairs[:_PAIRS]
        ]
        text += "\n\n" + markdown_table(["true", "predicted", "images", "% of the true class"], rows)
    return text


def _write_multi_label_report(result: TrainResult, evaluation: MultiLabelEvaluation) -> Path:
    metrics = evaluation.metrics
    subtitle = labels_subtitle(metrics["threshold"])
    shown = draw_mistakes(worst_labels(evaluation), result.folder / "mistakes.png", subtitle=subtitle)
    wrong = any(set(labels) != set(found) for labels, found in map(evaluation.names_at, range(metrics["images"])))
    headline = (
        f"**mAP {metrics['map']:.2f} %**, F1 {metrics['f1']:.2f} % at the threshold {metrics['threshold']:g}, on "
        f"{metrics['images']} validation images: {final_weights(result)}, at {result.recipe.size} x "
        f"{result.recipe.size}. mAP is the mean over the classes of the average precision; the threshold is the "
        "probability from which a class is a yes, chosen on these images for the largest mean F1."
    )
    macro = [Markdown(f"**{value:.1f}**") for value in metrics["macro"].values()]
    return write_task_report(
        result,
        headline,
        [_mistakes(wrong=wrong, shown=shown), _LOSS],
        mean_row=[Markdown("**mean over classes**"), *macro, f"{metrics['images']:,}"],
        loss_label="binary cross entropy",
    )


def _calibration(result: TrainResult) -> str:
    metrics = result.metrics
    scaled = (
        f" The logits were divided by {metrics['temperature']:.3f}; before, it was "
        f"{metrics['ece_uncalibrated']:.2f} %."
        if "temperature" in metrics
        else ""
    )
    error = f"The expected calibration error is {metrics['ece']:.2f} %.{scaled}" if "ece" in metrics else ""
    return f"## Calibration\n\n{error}\n\n![Accuracy by the probability of the answer](reliability.png)"


def _mistakes(*, wrong: bool, shown: bool) -> str:
    if not shown:
        return "## Mistakes\n\n" + ("Their images can no longer be read." if wrong else "None.")
    return "## The worst mistakes\n\n![Images with their predicted and true class](mistakes.png)"
