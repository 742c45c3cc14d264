"""Recipes for detection and segmentation: what they have beside `Recipe`'s fields, and what they do not read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from iformer.config.checking import check
from iformer.config.dense import (
    DetectorConfig,
    SegmenterConfig,
    check_dense_fields,
    check_detector_fields,
    check_segmenter_fields,
)
from iformer.config.network import NetworkConfig
from iformer.config.recipe import Recipe

_NOT_READ = (
    "size_schedule",
    "crop_pct",
    "scale",
    "ratio",
    "interpolation",
    "vflip",
    "rot90",
    "rand_augment",
    "random_erasing",
    "mixup_alpha",
    "cutmix_alpha",
    "mixup_prob",
    "mixup_switch_prob",
    "label_smoothing",
    "cache",
)
"""Fields for classification only: in these recipes they keep their defaults."""


@dataclass(frozen=True, kw_only=True)
class DenseRecipe(Recipe):
    """What the recipes of both tasks share."""

    max_size: int
    """The longest side of an image whose shorter side is resized to `size`."""
    freeze: Literal["none", "norms", "weights"] = "norms"
    """Of the backbone: nothing; the batch norms, which keep ImageNet's statistics; or all weights."""
    fpn_channels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
        for name in _NOT_READ:
            default = defaults[name]
            check(
                getattr(self, name) == default,
                self,
                name,
                f"its default, {default!r}: it is for classification",
            )
        check_dense_fields(self)


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(DenseRecipe):
    """Of a Mask R-CNN or Faster R-CNN; `iformer.config.dense.DetectorConfig` says what the fields are."""

    task: Literal["detect"] = "detect"  # type: ignore[assignment]
    size: int = 800
    max_size: int = 1333
    masks: bool = True
    """Also learn masks, where every annotation has one."""
    box_head_channels: int = 1024
    mask_head_channels: int = 256
    mask_head_depth: int = 4
    rois: int = 512
    proposals: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_detector_fields(self)

    def detector_config(self, backbone: NetworkConfig, **fields: Any) -> DetectorConfig:
        """The detector that the recipe trains; `fields` are those that it does not say."""
        return DetectorConfig(backbone=backbone, **{**_shared(self, DetectorConfig), **fields})


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(DenseRecipe):
    """Of a Semantic FPN; `iformer.config.dense.SegmenterConfig` says what the fields are."""

    task: Literal["segment"] = "segment"  # type: ignore[assignment]
    size: int = 512
    """The shorter side in evaluation, and the side of the square that training cuts out."""
    max_size: int = 2048
    resize: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor of a training image's random size, against that of evaluation."""
    photometric: bool = True
    """Distort brightness, contrast, saturation and hue of training images, each with probability 0.5."""
    head_channels: int = 128
    dropout: float = 0.1
    sliding: bool = False
    """Evaluate in windows of `size` x `size` that overlap by a third, instead of whole images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.resize
        check(0 < low <= high, self, "resize", "two rising numbers above 0")
        check_segmenter_fields(self)
        check(self.color_jitter == 0, self, "color_jitter", "0: segmentation has `photometric`")

    def segmenter_config(self, backbone: NetworkConfig, **fields: Any) -> SegmenterConfig:
        """The segmenter that the recipe trains; `fields` are those that it does not say."""
        return SegmenterConfig(backbone=backbone, **{**_shared(self, SegmenterConfig), **fields})


def _shared(recipe: DenseRecipe, config: type[DetectorConfig] | type[SegmenterConfig]) -> dict[str, Any]:
    """The recipe's values of the fields that it has in common with a network's config."""
    names = {field.name for field in dataclasses.fields(config)}
    return {name: value for name, value in vars(recipe).items() if name in names}
