"""IoU and accuracy of classes from one confusion matrix over all pixels.

Shape letters: B batch, K classes, H and W an image's sides.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from iformer.config.segmenter import IGNORED
from iformer.dependencies import require
from iformer.training.distributed import all_gather


class SegmentationMetric:
    """mIoU, IoU of each class and pixel accuracy from one confusion matrix, summed over all processes."""

    def __init__(
        self, class_names: tuple[str, ...], *, annotated: Container[int] | None = None, device: Any = "cpu"
    ) -> None:
        """Start with empty counts.

        Args:
            class_names: class names of the network.
            annotated: indices of the classes that the data has; other classes have no IoU. None: all classes.
            device: where pixels are counted.

        Raises:
            MissingDependencyError: torchmetrics is not installed.
        """
        torchmetrics = require("torchmetrics", extra="train")
        self.class_names = class_names
        self._confusion = torchmetrics.classification.MulticlassConfusionMatrix(
            len(class_names), ignore_index=IGNORED, validate_args=False
        ).to(device)
        self._annotated: Container[int] = range(len(class_names)) if annotated is None else annotated
        self._images = self._left_out = 0
        self.left_out = 0
        """Number of labelled pixels of classes that the network does not know, after `compute`."""

    def update(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add predicted classes, int64 B x H x W, with `batch["masks"]` (same shape) and `batch["left_out"]`."""
        self._left_out += batch.get("left_out", 0)
        self._confusion.update(outputs, batch["masks"])
        self._images += len(outputs)

    def compute(self) -> dict[str, Any]:
        """Return the metrics that `SegmentationEvaluation` documents, in percent. Every rank must call it."""
        # gathered here, because torchmetrics warns on a rank that has had no image
        shares = all_gather((self._confusion.confmat.cpu(), self._images, self._left_out))
        counts_KK = torch.stack([counts for counts, _, _ in shares]).sum(0).double()
        self.left_out = sum(pixels for _, _, pixels in shares)
        right_K, true_K, said_K = counts_KK.diagonal(), counts_KK.sum(1), counts_KK.sum(0)
        union_K = true_K + said_K - right_K
        iou_K = [
            _percent(right_K[k], union_K[k]) if k in self._annotated else None
            for k in range(len(self.class_names))
        ]
        accuracy_K = [_percent(right_K[k], true_K[k]) for k in range(len(self.class_names))]
        return {
            "miou": _mean(iou_K),
            "pixel_accuracy": _percent(right_K.sum(), true_K.sum()) or 0.0,
            "mean_accuracy": _mean(accuracy_K),
            "images": sum(images for _, images, _ in shares),
            "per_class": {
                name: {"iou": iou_K[k], "accuracy": accuracy_K[k], "support": int(true_K[k])}
                for k, name in enumerate(self.class_names)
            },
            "confusion": counts_KK.long().tolist(),
        }


def _percent(part: Tensor, whole: Tensor) -> float | None:
    return round(100 * float(part / whole), 4) if whole > 0 else None


def _mean(values: list[float | None]) -> float:
    """Return the mean of the values that are not None; 0 if there are none."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else 0.0
