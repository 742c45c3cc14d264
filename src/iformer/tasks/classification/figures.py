"""Figures of an evaluation: the confusion matrix and the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iformer.data.images import read_image
from iformer.data.samples import Sample
from iformer.errors import DataError
from iformer.tasks.classification.evaluate import ClassificationEvaluation
from iformer.tasks.classification.metric import Confusion, confusion_entries
from iformer.tasks.confusion import classes_to_show, draw_matrix
from iformer.tasks.pictures import Bar, Card, draw_sheet, save_png, square

MAX_MISTAKES = 24

_WRONG, _TRUE = "#eba77a", "#56b4e9"
"""Pale vermilion and sky blue of Okabe and Ito's palette, which colour-blind people can tell apart."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that the network classified wrongly."""

    sample: Sample
    true_name: str
    true_probability: float
    """0 to 1, as `predicted_probability`."""
    predicted_name: str
    predicted_probability: float


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
            true_name=names[labels_N[row]],
            true_probability=float(true_N[row]),
            predicted_name=names[predicted_N[row]],
            predicted_probability=float(said_N[row]),
        )
        for row in order
    ]


def draw_mistakes(mistakes: Sequence[Mistake], path: Path) -> Path | None:
    """Write a contact sheet of mistakes with the predicted and the true class.

    Images that can no longer be read are left out; returns None if no image is left.
    """
    cards = []
    for mistake in mistakes:
        try:
            picture = read_image(mistake.sample)
        except DataError:
            continue
        bars = (
            Bar(label=mistake.predicted_name, share=mistake.predicted_probability, colour=_WRONG),
            Bar(label=f"true: {mistake.true_name}", share=mistake.true_probability, colour=_TRUE),
        )
        cards.append(Card(picture=square(picture), caption=mistake.sample.name, bars=bars))
    if not cards:
        return None
    subtitle = "The images with the largest gap between the answer's probability and the true class's."
    return save_png(draw_sheet(cards, columns=6, title="The worst mistakes", subtitle=subtitle), path)


def draw_confusion(confusion: Confusion, class_names: Sequence[str], path: Path) -> Path:
    """Write the confusion matrix, K x K counts, rows true. With many classes only the most confused are shown."""
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
