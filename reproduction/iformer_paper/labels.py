"""Place the labels of a chart so that none covers another one, a marker or, if possible, a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Array = NDArray[np.float64]

_ANGLES = np.arange(16) * (2 * np.pi / 16)
_DISTANCES = np.array([2.0, 6.0, 11.0, 17.0, 24.0, 32.0, 42.0])
"""Distances of a label from its marker, in points."""

_LEADER = 8.0
"""Distance in points from which on a thin line leads from the label to its marker."""

_OUTSIDE, _TEXT, _MARKER, _NEAR, _LINE, _DISTANCE = 3000.0, 2000.0, 1500.0, 15.0, 1.0, 0.15
"""Costs of a label outside the axes, over labels, over markers and near those of other labels (by covered share
of its area), over lines (by sampled points), and of its distance in points."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text beside one of several points."""

    text: str
    points: Sequence[tuple[float, float]]
    """Coordinates in the data, of which the label takes the one with the most room."""
    colour: str
    size: float
    """Font size in points."""
    bold: bool = False


def place_labels(axes: Axes, labels: Sequence[Label], *, marker: float) -> None:
    """Annotate the axes with labels, each where it covers the least; the first ones have the first choice.

    The figure's layout must be final: call `draw_without_rendering()` before. Lines and markers to avoid are those
    of `axes.get_lines()`.

    Args:
        axes: axes with everything but the labels.
        labels: the labels.
        marker: diameter of the markers in points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    pixel = figure.dpi / 72  # per point
    lines = [axes.transData.transform(np.asarray(line.get_xydata())) for line in axes.get_lines()]
    centres = np.concatenate(lines)
    markers = _squares(centres, marker * pixel)
    samples = np.concatenate([_sampled(line) for line in lines])
    inside = np.array([axes.bbox.extents])
    texts = np.empty((0, 4))
    for label in labels:
        size = _size(axes, label) + 3 * pixel  # a margin around the text
        anchors = axes.transData.transform(np.asarray(label.points))
        others = centres[~(np.abs(centres[:, None] - anchors) < 0.5).all(2).any(1)]
        offsets = np.concatenate([_around(size, (marker / 2 + distance) * pixel) for distance in _DISTANCES])
        middles = (anchors[:, None] + offsets).reshape(-1, 2)
        boxes = np.concatenate([middles - size / 2, middles + size / 2], axis=1)
        area = size.prod()
        cost = _OUTSIDE * (1 - _overlap(boxes, inside)[:, 0] / area)
        cost += _TEXT * _overlap(boxes, texts).sum(1) / area + _MARKER * _overlap(boxes, markers).sum(1) / area
        cost += _NEAR * _overlap(boxes, _squares(others, (marker + 10) * pixel)).sum(1) / area
        cost += _LINE * _covered(boxes, samples)
        cost += _DISTANCE * np.tile(np.repeat(_DISTANCES, len(_ANGLES)), len(anchors))
        best = int(cost.argmin())
        point, offset = divmod(best, len(offsets))
        texts = np.concatenate([texts, boxes[best : best + 1]])
        far = _DISTANCES[offset // len(_ANGLES)] >= _LEADER
        drawn = axes.annotate(
            label.text, label.points[point], xytext=tuple(offsets[offset] / pixel), textcoords="offset points",
            ha="center", va="center", color=label.colour, fontsize=label.size,
            weight="bold" if label.bold else "normal", zorder=5,
            arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkA": 0} if far else None,
        )  # fmt: skip
        drawn.set_in_layout(False)


def _size(axes: Axes, label: Label) -> Array:
    """Return width and height of the drawn text in pixels."""
    text = axes.text(0, 0, label.text, fontsize=label.size, weight="bold" if label.bold else "normal")
    extent = text.get_window_extent()
    text.remove()
    return np.array([extent.width, extent.height])


def _squares(centres: Array, side: float) -> Array:
    """Return squares around points: N x 4."""
    return np.concatenate([centres - side / 2, centres + side / 2], axis=1)


def _around(size: Array, distance: float) -> Array:
    """Return the middles of boxes around a point at a distance, clockwise from the right: A x 2."""
    return np.stack([np.cos(_ANGLES), -np.sin(_ANGLES)], axis=1) * (size / 2 + distance)


def _sampled(line: Array) -> Array:
    """Return points about every 3 pixels along a line of N x 2 points."""
    if len(line) < 2:
        return line
    parts = [np.linspace(start, end, max(2, int(np.hypot(*(end - start)) / 3))) for start, end in pairwise(line)]
    return np.concatenate(parts)


def _overlap(boxes: Array, others: Array) -> Array:
    """Return the common area of each of K boxes with each of N others, in square pixels: K x N."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    area: Array = (high - low).clip(0).prod(2)
    return area


def _covered(boxes: Array, points: Array) -> Array:
    """Return the number of points in each of K boxes."""
    within = (points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:])
    count: Array = within.all(2).sum(1).astype(np.float64)
    return count
