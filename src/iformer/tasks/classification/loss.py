"""Classification: cross entropy on hard, smoothed or mixed labels, and accuracy.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.dependencies import require
from iformer.errors import ConfigError
from iformer.training.protocol import Batch

TOP5_CLASSES = 6
"""Fewest classes with which top-5 accuracy says something."""


@dataclass(frozen=True)
class MixedBatch:
    """What a step learns from."""

    images: Tensor
    """Float B x 3 x H x W."""
    targets: Tensor
    """int64 B classes, or float B x K probabilities of mixed images."""
    strongest: Tensor
    """int64 B: the class with the largest share of each image."""
    label_smoothing: float
    """What is still to be smoothed away from `targets`."""

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Of logits, B x K, with the targets: the mean over the images, in fp32."""
        return functional.cross_entropy(logits.float(), self.targets, label_smoothing=self.label_smoothing)

    def accuracy(self, answers_B: Tensor) -> Tensor:
        """The percentage of int64 B answers that name the strongest class."""
        return 100 * (answers_B == self.strongest).float().mean()


class Classification:
    """Images to one class each.

    `batch["labels"]` is int64 B. Networks with two heads learn the labels with both: the loss is the mean.
    """

    name = "classify"
    primary_metric = "top1"
    metric_label = "top-1"

    def __init__(
        self,
        class_names: tuple[str, ...],
        *,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
    ) -> None:
        """See `iformer.config.recipe.Recipe` for the settings; mixing draws from NumPy's global generator.

        Raises:
            ConfigError: fewer than two classes.
        """
        if len(class_names) < 2:
            raise ConfigError(f"class_names is {class_names!r}; expected two classes or more")
        self.class_names = tuple(class_names)
        self.label_smoothing = label_smoothing
        self._mixup = None
        if mixup_prob > 0 and (mixup_alpha > 0 or cutmix_alpha > 0):
            from timm.data.mixup import Mixup

            self._mixup = Mixup(
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
                prob=mixup_prob,
                switch_prob=mixup_switch_prob,
                label_smoothing=label_smoothing,
                num_classes=len(class_names),
            )

    def mix(self, batch: Batch) -> MixedBatch:
        """The images and targets that a step learns from: mixed with each other where the task mixes."""
        images, labels_B = batch["images"], batch["labels"]
        if self._mixup is None or len(images) % 2:  # an odd rest of an epoch is left unmixed
            return MixedBatch(images, labels_B, strongest=labels_B, label_smoothing=self.label_smoothing)
        images, targets_BK = self._mixup(images, labels_B)  # Mixup smooths its targets itself
        return MixedBatch(images, targets_BK, strongest=targets_BK.argmax(1), label_smoothing=0.0)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy, and `accuracy`: the percentage of images whose strongest label was answered."""
        mixed = self.mix(batch)
        outputs = model(mixed.images)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [mixed.cross_entropy(logits) for logits in heads]
        with torch.no_grad():
            answers_B = sum(logits.float() for logits in heads).argmax(1)
        return {"loss": torch.stack(losses).mean(), "accuracy": mixed.accuracy(answers_B)}

    def metric(self, *, device: Any = "cpu") -> ClassificationMetric:
        """Accuracy, per-class scores and the confusion matrix."""
        return ClassificationMetric(self.class_names, device=device)


class ClassificationMetric:
    """Top-1 and top-5 accuracy, cross entropy, precision, recall, F1 and the confusion matrix.

    Built on torchmetrics, which joins the counts of several processes exactly.
    """

    def __init__(self, class_names: tuple[str, ...], *, device: Any = "cpu") -> None:
        """
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
        """Add logits, B x K, and `batch["labels"]`, int64 B."""
        logits_BK, labels_B = outputs.float(), batch["labels"]
        self._metrics.update(logits_BK, labels_B)
        losses_B = functional.cross_entropy(logits_BK, labels_B, reduction="none")
        self._loss.update(losses_B)

    def compute(self) -> dict[str, Any]:
        """See `iformer.training.records.results.ClassificationEvaluation`: shares in percent."""
        values = self._metrics.compute()
        confusion_KK = values["confusion"].long().cpu()
        support_K = confusion_KK.sum(1)
        scores = {name: values[name].cpu() for name in ("precision", "recall", "f1")}
        metrics: dict[str, Any] = {"top1": _percent(values["top1"])}
        if "top5" in values:
            metrics["top5"] = _percent(values["top5"])
        metrics["loss"] = float(self._loss.compute())
        metrics["images"] = int(support_K.sum())
        metrics["macro"] = {name: _percent(score_K.mean()) for name, score_K in scores.items()}
        metrics["per_class"] = {
            class_name: {
                **{name: _percent(score_K[k]) for name, score_K in scores.items()},
                "support": int(support_K[k]),
            }
            for k, class_name in enumerate(self.class_names)
        }
        metrics["confusion"] = confusion_KK.tolist()
        return metrics


def _percent(share: Tensor) -> float:
    """A share in percent, without the digits that single precision makes up."""
    return round(100 * float(share), 4)
