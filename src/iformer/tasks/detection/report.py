"""Write the `report.md` of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from iformer.data.detection import DetectionSet
from iformer.models.weights.resolve import load
from iformer.tables import markdown_table
from iformer.tasks.confusion import classes_to_show, draw_matrix, shortened
from iformer.tasks.detection.confidence import (
    IOU,
    THRESHOLDS,
    ConfidenceCurves,
    confidence_curves,
    confusion_matrix,
)
from iformer.tasks.detection.evaluate import DetectionEvaluation
from iformer.tasks.detection.metric import class_agnostic
from iformer.tasks.detection.predict import DetectionPredictor, draw_objects
from iformer.tasks.pictures import save_png
from iformer.tasks.pyramid import example_sheet
from iformer.tasks.report import EXAMPLES, EXAMPLES_SECTION, final_weights, write_task_report
from iformer.training.records.figures import FAINT, INK, finish_axes, new_figure, save_figure
from iformer.training.records.results import TrainResult
from iformer.training.records.run_folder import RunFolder

_COLUMNS = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "small",
    "ap_medium": "medium",
    "ap_large": "large",
}

_MAX_NAMED = 10
"""Largest number of classes for which the legend names the curve of each class."""
_MEAN, _MARK = "#0072B2", "#D55E00"


def write_report(result: TrainResult) -> Path:
    """Write the `report.md` of a detector and its pictures into the run folder.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    evaluation, metrics = result.evaluation, result.metrics
    assert isinstance(evaluation, DetectionEvaluation)
    overall = markdown_table(
        ["", *_COLUMNS.values()],
        [
            [kind, *(_number(metrics[f"{kind}_{name}"]) for name in _COLUMNS)]
            for kind in ("box", "mask")
            if f"{kind}_ap" in metrics
        ],
    )
    headline = (
        f"**Box AP {metrics['box_ap']:.2f} %, AP50 {metrics['box_ap50']:.2f} %** on {metrics['images']} "
        f"validation images: {final_weights(result)}.\n\n{overall}\n\nAP is COCO's: the mean over IoU thresholds "
        "from 0.5 to 0.95 and over classes. Small objects have less than 32 x 32 pixels, medium ones less than "
        "96 x 96."
    )
    if len(evaluation.image_set.class_names) > 1:
        found = class_agnostic(evaluation.image_set.ground_truth(), evaluation.results)
        headline += (
            f"\n\nWith all classes counted as one, box AP is {found['box_ap']:.2f} %, "
            f"AP50 {found['box_ap50']:.2f} %. The difference from the figures above is the cost of wrong classes."
        )
    network = load(RunFolder(result.folder).last)
    save_png(draw_examples(network, evaluation.image_set, name=result.model_name), result.folder / EXAMPLES)
    sections = [_confidence(evaluation, result.folder), EXAMPLES_SECTION]
    return write_task_report(result, headline, sections, loss_label="sum of the losses")


def draw_examples(
    network: Any, images: DetectionSet, *, name: str, device: torch.device | str = "cpu"
) -> Image.Image:
    """Draw validation images with their objects and with the detections of a network."""
    predictor = DetectionPredictor(network, device=device)
    return example_sheet(
        predictor,
        [sample.path for sample in images.samples],
        lambda index, image, scale: draw_objects(
            image, images.samples[index].instances, images.class_names, scale
        ),
        title=f"{name}: detections with a score of {predictor.min_score} or more",
    )


def _confidence(evaluation: DetectionEvaluation, folder: Path) -> str:
    """Write `confidence.png` and `confusion.png`, and return the section of the report that shows them."""
    image_set, results = evaluation.image_set, evaluation.results
    curves = confidence_curves(image_set, results)
    best, f1 = curves.best
    precision, recall = curves.at_best()
    draw_confidence(curves, folder / "confidence.png")
    counts = confusion_matrix(image_set, results, min_score=best)
    draw_object_confusion(counts, image_set.class_names, folder / "confusion.png")
    return (
        f"## Confidence\n\n**The best confidence is {best:.2f}**: the mean F1 of the classes is {100 * f1:.1f} %, "
        f"precision {100 * precision:.1f} %, recall {100 * recall:.1f} %, at an overlap of {IOU}. It was selected "
        f"on these same images. `iformer predict --min-score {best:.2f}` reports these detections.\n\n"
        "![Precision against recall, and F1 against confidence](confidence.png)\n\n"
        "![Confusion matrix of objects and detections](confusion.png)"
    )


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"


