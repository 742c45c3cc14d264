"""Recipes for classification. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from iformer.config.augmentation import AugmentConfig
from iformer.config.checking import Config, Range, Share, ShareBelowOne, Text, check
from iformer.config.preprocessing import PixelValue, Preprocessing
from iformer.config.recipe import Recipe

_BINARY = {"cross_entropy": "bce"}
"""The losses that are used in place of others if an image may have several labels."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(Config):
    """Settings of the distillation from a teacher (DeiT, arXiv 2012.12877, section 4)."""

    loss: Literal["none", "hard", "soft"] = "none"
    """What is learned from the teacher: nothing (none), its predicted class (hard) or its probabilities (soft)."""
    teacher: Text = "regnety_160.deit_in1k"
    """Name of a timm network with released weights, or of a classifier: a size, a checkpoint, `hf-hub:…`."""
    teacher_entry: Text | None = None
    """Key of the teacher's weights in the file of a training script, such as `model_ema`. None: the weights
    without averaging."""
    weight: Share = 0.5
    """Weight of the teacher's loss, 0 to 1; the loss of the labels has the weight `1 - weight`."""
    temperature: Annotated[float, Range(0, 1000, above=True)] = 3.0
    """Temperature of the soft loss."""


@dataclass(frozen=True, kw_only=True)
class ImageRecipe(Recipe):
    """Base class of recipes for whole images of one size: classification and pretraining."""

    crop_pct: Annotated[float, Range(0.05, 1)] = 0.875
    """Evaluation resizes the shorter side to `size / crop_pct`, then cuts out the centre."""
    value_range: tuple[PixelValue, PixelValue] | None = None
    """Values of black and white in images of more than 8 bits, such as [0, 4095]. None: from the bit depth or
    the values of the image."""
    in_chans: Annotated[int, Range(1, 4)] | None = None
    """Number of channels of the images: 1 (gray), 3 (RGB), or 2 or 4 (gray or RGB and one more, such as
    transparency or infrared). None: the number of the starting weights, or 3 without weights."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes of the training images."""
    cache: Literal["none", "ram"] = "none"
    """Cache of decoded images: none, or ram (each image is decoded once and kept in memory)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.preprocessing  # building it checks size and crop_pct together

    @property
    def network_options(self) -> dict[str, Any]:
        if self.in_chans is None:
            return super().network_options
        return super().network_options | {"in_chans": self.in_chans, "adapt_in_chans": True}

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of evaluation, prediction and export."""
        interpolation = self.augment.interpolation
        return Preprocessing(
            size=(self.size, self.size),
            crop_pct=self.crop_pct,
            interpolation="bicubic" if interpolation == "random" else interpolation,
            value_range=self.value_range,
        )


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(ImageRecipe):
    """Settings of a classifier's training."""

    task: Literal["classify"] = "classify"
    multi_label: bool = False
    """Whether images of a table may have several labels, or none. The network then answers yes or no per class."""
    freeze: Literal["none", "stem", "stage1", "stage2", "stage3", "backbone"] = "none"
    """Last frozen part of the network: the weights and batch-norm statistics of this part and of all parts before
    it do not change; backbone: only the head is trained."""
    loss: Literal["cross_entropy", "focal", "bce"] = "cross_entropy"
    """Loss of the labels. focal: cross entropy times `(1 - p) ** focal_gamma` (arXiv 1708.02002); bce: binary
    cross entropy of each class. With multi_label, focal is binary too, and cross_entropy becomes bce."""
    focal_gamma: Annotated[float, Range(0, 100)] = 2.0
    """Exponent of the loss "focal"; 0 is cross entropy."""
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    """Weight of each class in the loss. balanced: images / (classes * images of the class); or numbers by class
    name, 1 for a class that is not named."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """Order of the training images. shuffle: each image once per epoch; balanced: images are drawn with
    replacement, every class equally often."""
    label_smoothing: ShareBelowOne = 0.1
    """Share of the target's probability that is spread over all classes."""
    distillation: DistillationConfig = DistillationConfig()
    """Settings of the distillation from a teacher."""
    test_flip: bool = False
    """Whether evaluation averages the logits of each image and its mirror image."""
    temperature_scaling: bool = False
    """Whether to calibrate the probabilities after training: the weights of the head are divided by the
    temperature that fits the validation images best (arXiv 1706.04599)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.class_weights.values() if isinstance(self.class_weights, dict) else ()
        check(all(0 < weight <= 1e6 for weight in given), self, "class_weights", "numbers above 0, up to 1e6")
        if self.multi_label:
            object.__setattr__(self, "loss", _BINARY.get(self.loss, self.loss))  # frozen
            for field, one_label in (("sampling", "shuffle"), ("temperature_scaling", False)):
                expected = f"{one_label}, because multi_label is set"
                check(getattr(self, field) == one_label, self, field, expected)
            check(self.distillation.loss == "none", self, "multi_label", "false, because there is a teacher")
        check(
            self.batch_size // self.grad_accum % self.images_per_group == 0,
            self,
            "batch_size",
            "an even number of images in each pass, because mixup and cutmix mix them in pairs",
        )

    @classmethod
    def nested(cls, *layers: Mapping[str, Any]) -> dict[str, Any]:
        merged = super().nested(*layers)
        if merged.get("multi_label") is True and merged.get("loss") in tuple(_BINARY):  # runs of earlier versions
            merged["loss"] = _BINARY[merged["loss"]]
        return merged

    @property
    def images_per_group(self) -> int:
        """Number of images that are mixed with each other: 2 if mixup or cutmix is on, else 1."""
        return 2 if self.augment.mixes else 1
