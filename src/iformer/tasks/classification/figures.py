"""Figures of an evaluation: confusion matrix, reliability, examples and the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from iformer.data.images import read_image
from iformer.data.samples import Sample
from iformer.errors import DataError
from iformer.tasks.classification.calibration import BINS, reliability
from iformer.tasks.classification.evaluate import ClassificationEvaluation, MultiLabelEvaluation
from iformer.tasks.classification.metric import Confusion, confusion_entries
from iformer.tasks.confusion import classes_to_show, draw_matrix
from iformer.tasks.pictures import Bar, Card, draw_sheet, save_png, square
from iformer.training.records.figures import FAINT, INK, finish_axes, new_figure, save_figure

MAX_MISTAKES = 24
"""Largest number of images on the sheet of mistakes."""
_LABELS = 6
"""Largest number of labels of one image that the sheets show."""

EXAMPLES = 24
"""Largest number of images on the sheet of examples that experiment trackers get."""
_ANSWERS = 2
"""Number of classes that have a bar below each example."""

_LINE = "#0072b2"
_WRONG, _TRUE, _PALE = "#eba77a", "#56b4e9", "#c3dcec"
"""Colours of wrong, true and other classes, from Okabe and Ito's palette, which is safe for the colour-blind."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that the network classified wrongly."""

    sample: Sample
    wrong: tuple[tuple[str, float], ...]
    """Classes that the network predicts and the image does not have, with their probabilities, 0 to 1."""
    true: tuple[tuple[str, float], ...]
    """Classes that the image has, with their probabilities; with several labels, only missed classes."""
    more: int = 0
    """Number of further wrong labels."""


def worst_mistakes(evaluation: ClassificationEvaluation, limit: int = MAX_MISTAKES) -> list[Mistake]:
    """Return the mistakes with the largest gap between the probabilities of the answer and of the true class."""
    probabilities_NK, labels_N = evaluation.probabilities, evaluation.labels
    rows = np.arange(len(labels_N))
    predicted_N = probabilities_NK.argmax(1)
    said_N, true_N = probabilities_NK[rows, predicted_N], probabilities_NK[rows, labels_N]
    wrong = np.flatnonzero(predicted_N != labels_N)
    order = wrong[np.argsort(-(said_N - true_N)[wrong], kind="stable")][:limit]
    names = evaluation.image_set.class_names
    return [
        Mistake(
            sample=evaluation.image_set.samples[evaluation.indices[row]],
            wrong=((names[predicted_N[row]], float(said_N[row])),),
            true=((names[labels_N[row]], float(true_N[row])),),
        )
        for row in order
    ]


def worst_labels(evaluation: MultiLabelEvaluation, limit: int = MAX_MISTAKES) -> list[Mistake]:
    """Return the images with the worst wrong labels, each with up to six of these labels.

    A label is wrong if its probability is on the wrong side of the threshold. The further the probability is from
    the truth (0 or 1), the worse is the label.
    """
    threshold, targets_NK = evaluation.metrics["threshold"], evaluation.targets > 0
    wrong_NK = (evaluation.probabilities >= threshold) != targets_NK
    error_NK = np.where(wrong_NK, np.abs(evaluation.probabilities - targets_NK), 0)
    rows = np.flatnonzero(wrong_NK.any(1))
    order = rows[np.argsort(-error_NK.max(1)[rows], kind="stable")][:limit]
    names = evaluation.image_set.class_names

    def shown(row: int, *, true: bool) -> tuple[tuple[str, float], ...]:
        worst = [k for k in np.argsort(-error_NK[row], kind="stable")[:_LABELS] if error_NK[row, k]]
        return tuple(
            (names[k], float(evaluation.probabilities[row, k])) for k in worst if targets_NK[row, k] == true
        )

    return [
        Mistake(
            sample=evaluation.image_set.samples[evaluation.indices[row]],
            wrong=shown(row, true=False),
            true=shown(row, true=True),
            more=max(0, int(wrong_NK[row].sum()) - _LABELS),
        )
        for row in order
    ]


GAP = "Largest gap between the probabilities of the answer (orange) and of the true class (blue) first."
"""Subtitle of the sheet of mistakes of networks with one label per image."""


def labels_subtitle(threshold: float) -> str:
    """Return the subtitle of the sheet of mistakes of networks with several labels per image."""
    return (
        f"Probability furthest from the truth first. Orange: predicted (from {100 * threshold:.0f} % on), but not "
        "true. Blue: true, but missed."
    )


def draw_mistakes(mistakes: Sequence[Mistake], path: Path, *, subtitle: str = GAP) -> bool:
    """Write a contact sheet of mistakes with the predicted and the true class; return whether a sheet was written.

    Images that can no longer be read are left out. If no image is left, an older sheet is removed.
    """
    cards = []
    for mistake in mistakes:
        try:
            picture = read_image(mistake.sample)
        except DataError:
            continue
        bars = (
            *(Bar(label=name, share=share, colour=_WRONG) for name, share in mistake.wrong),
            *(Bar(label=f"true: {name}", share=share, colour=_TRUE) for name, share in mistake.true),
        )
        cards.append(
            Card(picture=square(picture), caption=f"{mistake.sample.name}{_more(mistake.more)}", bars=bars)
        )
    if not cards:
        path.unlink(missing_ok=True)
        return False
    save_png(draw_sheet(cards, columns=6, title="The worst mistakes", subtitle=subtitle), path)
    return True


