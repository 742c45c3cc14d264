"""Pictures of a training run. Colours are Okabe and Ito's, and cividis: both safe for the colour-blind.

Shape letters: N images, K classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import ImageOps

from iformer.data.images import read_image
from iformer.data.samples import Sample
from iformer.dependencies import require
from iformer.errors import DataError
from iformer.files import replacing
from iformer.training.records.results import ClassificationEvaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CONFUSION_CLASSES = 50
"""With more classes than this the confusion matrix shows only those most confused with each other."""
MOST_CONFUSED = 24
MAX_MISTAKES = 24

_COUNTED_CLASSES = 20
"""Up to so many classes the confusion matrix has its counts written in."""
_THUMBNAIL = 256

_TRAIN, _VAL, _MARK, _LR = "#E69F00", "#0072B2", "#D55E00", "#009E73"
_INK, _FAINT, _GRID = "#1c2430", "#6b7684", "#e3e7eb"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that the network got wrong."""

    sample: Sample
    true_name: str
    true_probability: float
    """0 to 1, as `predicted_probability`."""
    predicted_name: str
    predicted_probability: float


def draw_curves(
    history: Sequence[dict[str, Any]],
    path: Path,
    *,
    best_epoch: int | None = None,
    metric: str = "top1",
    metric_label: str = "top-1",
    title: str = "Accuracy",
    loss_label: str = "cross entropy",
) -> Path:
    """Loss, the task's metric and learning rate against epochs, from the records of `TrainResult.history`."""
    figure = _figure(13.5, 3.9)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in history]
    marker = "o" if len(epochs) <= 40 else None
    _line(loss, history, "train_loss", "training (augmented)", _TRAIN, marker)
    _line(loss, history, "val_loss", "validation", _VAL, marker)
    _finish(loss, "Loss", loss_label)
    if metric == "top1":
        _line(accuracy, history, "train_accuracy", "training (augmented)", _TRAIN, marker)
    name = f"val_{metric}"
    _line(accuracy, history, name, "validation", _VAL, marker)
    best = [record for record in history if record["epoch"] == best_epoch and name in record]
    if best:
        accuracy.scatter(
            [best_epoch], [best[0][name]], s=90, facecolors="none", edgecolors=_MARK, linewidths=1.8,
            label=f"best, epoch {best_epoch}: {best[0][name]:.1f} %", zorder=4,
        )  # fmt: skip
    _finish(accuracy, title, f"{metric_label}, %")
    _line(rate, history, "lr", "learning rate", _LR, marker)
    rate.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    _mark_sizes(rate, history)
    _finish(rate, "Learning rate", "", legend=False)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch", color=_FAINT)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if epochs:
            axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    return _save(figure, path)


def draw_confusion(confusion: Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> Path:
    """The confusion matrix, K x K counts, rows true. With many classes only the most confused are shown."""
    counts_KK = np.asarray(confusion, dtype=np.int64)
    totals_K = counts_KK.sum(1)
    shown = _classes_to_show(counts_KK)
    part = counts_KK[np.ix_(shown, shown)]
    share = part / np.maximum(totals_K[shown, None], 1)
    count = len(shown)
    side = float(np.clip(2.2 + 0.42 * count, 4.6, 15))
    names = [_shortened(class_names[k], 24) for k in shown]
    room = 0.075 * max(len(name) for name in names)
    figure = _figure(side + room + 1.2, side + (room if count > 4 else 0.5))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
    if count <= _COUNTED_CLASSES:
        size = 13 if count <= 4 else 10 if count <= 10 else 7.5
        for (row, column), value in np.ndenumerate(part):
            if value:
                text = f"{value}\n{100 * share[row, column]:.1f} %" if count <= 6 else str(value)
                colour = "white" if share[row, column] < 0.55 else _INK
                axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    fontsize = 11 if count <= 10 else 9 if count <= 25 else 7
    labels = [f"{name} ({totals_K[k]})" for name, k in zip(names, shown, strict=True)]
    axes.set_yticks(range(count), labels, fontsize=fontsize)
    if count <= 4:
        axes.set_xticks(range(count), [textwrap.fill(name, 14) for name in names], fontsize=fontsize)
    else:
        axes.set_xticks(range(count), names, fontsize=fontsize, rotation=90)
    axes.set_xlabel("predicted", color=_FAINT)
    axes.set_ylabel("true (images)", color=_FAINT)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    title = "Confusion matrix"
    if count < len(counts_KK):
        title += f": the {count} most confused of {len(counts_KK)} classes"
    axes.set_title(title, loc="left", fontsize=13, color=_INK, pad=12)
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.15 / side, 0, 0.2 / side, 1)))
    bar.set_label("share of the true class's images", color=_FAINT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=_FAINT)
    return _save(figure, path)


