"""Draw confusion matrices, for every task."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from iformer.errors import printable
from iformer.training.records.figures import FAINT, INK, new_figure, save_figure

MAX_CONFUSION_CLASSES = 50
"""Largest number of classes that are all shown. With more classes, only the most confused ones are shown."""
MOST_CONFUSED = 24
"""Largest number of classes shown if there are more than `MAX_CONFUSION_CLASSES`."""
_ZERO = "#7f8aa0"
_COUNTED_CLASSES = 20
"""Largest number of shown classes for which the counts are written into the cells."""


def draw_matrix(
    counts: npt.NDArray[np.int64],
    totals: npt.NDArray[np.int64],
    rows: Sequence[str],
    columns: Sequence[str],
    path: Path,
    *,
    title: str,
    labels: tuple[str, str] = ("true (images)", "predicted"),
    unit: str = "share of the true class's images",
) -> Path:
    """Draw a confusion matrix, write it as a PNG file and return the path.

    Args:
        counts: R x C, rows true, columns predicted.
        totals: R numbers: the colour of a cell shows the count divided by the total of the row. Totals are shown
            next to the names of the rows.
        rows: R names.
        columns: C names.
        path: the PNG file.
        title: heading of the picture.
        labels: labels of the vertical and the horizontal axis.
        unit: label of the colour bar.
    """
    share = counts / np.maximum(totals[:, None], 1)
    count = max(counts.shape)
    side = float(np.clip(2.2 + 0.42 * count, 4.6, 15))
    row_names, column_names = ([shortened(name, 24) for name in names] for names in (rows, columns))
    room = 0.075 * max(map(len, (*row_names, *column_names)))
    figure = new_figure(side + room + 1.2, side + (room if count > 4 else 0.5))
    axes = figure.subplots()
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1)
    if count <= _COUNTED_CLASSES:
        size = 13 if count <= 4 else 10 if count <= 10 else 7.5
        for (row, column), value in np.ndenumerate(counts):
            text = f"{value}\n{100 * share[row, column]:.1f} %" if count <= 6 else str(value)
            colour = _ZERO if not value else "white" if share[row, column] < 0.55 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)
    fontsize = 11 if count <= 10 else 9 if count <= 25 else 7
    with_totals = [f"{name} ({total})" for name, total in zip(row_names, totals.tolist(), strict=True)]
    axes.set_yticks(range(len(rows)), with_totals, fontsize=fontsize)
    if count <= 4:
        axes.set_xticks(range(len(columns)), [textwrap.fill(name, 14) for name in column_names], fontsize=fontsize)
    else:
        axes.set_xticks(range(len(columns)), column_names, fontsize=fontsize, rotation=90)
    axes.set_xlabel(labels[1], color=FAINT)
    axes.set_ylabel(labels[0], color=FAINT)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=12, color=INK, fontweight="bold", pad=12)
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.15 / side, 0, 0.2 / side, 1)))
    bar.set_label(unit, color=FAINT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=FAINT)
    return save_figure(figure, path)


def classes_to_show(entries: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.int64]:
    """Return the sorted indices of the classes to show: all or, if there are too many, the most confused ones.

    Args:
        entries: rows of true class, predicted class and count.
        classes: number of classes.
    """
    if classes <= MAX_CONFUSION_CLASSES:
        return np.arange(classes)
    errors = entries[entries[:, 0] != entries[:, 1]]
    shown: set[int] = set()
    for true, predicted, _ in errors[np.argsort(-errors[:, 2], kind="stable")].tolist():
        if len(shown | {true, predicted}) > MOST_CONFUSED:
            break
        shown |= {true, predicted}
    return np.array(sorted(shown) or range(MOST_CONFUSED))


def shortened(text: str, length: int) -> str:
    """Return a printable text for matplotlib, cut in the middle if it has more than `length` characters."""
    text = printable(text).replace("$", r"\$")  # a dollar sign starts a formula in matplotlib
    if len(text) <= length:
        return text
    return text[: length // 2].rstrip() + "…" + text[-(length - length // 2 - 1) :].lstrip()
