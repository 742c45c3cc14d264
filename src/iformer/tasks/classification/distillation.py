"""Classification with a teacher: DeiT's hard and soft distillation with two heads (arXiv 2012.12877).

Shape letters: B batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from iformer.errors import ConfigError
from iformer.tasks.classification.loss import Classification
from iformer.training.protocol import Batch

Teach = Callable[[Tensor], Tensor]
"""Function from the student's batch (float B x 3 x H x W, after mixing, erasing and normalisation) to the
teacher's logits (fp32 B x K, without gradient)."""

Distillation = Literal["hard", "soft"]


class DistilledClassification(Classification):
    """Image classification in which the first head learns the labels and the second head learns from a teacher.

    The loss is `(1 - weight) * label_loss + weight * teacher_loss`, where `label_loss` is the `LabelLoss`
    between the first head and the labels. `teacher_loss` is computed from the second head:

    - "hard": the cross entropy with the class that the teacher predicts (DeiT, equation 3);
    - "soft": T^2 times the Kullback-Leibler divergence KL(teacher || head) of the class probabilities, both at
      temperature T, averaged over images (DeiT, equation 2).

    A network with one head gets both losses on that head.
    """

    def __init__(
        self,
        class_names: tuple[str, ...],
        *,
        teacher: Teach,
        distillation: Distillation,
        weight: float = 0.5,
        temperature: float = 3.0,
        **options: Any,
    ) -> None:
        """Create the task.

        Args:
            class_names: names of the K classes.
            teacher: function that returns the teacher's logits for a batch.
            distillation: "hard" or "soft".
            weight: weight of the teacher's loss, 0 to 1.
            temperature: T of the soft loss.
            options: arguments of `Classification`.

        Raises:
            ConfigError: there are fewer than two classes, or `distillation` is neither "hard" nor "soft".
        """
        super().__init__(class_names, **options)
        if distillation not in ("hard", "soft"):
            raise ConfigError(f"distillation is {distillation!r}; expected hard or soft")
        self.teacher = teacher
        self.distillation = distillation
        self.weight = weight
        self.temperature = temperature

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Returns:
            Scalars: `loss` and, for the log, `label_loss`, `teacher_loss`, `accuracy` in percent and `agreement`,
            the percentage of images for which the second head and the teacher predict the same class.
        """
        mixed = self.mix(batch)
        teacher_BK = self.teacher(mixed.images)
        outputs = model(mixed.images)
        labels_head_BK, teacher_head_BK = outputs if isinstance(outputs, tuple) else (outputs, outputs)
        label_loss = mixed.loss(labels_head_BK)
        teacher_loss = self._teacher_loss(teacher_head_BK.float(), teacher_BK)
        with torch.no_grad():
            answers_B = (labels_head_BK.float() + teacher_head_BK.float()).argmax(1)
            agreement = 100 * (teacher_head_BK.argmax(1) == teacher_BK.argmax(1)).float().mean()
        return {
            "loss": (1 - self.weight) * label_loss + self.weight * teacher_loss,
            "label_loss": label_loss.detach(),
            "teacher_loss": teacher_loss.detach(),
            "accuracy": mixed.accuracy(answers_B),
            "agreement": agreement,
        }

    def _teacher_loss(self, logits_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        if self.distillation == "hard":
            # argmax takes any class where outputs are NaN; this term makes the loss NaN too, which stops the run
            overflow = 0 * teacher_BK.sum()
            return functional.cross_entropy(logits_BK, teacher_BK.argmax(1)) + overflow
        divergence = functional.kl_div(
            (logits_BK / self.temperature).log_softmax(1),
            (teacher_BK / self.temperature).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        return divergence * self.temperature**2