def example_sheet(
    evaluation: ClassificationEvaluation | MultiLabelEvaluation, *, title: str, count: int = EXAMPLES
) -> Image.Image | None:
    """Draw evenly spaced images of an evaluation with true and likeliest classes, marked as right or wrong.

    Returns None if no image can be read.
    """
    rows = np.linspace(0, len(evaluation.indices) - 1, min(count, len(evaluation.indices))).round().astype(int)
    cards = []
    for row in rows:
        sample = evaluation.image_set.samples[evaluation.indices[row]]
        try:
            picture = read_image(sample)
        except DataError:
            continue
        truth, found = _names(evaluation, row)
        shares_K = evaluation.probabilities[row]
        several = isinstance(evaluation, MultiLabelEvaluation)
        ranked = [(evaluation.image_set.class_names[k], float(shares_K[k])) for k in np.argsort(-shares_K)]
        wanted = {*truth, *found} if several else set()
        count = max(_ANSWERS, min(_LABELS, len(wanted)))
        chosen = {name for name, _ in ranked if name in wanted} | {name for name, _ in ranked[:_ANSWERS]}
        top = [(name, share) for name, share in ranked if name in chosen][:count]
        bars = tuple(
            Bar(label=name, share=share, colour=(_TRUE if name in truth else _WRONG) if name in found else _PALE)
            for name, share in top
        )
        caption = f"true: {', '.join(truth) or 'no label'}{_more(len(wanted) - count)}"
        cards.append(Card(picture=square(picture), caption=caption, bars=bars, is_right=set(truth) == set(found)))
    if not cards:
        return None
    subtitle = f"{len(cards)} of {len(evaluation.indices)} validation images, each with its likeliest classes."
    if isinstance(evaluation, MultiLabelEvaluation):
        subtitle = (
            f"{len(cards)} of {len(evaluation.indices)} validation images. Blue: predicted (from "
            f"{100 * evaluation.metrics['threshold']:.0f} % on) and true. Orange: predicted, but not true. Pale: "
            "not predicted."
        )
    return draw_sheet(cards, columns=6, title=title, subtitle=subtitle)


def _more(count: int) -> str:
    return f" (+{count} more)" if count > 0 else ""


def _names(evaluation: ClassificationEvaluation | MultiLabelEvaluation, row: int) -> tuple[list[str], list[str]]:
    """Return the names of the true classes and of the predicted classes of the image in row `row`."""
    if isinstance(evaluation, MultiLabelEvaluation):
        return evaluation.names_at(row)
    names = evaluation.image_set.class_names
    return [names[evaluation.labels[row]]], [names[int(evaluation.probabilities[row].argmax())]]


def draw_confusion(confusion: Confusion, class_names: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix to a file and return the path; of many classes, only the most confused are shown."""
    entries = confusion_entries(confusion)
    classes = len(class_names)
    totals_K = np.bincount(entries[:, 0], weights=entries[:, 2], minlength=classes).astype(np.int64)
    shown = classes_to_show(entries, classes)
    position = {int(k): row for row, k in enumerate(shown)}
    counts = np.zeros((len(shown), len(shown)), np.int64)
    for true, predicted, images in entries.tolist():
        if true in position and predicted in position:
            counts[position[true], position[predicted]] = images
    title = "Confusion matrix"
    if len(shown) < classes:
        title += f": the {len(shown)} most confused of {classes} classes"
    names = [class_names[k] for k in shown]
    return draw_matrix(counts, totals_K[shown], names, names, path, title=title)


def draw_reliability(evaluation: ClassificationEvaluation, path: Path) -> Path:
    """Plot accuracy and number of images by the probability of the answer, to a file, and return the path."""
    answers_N = evaluation.probabilities.argmax(1)
    found = reliability(evaluation.probabilities.max(1), answers_N == evaluation.labels)
    some = found.images > 0
    confidence, accuracy = (sums[some] / found.images[some] for sums in (found.confidence, found.right))
    centres = (np.arange(BINS) + 0.5) / BINS
    figure = new_figure(5.6, 5.6)
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot(confidence, accuracy, color=_LINE, marker="o", markersize=5, linewidth=1.8, label="the network")
    curve.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", label="calibrated")
    curve.set_ylim(-0.02, 1.02)
    title = f"Reliability: expected calibration error {found.error:.1f} %"
    finish_axes(curve, title, "share of right answers", legend=False)
    counts.bar(centres, found.images, width=0.9 / BINS, color=_LINE)
    finish_axes(counts, "", "images", legend=False)
    # below the axes, where it covers no data
    figure.legend(frameon=False, fontsize=9, labelcolor=INK, loc="outside lower left", ncols=2)
    counts.yaxis.get_major_locator().set_params(integer=True, nbins=3)
    counts.set_xlabel("probability of the answer", color=FAINT)
    counts.set_xlim(0, 1)
    counts.tick_params(axis="x", pad=8)
    return save_figure(figure, path)
