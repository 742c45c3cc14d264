"""Recipes for semantic segmentation. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from iformer.config.augmentation import Factor
from iformer.config.checking import Config, Share, check
from iformer.config.network import NetworkConfig, Pixels
from iformer.config.pyramid import PyramidRecipe
from iformer.config.segmenter import (
    LightSegmenterConfig,
    LightSegmenterOptions,
    SegmenterConfig,
    SegmenterOptions,
)


@dataclass(frozen=True, kw_only=True)
class SegmentationAugment(Config):
    """Augmentation of training images and their masks."""

    resize: tuple[Factor, Factor] = (0.5, 2.0)
    """Smallest and largest random scale of a training image, relative to its size in evaluation."""
    hflip: Share = 0.5
    """Probability of a left-right flip."""
    photometric: bool = True
    """Whether to change brightness, contrast, saturation and hue, each with probability 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.resize[0] <= self.resize[1], self, "resize", "two rising numbers above 0")


@dataclass(frozen=True, kw_only=True)
class SegmentationRecipe(PyramidRecipe):
    """Settings of the training of a segmenter."""

    task: Literal["segment"] = "segment"
    size: Pixels = 512
    """The shorter side in evaluation, and the side of the square that training cuts out, in pixels."""
    max_size: Pixels = 2048
    augment: SegmentationAugment = SegmentationAugment()
    """Random changes of the training images."""
    segmenter: SegmenterOptions = SegmenterOptions()
    """Options of Semantic FPN."""
    network: Literal["semantic-fpn", "light"] = "semantic-fpn"
    """Kind of segmenter: semantic-fpn (the paper's, for images of any size) or light (for phones; its input is a
    square of `size` pixels)."""
    light: LightSegmenterOptions = LightSegmenterOptions()
    """Options of the light segmenter."""
    dice_weight: Share = 0.0
    """Weight of the Dice loss; cross entropy has the weight `1 - dice_weight`. The Dice loss counts each class the
    same, so it helps where objects are small and most pixels are background."""
    sliding: bool = False
    """Whether to evaluate in windows of `size` x `size` that overlap by a third, instead of whole images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network == "light":
            self._check_light_sizes("light segmenter")
            check(not self.sliding, self, "sliding", "false for the light segmenter, which sees whole images")

    def light_config(self, backbone: NetworkConfig, **fields: Any) -> LightSegmenterConfig:
        """Return the config of the light segmenter that the recipe trains; `fields` set what the recipe lacks."""
        size = (self.size, self.size)
        return LightSegmenterConfig(backbone=backbone, input_size=size, **vars(self.light), **fields)

    def segmenter_config(self, backbone: NetworkConfig, **fields: Any) -> SegmenterConfig:
        """Return the config of the segmenter that the recipe trains; `fields` set what the recipe lacks."""
        return SegmenterConfig(backbone=backbone, **self._network_fields(self.segmenter), **fields)
