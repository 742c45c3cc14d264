"""Metrics of classification: accuracy, cross entropy, per-class scores and the confusion matrix.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from iformer.dependencies import require

TOP5_CLASSES = 6
"""Top-5 accuracy is reported from this number of classes on."""


class ClassificationMetric:
    """Top-1 and top-5 accuracy, cross entropy, precision, recall, F1 and the confusion matrix.

    Built on torchmetrics, which sums the counts of several processes exactly.
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
            "precision": classification.MulticlassPrecision(classes, average="none", validate_args=False),
            "recall": classification.MulticlassRecall(classes, average="none", validate_args=False),
            "f1": classification.MulticlassF1Score(classes, average="none", validate_args=False),
            "confusion": classification.MulticlassConfusionMatrix(classes, validate_args=False),
        }
        if classes >= TOP5_CLASSES:
            metrics["top5"] = classification.MulticlassAccuracy(
                classes, top_k=5, average="micro", validate_args=False
            )
        self._metrics = torchmetrics.MetricCollection(metrics).to(device)
        self._loss = torchmetrics.MeanMetric().to(device)

    def update(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add logits (B x K) and `batch["labels"]` (int64 B)."""
        logits_BK, labels_B = outputs.float(), batch["labels"]
        self._metrics.update(logits_BK, labels_B)
        losses_B = functional.cross_entropy(logits_BK, labels_B, reduction="none")
        self._loss.update(losses_B)

    def compute(self) -> dict[str, Any]:
        """Return the metrics that `ClassificationEvaluation` documents; shares are percentages."""
        values = self._metrics.compute()
        confusion_KK = values["confusion"].long().cpu()
        support_K = confusion_KK.sum(1)
        scores = {name: values[name].cpu() for name in ("precision", "recall", "f1")}
        metrics: dict[str, Any] = {"top1": _percent(values["top1"])}
        if "top5" in values:
            metrics["top5"] = _percent(values["top5"])
        metrics["loss"] = float(self._loss.compute())
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
        metrics["confusion"] = confusion_KK.tolist()
        return metrics


def _percent(share: Tensor) -> float:
    """Return a share in percent, rounded to the precision of fp32."""
    return round(100 * float(share), 4)
