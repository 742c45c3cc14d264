"""The training objective of classification: a loss with hard, smoothed or mixed labels.

Shape letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from iformer.errors import ConfigError, listed
from iformer.tasks.registry import TASKS
from iformer.training.protocol import Batch

_ROW = TASKS["classify"]

LossName = Literal["cross_entropy", "focal", "bce"]


@dataclass(frozen=True, kw_only=True)
class LabelLoss:
    """The loss between logits and labels, computed in fp32 and averaged over the images."""

    kind: LossName = "cross_entropy"
    multi_label: bool = False
    """Whether each class has its own binary loss. The loss is then their mean over the classes."""
    focal_gamma: float = 2.0
    class_weights: Tensor | None = None
    """Weight of each class, fp32 K, on any device. None: 1 for each class."""

    def __call__(self, logits: Tensor, targets: Tensor, *, label_smoothing: float) -> Tensor:
        """Compute the loss.

        Args:
            logits: B x K.
            targets: int64 B classes, or float B x K class probabilities, which `multi_label` needs.
            label_smoothing: share of the probability to spread over all classes.
        """
        logits_BK = logits.float()
        weights_K = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.kind == "cross_entropy" and not self.multi_label:
            return functional.cross_entropy(logits_BK, targets, weight=weights_K, label_smoothing=label_smoothing)
        classes = logits_BK.shape[1]
        targets_BK = targets if targets.is_floating_point() else functional.one_hot(targets, classes).float()
        targets_BK = targets_BK * (1 - label_smoothing) + label_smoothing / classes
        if self.kind == "focal" and self.multi_label:
            focal_BK: Tensor = sigmoid_focal_loss(logits_BK, targets_BK, alpha=-1, gamma=self.focal_gamma)
            return (focal_BK if weights_K is None else focal_BK * weights_K).mean()
        if self.kind == "bce" or self.multi_label:
            return functional.binary_cross_entropy_with_logits(logits_BK, targets_BK, weight=weights_K)
        log_BK = logits_BK.log_softmax(1)
        focal_BK = -targets_BK * (1 - log_BK.exp()) ** self.focal_gamma * log_BK
        return (focal_BK if weights_K is None else focal_BK * weights_K).sum(1).mean()


@dataclass(frozen=True)
class MixedBatch:
    """Images and targets of one step, after mixing."""

    images: Tensor
    """Float B x 3 x H x W."""
    targets: Tensor
    """int64 B classes, or float B x K class probabilities of mixed images or of several labels."""
    strongest: Tensor
    """int64 B: the class with the largest share in each image."""
    label_smoothing: float
    """Label smoothing that the loss has to add; 0 if `targets` are smoothed already."""
    label_loss: LabelLoss

    def loss(self, logits: Tensor) -> Tensor:
        """Return the mean loss between logits (B x K) and the targets."""
        return self.label_loss(logits, self.targets, label_smoothing=self.label_smoothing)

    def accuracy(self, answers_B: Tensor) -> Tensor:
        """Return the percentage of images whose answer (int64 B) is the strongest class."""
        return 100 * (answers_B == self.strongest).float().mean()


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Return the weight of each class, fp32 K: images / (classes * images of the class).

    A class without an image has weight 0. If there is no such class, the mean weight over the images is 1.

    Args:
        counts: number of images of each class.
    """
    counts_K = torch.tensor(counts, dtype=torch.float64)
    weights_K = counts_K.sum() / (len(counts) * counts_K.clamp(min=1))
    return torch.where(counts_K > 0, weights_K, 0).float()


def named_weights(weights: Mapping[str, float], class_names: Sequence[str]) -> Tensor:
    """Return the weight of each class, fp32 K, from weights by class name; 1 for a class that is not named.

    Raises:
        ConfigError: a class does not exist.
    """
    unknown = [name for name in weights if name not in class_names]
    if unknown:
        raise ConfigError(
            f"recipe.class_weights has {listed(unknown)}, which the data has not; its classes are "
            f"{listed(list(class_names))}"
        )
    return torch.tensor([weights.get(name, 1.0) for name in class_names])


class Classification:
    """The task of classification: images to one class or, with `LabelLoss.multi_label`, any number of classes.

    `batch["labels"]` is int64 B; for several labels float B x K, 1 for each class of an image. A network
    with two heads learns the labels with both heads, and the loss is the mean of the two losses.
    """

    name = _ROW.name

    def __init__(
        self,
        class_names: tuple[str, ...],
        *,
        label_smoothing: float = 0.0,
        label_loss: LabelLoss | None = None,
        mixup_alpha: float = 0.0,
        cutmix_alpha: float = 0.0,
        mixup_prob: float = 1.0,
        mixup_switch_prob: float = 0.5,
    ) -> None:
        """Create the task; `ClassificationRecipe` and `AugmentConfig` document the settings.

        Mixing draws from NumPy's global generator.

        Raises:
            ConfigError: fewer than two classes.
        """
        if len(class_names) < 2:
            raise ConfigError(f"class_names is {class_names!r}; expected two classes or more")
        self.class_names = tuple(class_names)
        self.label_smoothing = label_smoothing
        self.label_loss = label_loss or LabelLoss()
        self.multi_label = self.label_loss.multi_label
        self.primary_metric, self.metric_label = _ROW.headline(multi_label=self.multi_label)
        self._mixup = None
        if mixup_prob > 0 and (mixup_alpha > 0 or cutmix_alpha > 0):
            from timm.data.mixup import Mixup

            self._mixup = Mixup(
                mixup_alpha=mixup_alpha,
                cutmix_alpha=cutmix_alpha,
                prob=mixup_prob,
                switch_prob=mixup_switch_prob,
                label_smoothing=0.0 if self.multi_label else label_smoothing,
                num_classes=len(class_names),
            )

    def mix(self, batch: Batch) -> MixedBatch:
        """Return the images and targets of a step, mixed by mixup or cutmix if these are on."""
        images, labels_B = batch["images"], batch["labels"]
        if self.multi_label:
            return self._mix_labels(images, labels_B)
        if self._mixup is None or len(images) % 2:  # timm's Mixup needs an even number of images
            return MixedBatch(images, labels_B, labels_B, self.label_smoothing, self.label_loss)
        images, targets_BK = self._mixup(images, labels_B)  # already smoothed
        return MixedBatch(images, targets_BK, targets_BK.argmax(1), 0.0, self.label_loss)

    def _mix_labels(self, images: Tensor, labels_BK: Tensor) -> MixedBatch:
        """Mix multi-label images by mixup or cutmix, if on, and their labels in the same proportion."""
        if self._mixup is not None and len(images) % 2 == 0:
            self._mixup.num_classes = len(images)
            # the "classes" are the images themselves, so the result is the share of each image in each mixture
            images, shares_BB = self._mixup(images, torch.arange(len(images), device=images.device))
            labels_BK = shares_BB @ labels_BK
        return MixedBatch(images, labels_BK, labels_BK.argmax(1), self.label_smoothing, self.label_loss)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return `loss` and `accuracy`: the percentage of right images or, with `multi_label`, of right labels."""
        mixed = self.mix(batch)
        outputs = model(mixed.images)
        heads = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [mixed.loss(logits) for logits in heads]
        with torch.no_grad():
            logits_BK = sum(logits.float() for logits in heads)
            accuracy = (
                100 * ((logits_BK > 0) == (mixed.targets > 0.5)).float().mean()
                if self.multi_label
                else mixed.accuracy(logits_BK.argmax(1))
            )
        return {"loss": torch.stack(losses).mean(), "accuracy": accuracy}
