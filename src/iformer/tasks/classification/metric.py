"""Metrics of classification: accuracy, cross entropy, per-class scores and the confusion matrix.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from iformer.dependencies import require
from iformer.tasks.classification.calibration import calibration_error
from iformer.training.distributed import all_gather

Confusion = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]
"""Confusion matrix: K x K counts (row true class, column predicted class), or only the nonzero counts, as lists
`true`, `predicted` and `images`."""

MATRIX_CLASSES = 1000
"""Largest number of classes for which all K x K counts are kept. With more classes, only the nonzero counts are
kept: 5,000 classes would have 25 million counts."""

THRESHOLDS = tuple(round(percent / 100, 2) for percent in range(1, 100))
"""Candidates, 0.01 to 0.99, for the probability from which a multi-label network answers yes for a class."""

TOP5_CLASSES = 6
"""Smallest number of classes with which top-5 accuracy is reported."""


class ClassificationMetric:
    """Top-1 and top-5 accuracy, cross entropy, precision, recall, F1 and the confusion matrix.

    Accuracy and loss come from torchmetrics. The scores by class do not: torchmetrics counts all K x K pairs of
    classes at each update, which takes seconds for thousands of classes. This class counts only pairs that occur.
    """

    def __init__(self, class_names: tuple[str, ...], *, device: Any = "cpu") -> None:
        """Build the metrics on `device`.

        Raises:
            MissingDependencyError: torchmetrics is not installed.
        """
        torchmetrics = require("torchmetrics", extra="train")
        classification = torchmetrics.classification
        self.class_names = class_names
        classes = len(class_names)
        metrics = {
            "top1": classification.MulticlassAccuracy(classes, average="micro", validate_args=False),
        }
        if classes >= TOP5_CLASSES:
            metrics["top5"] = classification.MulticlassAccuracy(
                classes, top_k=5, average="micro", validate_args=False
            )
        self._metrics = torchmetrics.MetricCollection(metrics).to(device)
        self._loss = torchmetrics.MeanMetric(nan_strategy="ignore").to(device)
        self._pairs: list[npt.NDArray[np.int64]] = []
        self._confidences: list[npt.NDArray[np.float32]] = []

    def update(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits (B x K) and `batch["labels"]` (int64 B)."""
        logits_BK, labels_B = outputs.float(), batch["labels"]
        self._metrics.update(logits_BK, labels_B)
        self._pairs.append(torch.stack([labels_B, logits_BK.argmax(1)]).cpu().numpy())
        self._confidences.append(logits_BK.softmax(1).amax(1).cpu().numpy())
        losses_B = functional.cross_entropy(logits_BK, labels_B, reduction="none")
        self._loss.update(losses_B)

    def compute(self) -> dict[str, Any]:
        """Return the metrics that `ClassificationEvaluation` documents. Every rank must call it."""
        values = self._metrics.compute()
        classes = len(self.class_names)
        pairs = np.concatenate([np.empty((2, 0), np.int64), *chain(*all_gather(self._pairs))], axis=1)
        support_K = np.bincount(pairs[0], minlength=classes)
        right_K = np.bincount(pairs[0][pairs[0] == pairs[1]], minlength=classes)
        answered_K = np.bincount(pairs[1], minlength=classes)
        scores = {
            "precision": _share(right_K, answered_K),
            "recall": _share(right_K, support_K),
            "f1": _share(2 * right_K, answered_K + support_K),
        }
        metrics: dict[str, Any] = {"top1": _percent(values["top1"])}
        if "top5" in values:
            metrics["top5"] = _percent(values["top5"])
        metrics["loss"] = float(self._loss.compute())
        confidences = np.concatenate([np.empty(0, np.float32), *chain(*all_gather(self._confidences))])
        metrics["ece"] = round(calibration_error(confidences, pairs[0] == pairs[1]), 4)
        metrics["images"] = int(support_K.sum())
        # a class without an image has no recall: it is left out of the means
        present_K = support_K > 0
        metrics["macro"] = {name: _percent(score_K[present_K].mean()) for name, score_K in scores.items()}
        metrics["per_class"] = {
            class_name: {
                **{name: _percent(score_K[k]) if present_K[k] else None for name, score_K in scores.items()},
                "support": int(support_K[k]),
            }
            for k, class_name in enumerate(self.class_names)
        }
        (true, predicted), counts = np.unique(pairs, axis=1, return_counts=True)
        if classes > MATRIX_CLASSES:
            entries = (true.tolist(), predicted.tolist(), counts.tolist())
            metrics["confusion"] = dict(zip(("true", "predicted", "images"), entries, strict=True))
        else:
            confusion_KK = np.zeros((classes, classes), np.int64)
            confusion_KK[true, predicted] = counts
            metrics["confusion"] = confusion_KK.tolist()
        return metrics


