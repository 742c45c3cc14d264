"""The training objective of semantic segmentation: cross entropy over pixels, and the Dice loss.

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

    def __init__(self, class_names: tuple[str, ...], *, dice_weight: float = 0.0) -> None:
        """Create the task; see `SegmentationRecipe.dice_weight`.

        Raises:
            ConfigError: fewer than two classes.
        """
        if len(class_names) < 2:
            raise ConfigError(f"class_names is {class_names!r}; expected two classes or more")
        self.class_names = tuple(class_names)
        self._dice_weight = dice_weight

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy`, the percentage of labelled pixels that are right.

        The loss is the mean cross entropy of labelled pixels. With a Dice loss it is the weighted mean of both,
        and the result also has `cross_entropy` and `dice`.
        """
        logits_BKHW, masks_BHW = model(batch["images"]).float(), batch["masks"]
        counted = masks_BHW != IGNORED
        # not the mean: over no labelled pixel it would be NaN
        count = counted.sum().clamp(min=1)
        loss = F.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORED, reduction="sum") / count
        with torch.no_grad():
            correct = ((logits_BKHW.argmax(1) == masks_BHW) & counted).sum()
        accuracy = 100 * correct / count
        if not self._dice_weight:
            return {"loss": loss, "accuracy": accuracy}
        dice = dice_loss(logits_BKHW, masks_BHW)
        return {
            "loss": (1 - self._dice_weight) * loss + self._dice_weight * dice,
            "cross_entropy": loss.detach(),
            "dice": dice.detach(),
            "accuracy": accuracy,
        }


def dice_loss(logits_BKHW: Tensor, masks_BHW: Tensor) -> Tensor:
    """Return 1 minus the mean Dice coefficient of the classes in a batch, from 0 to 1.

    Of each class the coefficient is computed over all pixels of the batch, with probabilities as soft answers
    (V-Net, Milletari et al. 2016, arXiv 1606.04797, section 3). Classes that no pixel has, and unlabelled pixels,
    do not count.

    Args:
        logits_BKHW: float.
        masks_BHW: int64, from 0 to K - 1, or `IGNORED`.
    """
    counted_BHW = masks_BHW != IGNORED
    labels_BHW = masks_BHW.where(counted_BHW, 0)
    shares_BKHW = logits_BKHW.softmax(1) * counted_BHW[:, None]
    hits_BHW = shares_BKHW.gather(1, labels_BHW[:, None])[:, 0]
    none_K = logits_BKHW.new_zeros(logits_BKHW.shape[1])
    hits_K = none_K.index_add(0, labels_BHW.flatten(), hits_BHW.flatten())
    pixels_K = none_K.index_add(0, labels_BHW.flatten(), counted_BHW.flatten().to(none_K.dtype))
    dice_K = 2 * hits_K / (shares_BKHW.sum((0, 2, 3)) + pixels_K).clamp(min=1e-6)
    present_K = pixels_K > 0
    return ((1 - dice_K) * present_K).sum() / present_K.sum().clamp(min=1)
