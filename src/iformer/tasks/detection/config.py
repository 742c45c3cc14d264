"""Recipes for detection. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from iformer.config.augmentation import Strength
from iformer.config.checking import Config, Share
from iformer.config.detector import DetectorConfig, DetectorOptions
from iformer.config.network import NetworkConfig, Pixels
from iformer.tasks.pyramid_recipe import PyramidRecipe


@dataclass(frozen=True, kw_only=True)
class DetectionAugment(Config):
    """The random changes of a training image with objects."""

    hflip: Share = 0.5
    """Probability of a left-right flip."""
    color_jitter: Strength = 0.0
    """Largest relative change of brightness, contrast and saturation. 0: off."""


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(PyramidRecipe):
    """Settings of the training of a Mask R-CNN or Faster R-CNN."""

    task: Literal["detect"] = "detect"
    size: Pixels = 800
    """Images are resized so that the shorter side has this many pixels."""
    max_size: Pixels = 1333
    augment: DetectionAugment = DetectionAugment()
    """Random changes of the training images."""
    detector: DetectorOptions = DetectorOptions()
    """Options of the network."""

    def detector_config(self, backbone: NetworkConfig, **fields: Any) -> DetectorConfig:
        """Return the config of the detector that the recipe trains; `fields` are those that it does not have."""
        return DetectorConfig(backbone=backbone, **self._network_fields(self.detector), **fields)
