"""The training objective of semantic segmentation: cross entropy over pixels.

Shape letters: B batch, K classes, H and W an image's sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.segmenter import IGNORED
from iformer.errors import ConfigError
from iformer.tasks.registry import TASKS
from iformer.training.protocol import Batch

_ROW = TASKS["segment"]


class Segmentation:
    """The task of semantic segmentation: images to one class for each pixel.

    `batch["images"]` is float B x 3 x H x W, normalised, `batch["masks"]` int64 B x H x W.
    """

    name, primary_metric, metric_label = _ROW.name, _ROW.metric, _ROW.metric_label

    def __init__(self, class_names: tuple[str, ...]) -> None:
        """Create the task.

        Raises:
            ConfigError: fewer than two classes.
        """
        if len(class_names) < 2:
            raise ConfigError(f"class_names is {class_names!r}; expected two classes or more")
        self.class_names = tuple(class_names)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the mean cross entropy of labelled pixels, and `accuracy`, in percent of these pixels."""
        logits_BKHW, masks_BHW = model(batch["images"]).float(), batch["masks"]
        counted = masks_BHW != IGNORED
        # not the mean: over no labelled pixel it would be NaN
        count = counted.sum().clamp(min=1)
        loss = F.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORED, reduction="sum") / count
        with torch.no_grad():
            correct = ((logits_BKHW.argmax(1) == masks_BHW) & counted).sum()
        return {"loss": loss, "accuracy": 100 * correct / count}
