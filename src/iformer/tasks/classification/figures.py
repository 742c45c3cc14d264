"""Figures of an evaluation: the confusion matrix and the worst mistakes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iformer.data.images import read_image
from iformer.data.samples import Sample
from iformer.errors import DataError, printable
from iformer.tasks.classification.evaluate import ClassificationEvaluation
from iformer.tasks.classification.metric import Confusion, confusion_entries
from iformer.tasks.pictures import Bar, Card, draw_sheet, save_png, square
from iformer.training.records.figures import FAINT, INK, new_figure, save_figure

MAX_MISTAKES = 24
MAX_CONFUSION_CLASSES = 50
"""With more classes than this the confusion matrix shows only those most confused with each other."""
MOST_CONFUSED = 24

_COUNTED_CLASSES = 20
"""Up to this number of classes the confusion matrix shows counts as text."""

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
    shown = _classes_to_show(entries, classes)
    position = {int(k): row for row, k in enumerate(shown)}
    counts = np.zeros((len(shown), len(shown)), np.int64)
    for true, predicted, images in entries.tolist():
        if true in position and predicted in position:
            counts[position[true], position[predicted]] = images
    share = counts / np.maximum(totals_K[shown, None], 1)
    count = len(shown)
    side = float(np.clip(2.2 + 0.42 * count, 4.6, 15))
    names = [_shortened(class_names[k], 24) for k in shown]
    room = 0.075 * max(len(name) for name in names)
    figure = new_figure(side + room + 1.2, side + (room if count > 4 else 0.5))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
    if count <= _COUNTED_CLASSES:
        size = 13 if count <= 4 else 10 if count <= 10 else 7.5
        for (row, column), value in np.ndenumerate(counts):
            if value:
                text = f"{value}\n{100 * share[row, column]:.1f} %" if count <= 6 else str(value)
                colour = "white" if share[row, column] < 0.55 else INK
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    fontsize = 11 if count <= 10 else 9 if count <= 25 else 7
    labels = [f"{name} ({totals_K[k]})" for name, k in zip(names, shown, strict=True)]
    axes.set_yticks(range(count), labels, fontsize=fontsize)
    if count <= 4:
        axes.set_xticks(range(count), [textwrap.fill(name, 14) for name in names], fontsize=fontsize)
    else:
        axes.set_xticks(range(count), names, fontsize=fontsize, rotation=90)
    axes.set_xlabel("predicted", color=FAINT)
    axes.set_ylabel("true (images)", color=FAINT)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = "Confusion matrix"
    if count < classes:
        title += f": the {count} most confused of {classes} classes"
    axes.set_title(title, loc="left", fontsize=13, color=INK, pad=12)
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.15 / side, 0, 0.2 / side, 1)))
    bar.set_label("share of the true class's images", color=FAINT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=FAINT)
    return save_figure(figure, path)


def _classes_to_show(entries: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Return all classes or, if there are too many, those of the largest confusions, in their own order."""
    if classes <= MAX_CONFUSION_CLASSES:
        return np.arange(classes)
    errors = entries[entries[:, 0] != entries[:, 1]]
    shown: set[int] = set()
    for true, predicted, _ in errors[np.argsort(-errors[:, 2], kind="stable")].tolist():
        if len(shown | {true, predicted}) > MOST_CONFUSED:
            break
        shown |= {true, predicted}
    return np.array(sorted(shown) or range(MOST_CONFUSED))


def _shortened(text: str, length: int) -> str:
    text = printable(text).replace("$", r"\$")  # a dollar sign starts a formula in matplotlib
    if len(text) <= length:
        return text
    return text[: length // 2].rstrip() + "…" + text[-(length - length // 2 - 1) :].lstrip()
