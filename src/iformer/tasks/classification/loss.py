"""The training objective of classification: cross entropy with hard, smoothed or mixed labels.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.errors import ConfigError
from iformer.tasks.registry import TASKS
from iformer.training.protocol import Batch

_ROW = TASKS["classify"]


@dataclass(frozen=True)
class MixedBatch:
    """Images and targets of one step."""

    images: Tensor
    """Float B x 3 x H x W."""
    targets: Tensor
    """int64 B classes, or float B x K class probabilities of mixed images."""
    strongest: Tensor
    """int64 B: the class with the largest share of each image."""
    label_smoothing: float
    """Smoothing that `targets` do not contain yet."""

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Return the mean cross entropy, in fp32, between logits (B x K) and the targets."""
        return functional.cross_entropy(logits.float(), self.targets, label_smoothing=self.label_smoothing)

    def accuracy(self, answers_B: Tensor) -> Tensor:
        """Return the percentage of answers (int64 B) that are the strongest class."""
        return 100 * (answers_B == self.strongest).float().mean()


class Classification:
    """Images to one class each.

    `batch["labels"]` is int64 B. A network with two heads learns the labels with both; the loss is their mean.
    """

    name, primary_metric, metric_label = _ROW.name, _ROW.metric, _ROW.metric_label

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
        """Describe the task; `iformer.config.recipe.Recipe` documents the settings.

        Mixing draws from NumPy's global generator.

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
        """Return the images and targets of a step, mixed if the recipe mixes."""
        images, labels_B = batch["images"], batch["labels"]
        if self._mixup is None or len(images) % 2:  # timm's Mixup needs an even number of images
            return MixedBatch(images, labels_B, strongest=labels_B, label_smoothing=self.label_smoothing)
        images, targets_BK = self._mixup(images, labels_B)  # already smoothed
        return MixedBatch(images, targets_BK, strongest=targets_BK.argmax(1), label_smoothing=0.0)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss`, the cross entropy, and `accuracy`, the percentage of images with the right prediction."""
        mixed = self.mix(batch)
        outputs = model(mixed.images)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [mixed.cross_entropy(logits) for logits in heads]
        with torch.no_grad():
            answers_B = sum(logits.float() for logits in heads).argmax(1)
        return {"loss": torch.stack(losses).mean(), "accuracy": mixed.accuracy(answers_B)}
