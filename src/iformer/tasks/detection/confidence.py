"""Precision, recall and F1 of detections by the lowest score that is reported, and the confusion matrix.

A detection is right if its IoU with an object of its class is at least `IOU`, and no detection with a higher score
has taken that object. Other detections that lie in a crowd region of their class are not counted.

Shape letters: K classes, T thresholds, N detections of an image, M objects of an image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

from iformer.data.detection import DetectionSample, DetectionSet

IOU = 0.5
"""Smallest IoU of a detection with the object that it finds, as for COCO's AP50."""
THRESHOLDS = np.linspace(0.0, 1.0, 101)
"""Thresholds of the score at which precision and recall are computed: T = 101 values from 0 to 1."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ConfidenceCurves:
    """Precision, recall and F1 of each class at each of `THRESHOLDS`."""

    class_names: tuple[str, ...]
    """Names of the K classes that have objects."""
    precision: _Floats
    """Precision of each class at each threshold, K x T, 0 to 1; 1 where nothing is reported."""
    recall: _Floats
    """Recall of each class at each threshold, K x T, 0 to 1."""
    ranked: tuple[tuple[_Floats, _Floats], ...]
    """For each class: recall and precision after each of its detections, in the order of falling score."""

    @property
    def f1(self) -> _Floats:
        """Harmonic means of precision and recall, K x T; 0 where nothing is found."""
        total = self.precision + self.recall
        return np.where(total > 0, 2 * self.precision * self.recall / np.maximum(total, 1e-12), 0.0)

    @property
    def best(self) -> tuple[float, float]:
        """The threshold with the highest mean F1 of the classes, and that mean, both 0 to 1."""
        index = self._best_index()
        return float(THRESHOLDS[index]), float(self.f1[:, index].mean())

    def _best_index(self) -> int:
        """Return the index of the best threshold; of equally good ones, the middle one, as the most robust."""
        mean_T = self.f1.mean(0)
        first = last = int(mean_T.argmax())
        while last + 1 < len(mean_T) and mean_T[last + 1] >= mean_T[first] - 1e-9:
            last += 1
        return (first + last) // 2

    def at_best(self) -> tuple[float, float]:
        """Return the mean precision and mean recall of the classes at the best threshold."""
        index = self._best_index()
        return float(self.precision[:, index].mean()), float(self.recall[:, index].mean())


def confidence_curves(image_set: DetectionSet, results: Sequence[Mapping[str, Any]]) -> ConfidenceCurves:
    """Compute precision and recall of detections by comparison with the annotated objects.

    Args:
        image_set: images and objects.
        results: all detections in COCO's result format.
    """
    by_image = _by_image(results)
    labels = {number: label for label, number in enumerate(image_set.category_ids)}
    scores: dict[int, list[float]] = defaultdict(list)
    right: dict[int, list[bool]] = defaultdict(list)
    for sample in image_set.samples:
        for label, score, is_right in _judged(sample, by_image.get(sample.image_id, ()), labels):
            scores[label].append(score)
            right[label].append(is_right)
    counts = list(image_set.class_counts.values())
    known = [label for label, count in enumerate(counts) if count]
    precision, recall, ranked = [], [], []
    for label in known:
        order = np.argsort(-np.array(scores[label], np.float64), kind="stable")
        falling = np.array(scores[label], np.float64)[order]
        found = np.cumsum(np.array(right[label], np.float64)[order])
        reported = np.searchsorted(-falling, -THRESHOLDS, side="right")  # number of scores >= threshold
        hits = np.concatenate([[0.0], found])[reported]
        precision.append(np.where(reported > 0, hits / np.maximum(reported, 1), 1.0))
        recall.append(hits / counts[label])
        ranked.append((found / counts[label], found / np.arange(1, len(found) + 1)))
    return ConfidenceCurves(
        class_names=tuple(image_set.class_names[label] for label in known),
        precision=np.array(precision).reshape(len(known), len(THRESHOLDS)),
        recall=np.array(recall).reshape(len(known), len(THRESHOLDS)),
        ranked=tuple(ranked),
    )


def confusion_matrix(
    image_set: DetectionSet, results: Sequence[Mapping[str, Any]], *, min_score: float
) -> npt.NDArray[np.int64]:
    """Count detections by their class and the class of the object that they lie on.

    Detections with a score of `min_score` or more are paired with objects of any class, by falling IoU down to
    `IOU`. Each detection and each object is in one pair at most.

    Returns:
        (K + 1) x (K + 1), rows true, columns detected. The last row counts detections on no object, the last
        column objects that were missed. Crowd regions, and detections in them, are not counted.
    """
    by_image = _by_image(results)
    labels = {number: label for label, number in enumerate(image_set.category_ids)}
    nothing = len(labels)
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    for sample in image_set.samples:
        objects = [one for one in sample.instances if not one.crowd]
        found = [one for one in by_image.get(sample.image_id, ()) if one["score"] >= min_score]
        overlap_NM = _overlaps([one["bbox"] for one in found], [one.box for one in objects])
        pairs = np.argwhere(overlap_NM >= IOU)
        detected: set[int] = set()
        taken: set[int] = set()
        for row, column in pairs[np.argsort(-overlap_NM[tuple(pairs.T)], kind="stable")].tolist():
            if row not in detected and column not in taken:
                detected.add(row)
                taken.add(column)
                counts[objects[column].label, labels[found[row]["category_id"]]] += 1
        for column, one in enumerate(objects):
            counts[one.label, nothing] += column not in taken
        crowds = [one for one in sample.instances if one.crowd]
        for row, result in enumerate(found):
            label = labels[result["category_id"]]
            if row not in detected and not _in_crowd(result["bbox"], label, crowds):
                counts[nothing, label] += 1
    return counts


def _judged(
    sample: DetectionSample, results: Sequence[Mapping[str, Any]], labels: Mapping[int, int]
) -> list[tuple[int, float, bool]]:
    """Return label, score and correctness of each counted detection of an image, as the module describes."""
    judged: list[tuple[int, float, bool]] = []
    crowds = [one for one in sample.instances if one.crowd]
    by_label: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for result in sorted(results, key=lambda result: -float(result["score"])):
        by_label[labels[result["category_id"]]].append(result)
    for label, found in by_label.items():
        objects = [one.box for one in sample.instances if one.label == label and not one.crowd]
        overlap_NM = _overlaps([one["bbox"] for one in found], objects)
        for row, result in enumerate(found):
            column = int(overlap_NM[row].argmax()) if objects else -1
            is_right = column >= 0 and overlap_NM[row, column] >= IOU
            if is_right:
                overlap_NM[:, column] = -1.0
            elif _in_crowd(result["bbox"], label, crowds):
                continue
            judged.append((label, float(result["score"]), is_right))
    return judged


def _in_crowd(box: Sequence[float], label: int, crowds: Sequence[Any]) -> bool:
    """Return whether at least half of a box lies in a crowd region of its class."""
    left, top, width, height = box
    for crowd in crowds:
        x, y, w, h = crowd.box
        shared = max(0.0, min(left + width, x + w) - max(left, x)) * max(
            0.0, min(top + height, y + h) - max(top, y)
        )
        if crowd.label == label and shared >= IOU * width * height:
            return True
    return False


def _overlaps(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> _Floats:
    """Return the IoU, N x M, of N boxes with M boxes; a box is (left, top, width, height)."""
    corners = []
    for boxes in (one, other):
        boxes_N4 = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        corners.append(torch.cat([boxes_N4[:, :2], boxes_N4[:, :2] + boxes_N4[:, 2:]], 1))
    overlaps: _Floats = box_iou(*corners).numpy()
    return overlaps


def _by_image(results: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    return by_image
