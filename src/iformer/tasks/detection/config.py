"""Recipes for detection. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from iformer.config.augmentation import Strength
from iformer.config.checking import Config, Range, Share, check
from iformer.config.detector import DetectorConfig, DetectorOptions
from iformer.config.light_detector import LightDetectorConfig, LightDetectorOptions
from iformer.config.network import NetworkConfig, Pixels
from iformer.config.pyramid import PyramidRecipe

Factor = Annotated[float, Range(0.05, 20)]


@dataclass(frozen=True, kw_only=True)
class DetectionAugment(Config):
    """The random changes of a training image with objects."""

    hflip: Share = 0.5
    """Probability of a left-right flip."""
    color_jitter: Strength = 0.0
    """Largest relative change of brightness, contrast and saturation. 0: off."""
    scale_jitter: tuple[Factor, Factor] = (1.0, 1.0)
    """Light detector: smallest and largest random scale of an image; at 1 the image just fits the input."""
    mosaic: Share = 0.0
    """Light detector: probability that a training image is a mosaic of four."""
    mosaic_until: Share = 0.8
    """Light detector: share of the epochs, counted from the first, with mosaics; later epochs have none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.scale_jitter[0] <= self.scale_jitter[1], self, "scale_jitter", "two rising factors")


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(PyramidRecipe):
    """Settings of the training of a detector."""

    task: Literal["detect"] = "detect"
    size: Pixels = 800
    """Shorter side of the resized images in pixels; light detector: side of the square input."""
    max_size: Pixels = 1333
    augment: DetectionAugment = DetectionAugment()
    """Random changes of the training images."""
    detector: DetectorOptions = DetectorOptions()
    """Options of Mask R-CNN and Faster R-CNN."""
    network: Literal["rcnn", "light"] = "rcnn"
    """Kind of detector: rcnn (torchvision's Mask R-CNN or Faster R-CNN) or light (one-stage, for phones; its input
    is a square of `size` pixels)."""
    light: LightDetectorOptions = LightDetectorOptions()
    """Options of the light detector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network == "light":
            self._check_light_sizes("light detector")
        else:
            one_size = "[]: only classifiers, light detectors and segmenters train at several sizes"
            check(not self.size_schedule, self, "size_schedule", one_size)
            changed = self.augment.mosaic > 0 or self.augment.scale_jitter != (1.0, 1.0)
            check(
                not changed, self, "augment", "no mosaic and scale_jitter [1, 1]: they are for the light detector"
            )

    def light_config(self, backbone: NetworkConfig, **fields: Any) -> LightDetectorConfig:
        """Return the config of the light detector that the recipe trains; `fields` set what the recipe lacks."""
        size = (self.size, self.size)
        return LightDetectorConfig(backbone=backbone, input_size=size, **vars(self.light), **fields)

    def detector_config(self, backbone: NetworkConfig, **fields: Any) -> DetectorConfig:
        """Return the config of the detector that the recipe trains; `fields` set what the recipe lacks."""
        return DetectorConfig(backbone=backbone, **self._network_fields(self.detector), **fields)
