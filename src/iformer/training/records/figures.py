"""Figures of a run, drawn with matplotlib."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iformer.dependencies import require
from iformer.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _VAL, _MARK, _LR = "#E69F00", "#0072B2", "#D55E00", "#009E73"
INK, FAINT, _GRID = "#1c2430", "#6b7684", "#e3e7eb"


def draw_curves(
    history: Sequence[dict[str, Any]],
    path: Path,
    *,
    best_epoch: int | None = None,
    metric: str = "top1",
    metric_label: str = "top-1",
    loss_label: str = "cross entropy",
) -> Path:
    """Draw loss, the task's metric and learning rate over epochs; `history` is `TrainResult.history`.

    Returns:
        `path`, a PNG file.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = new_figure(13.5, 4.3)
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [record["epoch"] for record in history]
    marker = "o" if len(epochs) <= 40 else None
    _line(loss, history, "train_loss", "training (augmented)", _TRAIN, marker)
    _line(loss, history, "val_loss", "validation", _VAL, marker)
    finish_axes(loss, "Loss", loss_label)
    train_metric = "train_accuracy" if metric == "top1" else f"train_{metric}"
    _line(accuracy, history, train_metric, "training (augmented)", _TRAIN, marker)
    name = f"val_{metric}"
    _line(accuracy, history, name, "validation", _VAL, marker)
    best = [record for record in history if record["epoch"] == best_epoch and name in record]
    if best:
        accuracy.scatter(
            [best_epoch], [best[0][name]], s=90, facecolors="none", edgecolors=_MARK, linewidths=1.8,
            label=f"best, epoch {best_epoch}: {best[0][name]:.1f} %", zorder=4,
        )  # fmt: skip
    both = any(train_metric in record for record in history)
    title = "Accuracy" if metric == "top1" else f"{'' if both else 'Validation '}{metric_label}"
    finish_axes(accuracy, title[:1].upper() + title[1:], f"{metric_label}, %")
    _line(rate, history, "lr", "learning rate", _LR, marker)
    rate.yaxis.set_major_formatter(_rate_format(max((record["lr"] for record in history), default=1.0)))
    _mark_sizes(rate, history)
    finish_axes(rate, "Learning rate", "", legend=False)
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch", color=FAINT)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if epochs:
            axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    return save_figure(figure, path)


def _rate_format(largest: float) -> Callable[[float, int], str]:
    """Return a tick formatter that writes all rates with the exponent of `largest`, from 0.001 on without one."""
    exponent = 0 if largest >= 1e-3 or largest <= 0 else math.floor(math.log10(largest))
    return lambda value, _position: f"{value / 10**exponent:g}" + (f"e{exponent}" if exponent and value else "")


def _line(
    axes: Axes, history: Sequence[dict[str, Any]], key: str, label: str, colour: str, marker: str | None
) -> None:
    points = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
    if points:
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=colour, label=label, linewidth=1.8, marker=marker, markersize=3.5)


def _mark_sizes(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    """Mark the epochs at which progressive resizing changes the image size."""
    sizes = [(record["epoch"], record["size"]) for record in history if "size" in record]
    changes = [sizes[i] for i in range(len(sizes)) if i == 0 or sizes[i][1] != sizes[i - 1][1]]
    if len(changes) < 2:
        return
    rates = {record["epoch"]: record["lr"] for record in history if "lr" in record}
    middle = sum(axes.get_ylim()) / 2
    for epoch, size in changes:
        axes.axvline(epoch, color=FAINT, linewidth=0.8, linestyle=":")
        y = 0.95 if rates.get(epoch, 0.0) < middle else 0.02  # away from the curve
        axes.text(epoch, y, f" {size} px", transform=axes.get_xaxis_transform(), fontsize=8, color=FAINT)


def finish_axes(axes: Axes, title: str, unit: str, *, legend: bool = True) -> None:
    """Style axes like those of the other figures: title, unit of the vertical axis, grid and legend."""
    axes.set_title(title, loc="left", fontsize=12, color=INK, fontweight="bold")
    axes.set_ylabel(unit, color=FAINT)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRID)
    axes.tick_params(colors=FAINT, length=0)
    if legend and axes.get_legend_handles_labels()[0]:
        # below the axes, where it covers no data
        axes.legend(
            frameon=False, fontsize=9, labelcolor=INK, loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=2
        )


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, `width` x `height` inches, that uses no pyplot state and opens no window.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure: Figure = require("matplotlib.figure", extra="train").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure atomically as PNG; return `path`.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(path) as file, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # a class name in a script that the font lacks is drawn as boxes
        figure.savefig(file, format="png", dpi=130, facecolor="white", bbox_inches="tight", pad_inches=0.15)
    return path