def draw_mistakes(mistakes: Sequence[Mistake], path: Path) -> Path | None:
    """A gallery of mistakes with true class, predicted class and both probabilities.

    Images that can no longer be read are left out; None where none is left.
    """
    readable = []
    for mistake in mistakes:
        try:
            picture = read_image(mistake.sample)
        except DataError:
            continue
        readable.append((mistake, np.asarray(ImageOps.pad(picture, (_THUMBNAIL, _THUMBNAIL), color=_GRID))))
    if not readable:
        return None
    columns = min(6, len(readable))
    rows = -(-len(readable) // columns)
    figure = _figure(max(2.3 * columns, 5), 2.85 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (mistake, pixels) in zip(grid.flat, readable, strict=False):
        axes.imshow(pixels)
        axes.set_title(
            f"{_shortened(mistake.predicted_name, 15)}  {100 * mistake.predicted_probability:.0f} %",
            fontsize=10, color=_MARK, loc="left", pad=18, fontweight="bold",
        )  # fmt: skip
        axes.text(
            0, 1.03, f"true: {_shortened(mistake.true_name, 17)}  {100 * mistake.true_probability:.0f} %",
            transform=axes.transAxes, fontsize=9, color=_VAL, va="bottom",
        )  # fmt: skip
        axes.text(
            0, -0.03, _shortened(mistake.sample.name, 30),
            transform=axes.transAxes, fontsize=7, color=_FAINT, va="top",
        )  # fmt: skip
    figure.suptitle(
        "The worst mistakes: what was said, and what was true\n", x=0.01, ha="left", fontsize=13, color=_INK
    )
    return _save(figure, path)


def worst_mistakes(evaluation: ClassificationEvaluation, limit: int = MAX_MISTAKES) -> list[Mistake]:
    """The wrong answers, those first that were given with most probability beyond the true class's."""
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


def _classes_to_show(counts_KK: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """All classes, or where they are too many those in the largest confusions, in their own order."""
    if len(counts_KK) <= MAX_CONFUSION_CLASSES:
        return np.arange(len(counts_KK))
    errors = counts_KK - np.diag(np.diag(counts_KK))
    shown: set[int] = set()
    for flat in np.argsort(-errors, axis=None, kind="stable"):
        pair = {int(index) for index in np.unravel_index(flat, errors.shape)}
        if len(shown | pair) > MOST_CONFUSED or errors.flat[flat] == 0:
            break
        shown |= pair
    return np.array(sorted(shown) or range(MOST_CONFUSED))


def _line(
    axes: Axes, history: Sequence[dict[str, Any]], key: str, label: str, colour: str, marker: str | None
) -> None:
    points = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, label=label, linewidth=1.8, marker=marker, markersize=3.5)


def _mark_sizes(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    """With progressive resizing, say from which epoch on which size is trained."""
    sizes = [(record["epoch"], record["size"]) for record in history if "size" in record]
    changes = [sizes[i] for i in range(len(sizes)) if i == 0 or sizes[i][1] != sizes[i - 1][1]]
    if len(changes) < 2:
        return
    for epoch, size in changes:
        axes.axvline(epoch, color=_FAINT, linewidth=0.8, linestyle=":")
        axes.text(
            epoch, 0.02, f" {size} px", transform=axes.get_xaxis_transform(), fontsize=8, color=_FAINT,
        )  # fmt: skip


def _finish(axes: Axes, title: str, unit: str, *, legend: bool = True) -> None:
    axes.set_title(title, loc="left", fontsize=12, color=_INK, fontweight="bold")
    axes.set_ylabel(unit, color=_FAINT)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=_FAINT, length=0)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, labelcolor=_INK)


def _figure(width: float, height: float) -> Figure:
    # a Figure of its own, not pyplot's: no window, no state shared with the user's code
    figure: Figure = require("matplotlib.figure", extra="train").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=130, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return path


def _shortened(text: str, length: int) -> str:
    # "$" starts a formula in matplotlib
    text = text.replace("$", r"\$")
    return (
        text
        if len(text) <= length
        else text[: length // 2].rstrip() + "…" + text[-(length - length // 2 - 1) :].lstrip()
    )
