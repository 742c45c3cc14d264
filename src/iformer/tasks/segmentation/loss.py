"""Semantic segmentation: cross entropy of pixels, and IoU from one confusion matrix.

Shape letters: B batch, K classes, H and W an image's sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.dense import IGNORED
from iformer.dependencies import require
from iformer.errors import ConfigError
from iformer.training.distributed import all_gather
from iformer.training.protocol import Batch


class Segmentation:
    """Images to a class for each pixel.

    `batch["images"]` is float B x 3 x H x W, normalised, `batch["masks"]` int64 B x H x W.
    """

    name = "segment"
    primary_metric = "miou"
    metric_label = "mIoU"

    def __init__(self, class_names: tuple[str, ...]) -> None:
        """
        Raises:
            ConfigError: fewer than two classes.
        """
        if len(class_names) < 2:
            raise ConfigError(f"class_names is {class_names!r}; expected two classes or more")
        self.class_names = tuple(class_names)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy over the pixels that are of a class, and `accuracy`, in percent of them."""
        logits_BKHW, masks_BHW = model(batch["images"]).float(), batch["masks"]
        counted = masks_BHW != IGNORED
        # the mean over none is not a number; a sum over none, divided by at least one, is zero
        count = counted.sum().clamp(min=1)
        loss = F.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORED, reduction="sum") / count
        with torch.no_grad():
            right = ((logits_BKHW.argmax(1) == masks_BHW) & counted).sum()
        return {"loss": loss, "accuracy": 100 * right / count}


class SegmentationMetric:
    """mIoU, IoU of each class and pixel accuracy from one confusion matrix, summed over all processes."""

    def __init__(self, class_names: tuple[str, ...], *, device: Any = "cpu") -> None:
        """
        Raises:
            MissingDependencyError: torchmetrics is not installed.
        """
        torchmetrics = require("torchmetrics", extra="train")
        self.class_names = class_names
        self._confusion = torchmetrics.classification.MulticlassConfusionMatrix(
            len(class_names), ignore_index=IGNORED, validate_args=False
        ).to(device)
        self._images = 0

    def update(self, outputs: Tensor, batch: Mapping[str, Any]) -> None:
        """Add classes, int64 B x H x W, and `batch["masks"]`, of the same shape."""
        self._confusion.update(outputs, batch["masks"])
        self._images += len(outputs)

    def compute(self) -> dict[str, Any]:
        """See `iformer.training.records.results.SegmentationEvaluation`: in percent."""
        # joined here: torchmetrics warns where a process has had no image
        shares = all_gather((self._confusion.confmat.cpu(), self._images))
        counts_KK = torch.stack([counts for counts, _ in shares]).sum(0).double()
        right_K, true_K, said_K = counts_KK.diagonal(), counts_KK.sum(1), counts_KK.sum(0)
        union_K = true_K + said_K - right_K
        iou_K = [_percent(right_K[k], union_K[k]) for k in range(len(self.class_names))]
        accuracy_K = [_percent(right_K[k], true_K[k]) for k in range(len(self.class_names))]
        return {
            "miou": _mean(iou_K),
            "pixel_accuracy": _percent(right_K.sum(), true_K.sum()) or 0.0,
            "mean_accuracy": _mean(accuracy_K),
            "images": sum(images for _, images in shares),
            "per_class": {
                name: {"iou": iou_K[k], "accuracy": accuracy_K[k], "support": int(true_K[k])}
                for k, name in enumerate(self.class_names)
            },
            "confusion": counts_KK.long().tolist(),
        }


def classes_of(model: nn.Module, image: Tensor, size: tuple[int, ...], *, window: int | None = None) -> Tensor:
    """The classes of one normalised image, 1 x 3 x h x w, at another size (H, W): int64 H x W.

    Args:
        model: images to logits, B x K x H x W.
        window: the side of `sliding_logits`' windows; nothing: the whole image at once.
    """
    logits = (model(image) if window is None else sliding_logits(model, image, window=window)).float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits[0].argmax(0)


def sliding_logits(
    network: Callable[[Tensor], Tensor], images: Tensor, *, window: int, overlap: float = 1 / 3
) -> Tensor:
    """Logits of large images from windows, each place's the mean over the windows that see it.

    Args:
        network: B x 3 x h x w to logits B x K x h x w.
        images: B x 3 x H x W, normalised.
        window: side of the windows, in pixels; a shorter side of the image is taken whole.
        overlap: least share of a window that its neighbour sees too.

    Returns:
        B x K x H x W.
    """
    height, width = images.shape[2:]
    step = max(1, round(window * (1 - overlap)))
    total: Tensor | None = None
    seen = images.new_zeros((1, 1, height, width))
    for top in _starts(height, window, step):
        for left in _starts(width, window, step):
            rows, columns = slice(top, top + window), slice(left, left + window)
            logits = network(images[:, :, rows, columns])
            if total is None:
                total = logits.new_zeros((len(images), logits.shape[1], height, width))
            total[:, :, rows, columns] += logits
            seen[:, :, rows, columns] += 1
    assert total is not None
    return total / seen


def _starts(length: int, window: int, step: int) -> list[int]:
    """Where windows begin so that they cover a side; the last one ends at its end."""
    last = max(0, length - window)
    return [*range(0, last, step), last]


def _percent(part: Tensor, whole: Tensor) -> float | None:
    return round(100 * float(part / whole), 4) if whole > 0 else None


def _mean(values: list[float | None]) -> float:
    """Over the classes that occur."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 4) if known else 0.0
