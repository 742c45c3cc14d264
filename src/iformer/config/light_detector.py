"""What the light one-stage detector is. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from iformer.config.checking import Config, Range, ShareBelowOne, check
from iformer.config.network import NetworkConfig
from iformer.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD, PixelValue, Preprocessing

Side = Annotated[int, Range(32, 4096, step=32)]


@dataclass(frozen=True, kw_only=True)
class LightDetectorOptions(Config):
    """The options of the light detector that a recipe may set."""

    value_range: tuple[PixelValue, PixelValue] | None = None
    """Values of black and white in images of more than 8 bits, such as [0, 4095]. None: by their bits."""
    channels: Annotated[int, Range(8, 1024)] = 96
    """Channels of the neck and of the heads."""
    kernel_size: Literal[3, 5, 7] = 5
    """Side of the depthwise kernels of neck and heads."""
    head_depth: Annotated[int, Range(1, 8)] = 2
    """Separable convolutions of each tower of a head."""
    extra_level: bool = False
    """Also predict at stride 64, for objects that fill the input."""
    score_threshold: ShareBelowOne = 0.001
    """Detections with a lower score are dropped."""
    detections: Annotated[int, Range(1, 10_000)] = 100
    """Most detections of an image."""
    nms_iou: Annotated[float, Range(0, 1, above=True)] = 0.65
    """Overlap above which non-maximum suppression drops the box with the lower score."""


@dataclass(frozen=True, kw_only=True)
class LightDetectorConfig(LightDetectorOptions):
    """A whole light detector. Its input has a fixed size, into which images are letterboxed."""

    backbone: NetworkConfig
    num_classes: Annotated[int, Range(1, 100_000)]
    """Number of classes, without the background."""
    input_size: tuple[Side, Side] = (320, 320)
    """Height and width of the network's input in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        coarsest = self.strides[-1]
        fits = all(side % coarsest == 0 for side in self.input_size)
        check(fits, self, "input_size", f"height and width, multiples of {coarsest}")
        check(self.backbone.num_classes == 0, self, "backbone", "a network with 0 classes: feature maps only")
        check(self.backbone.in_chans == 3, self, "backbone", "a network for images with 3 channels")
        assert self.preprocessing  # building it checks mean and std

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the input between two neighbouring points of each level."""
        return (8, 16, 32, 64) if self.extra_level else (8, 16, 32)

    @property
    def preprocessing(self) -> Preprocessing:
        """The same as metadata of a checkpoint: `size` is the input's height and width, nothing is cropped."""
        return Preprocessing(
            size=self.input_size,
            crop_pct=1.0,
            interpolation="bilinear",
            mean=self.mean,
            std=self.std,
            value_range=self.value_range,
        )