def multi_label_metrics(
    probabilities_NK: npt.NDArray[np.float32],
    targets_NK: npt.NDArray[np.float32],
    class_names: Sequence[str],
    *,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Return the metrics that `MultiLabelEvaluation` documents; shares are percentages.

    Args:
        probabilities_NK: the probability of each class, independent of the other classes.
        targets_NK: 1 for each class that an image has, else 0.
        class_names: K names.
        threshold: probability from which a class is a yes. None: the one of `THRESHOLDS` with the
            largest mean F1.

    Raises:
        MissingDependencyError: torchmetrics is not installed.
    """
    of = require("torchmetrics.functional.classification", extra="train")
    thresholds = THRESHOLDS if threshold is None else (threshold,)
    preds, targets = torch.from_numpy(probabilities_NK), torch.from_numpy(targets_NK)
    classes, support_K = len(class_names), targets.sum(0).long()
    present_K = support_K > 0  # a class without an image has no recall: it is left out of the means
    ap_K = of.multilabel_average_precision(
        preds[:, present_K], targets[:, present_K].long(), num_labels=int(present_K.sum()), average="none"
    ) if present_K.any() else torch.zeros(0)  # fmt: skip
    precision_KT, recall_KT, _ = of.multilabel_precision_recall_curve(
        preds, targets.long(), num_labels=classes, thresholds=torch.tensor(thresholds)
    )
    # the last point has no threshold; 0 where a class has neither an answer nor an image
    precision_KT, recall_KT = (share_KT[:, :-1].nan_to_num(0) for share_KT in (precision_KT, recall_KT))
    f1_KT = 2 * precision_KT * recall_KT / (precision_KT + recall_KT).clamp(min=1e-12)
    best = _best_threshold(f1_KT[present_K]) if threshold is None else 0
    scores = {
        "ap": torch.zeros(classes).masked_scatter(present_K, ap_K),
        "precision": precision_KT[:, best],
        "recall": recall_KT[:, best],
        "f1": f1_KT[:, best],
    }
    means = {name: _percent(score_K[present_K].mean()) for name, score_K in scores.items()}
    return {
        "map": means["ap"],
        "f1": means["f1"],
        "threshold": thresholds[best],
        "loss": float(functional.binary_cross_entropy(preds, targets)),
        "images": len(targets),
        "macro": means,
        "per_class": {
            name: {
                **{score: _percent(values_K[k]) if present_K[k] else None for score, values_K in scores.items()},
                "support": int(support_K[k]),
            }
            for k, name in enumerate(class_names)
        },
    }


def _best_threshold(f1_KT: Tensor) -> int:
    """Return the index in `THRESHOLDS` of the largest mean F1; of equally large ones, the one nearest to 0.5."""
    middle = len(THRESHOLDS) // 2
    if not len(f1_KT):
        return middle
    mean_T = f1_KT.mean(0)
    equal = torch.nonzero(mean_T >= mean_T.max() - 1e-6).flatten().tolist()
    return int(min(equal, key=lambda index: abs(index - middle)))


def confusion_entries(confusion: Confusion) -> npt.NDArray[np.int64]:
    """Return the nonzero entries of a confusion matrix in either form as rows (true, predicted, images)."""
    if isinstance(confusion, Mapping):
        return np.array([confusion[name] for name in ("true", "predicted", "images")], np.int64).T
    counts_KK = np.asarray(confusion, np.int64)
    return np.column_stack([*np.nonzero(counts_KK), counts_KK[np.nonzero(counts_KK)]])


def _share(part_K: npt.NDArray[np.int64], whole_K: npt.NDArray[np.int64]) -> Tensor:
    """Return `part_K / whole_K` in fp32; 0 where `whole_K` is 0."""
    return torch.from_numpy(part_K).float() / torch.from_numpy(np.maximum(whole_K, 1)).float()


def _percent(share: Tensor) -> float:
    """Return a share in percent, rounded to four decimals, because fp32 is not more precise."""
    return round(100 * float(share), 4)