def draw_confidence(curves: ConfidenceCurves, path: Path) -> Path:
    """Plot precision against recall, and F1 against the lowest score, for each class and for the mean."""
    figure = new_figure(13.5, 4.6)
    left, right = figure.subplots(1, 2)
    named = len(curves.class_names) <= _MAX_NAMED
    colours = _colours(len(curves.class_names))
    grid = np.linspace(0.0, 1.0, 101)
    envelopes = []
    for index, name in enumerate(curves.class_names):
        recall, precision = curves.ranked[index]
        envelope = _precision_at(recall, precision, grid)
        envelopes.append(envelope)
        style = {"color": colours[index] if named else FAINT, "linewidth": 1.1, "alpha": 0.9 if named else 0.35}
        label = shortened(name, 24) if named else None
        left.plot(grid, envelope, label=label, **style)
        right.plot(THRESHOLDS, curves.f1[index], label=label, **style)
    left.plot(grid, np.mean(envelopes, 0), color=_MEAN, linewidth=2.6, label=f"mean of {len(envelopes)} classes")
    right.plot(
        THRESHOLDS, curves.f1.mean(0), color=_MEAN, linewidth=2.6, label=f"mean of {len(envelopes)} classes"
    )
    confidence, best = curves.best
    right.scatter(
        [confidence], [best], s=90, facecolors="none", edgecolors=_MARK, linewidths=1.8, zorder=4,
        label=f"best: {best:.2f} at {confidence:.2f}",
    )  # fmt: skip
    finish_axes(left, "Precision and recall at IoU 0.5", "precision")
    finish_axes(right, "F1 at IoU 0.5", "F1")
    left.set_xlabel("recall", color=FAINT)
    right.set_xlabel("lowest score that is reported", color=FAINT)
    for axes in (left, right):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, path)


def draw_object_confusion(counts: npt.NDArray[np.int64], class_names: Sequence[str], path: Path) -> Path:
    """Draw the matrix of `iformer.tasks.detection.confidence.confusion_matrix`; return the path.

    Of many classes, only the most confused ones are shown. Missed objects, and detections on no object, are always
    shown.
    """
    classes = len(class_names)
    inner = counts[:classes, :classes]
    entries = np.array([(*index, value) for index, value in np.ndenumerate(inner) if value], np.int64).reshape(
        -1, 3
    )
    shown = classes_to_show(entries, classes)
    rows = np.append(shown, classes)
    names = [class_names[k] for k in shown]
    title = "Objects and detections at the best confidence"
    if len(shown) < classes:
        title += f": the {len(shown)} most confused of {classes} classes"
    return draw_matrix(
        counts[np.ix_(rows, rows)],
        counts.sum(1)[rows],
        [*names, "no object"],
        [*names, "missed"],
        path,
        title=title,
        labels=("annotated (objects)", "detected"),
        unit="share of the row",
    )


def _colours(count: int) -> list[tuple[float, float, float, float]]:
    """Return `count` colours that differ clearly, even where lines lie close together."""
    from matplotlib import colormaps

    return [tuple(colormaps["turbo"](value)) for value in np.linspace(0.05, 0.95, max(1, count))]


def _precision_at(
    recall: npt.NDArray[np.float64], precision: npt.NDArray[np.float64], grid: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return, for each recall of `grid`, the highest precision at this or a higher recall; 0 if there is none."""
    if not len(recall):
        return np.zeros_like(grid)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    positions = np.searchsorted(recall, grid, side="left")
    found: npt.NDArray[np.float64] = np.where(
        positions < len(recall), envelope[np.minimum(positions, len(recall) - 1)], 0.0
    )
    return found
