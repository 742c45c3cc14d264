"""Recipes for pretraining. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iformer.config.checking import Share, Text, check
from iformer.tasks.classification.config import ImageRecipe

NO_TEACHER = "none"


@dataclass(frozen=True, kw_only=True)
class PretrainingRecipe(ImageRecipe):
    """Settings of a pretraining run."""

    task: Literal["pretrain"] = "pretrain"
    teacher: Text = NO_TEACHER
    """Name of a timm network with released weights, or of any network of this package: a size, a checkpoint of any
    task, a run folder, `hf-hub:…`. A run needs a teacher; "none" is an error."""
    teacher_weights: Text | None = None
    """File with the weights of a timm network, under timm's key names. None: the released weights."""
    teacher_entry: Text | None = None
    """Key of the teacher's weights in the file of a training script, such as `model_ema`. None: the weights
    without averaging."""
    dense_weight: Share = 0.5
    """Weight of the feature maps in the loss, 0 to 1; the pooled features have the weight `1 - dense_weight`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(not self.augment.mixes, self, "augment", "without mixup and cutmix: pretraining does not mix images")
        passes = self.batch_size // self.grad_accum
        check(passes > 1, self, "batch_size", "two images or more in each pass")
