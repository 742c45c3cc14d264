"""What a network for detection or segmentation is: a backbone, a feature pyramid and heads. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from iformer.config.checking import check, check_types, from_plain, to_plain
from iformer.config.network import MIN_INPUT_SIZE, NetworkConfig
from iformer.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

IGNORED = 255
"""The index in a mask of pixels that are of no class: not trained on, not counted."""


@dataclass(frozen=True, kw_only=True)
class DenseConfig:
    """What detectors and segmenters share. An image is resized, its shape kept, and never cropped."""

    backbone: NetworkConfig
    num_classes: int
    """Without the background."""
    size: int
    """The shorter side to which images are resized, in pixels."""
    max_size: int
    """The longest side that an image may then have; a longer one makes it smaller."""
    fpn_channels: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        check_types(self)
        check(self.num_classes >= 1, self, "num_classes", "a whole number of 1 or more")
        check(self.size >= MIN_INPUT_SIZE, self, "size", f"{MIN_INPUT_SIZE} pixels or more")
        check_dense_fields(self)
        check(self.backbone.num_classes == 0, self, "backbone", "a network of 0 classes: feature maps only")
        check(self.backbone.in_chans == 3, self, "backbone", "a network for images of 3 channels")

    @property
    def preprocessing(self) -> Preprocessing:
        """The same in the words of a checkpoint's metadata: `size` is (shorter, longest side), no crop."""
        return Preprocessing(
            size=(self.size, self.max_size),
            crop_pct=1.0,
            interpolation="bilinear",
            mean=self.mean,
            std=self.std,
        )

    def to_plain(self) -> dict[str, Any]:
        """Nested dicts and lists for JSON."""
        return to_plain(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_plain`; an unknown, missing or invalid field is a `ConfigError` that names it."""
        return from_plain(cls, plain)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(DenseConfig):
    """Mask R-CNN, or without masks Faster R-CNN (paper, section 4.3); the defaults are the paper's on COCO."""

    size: int = 800
    max_size: int = 1333
    masks: bool = True
    box_head_channels: int = 1024
    """Of the two fully connected layers that classify a region."""
    mask_head_channels: int = 256
    mask_head_depth: int = 4
    """3x3 convolutions of the mask head."""
    rois: int = 512
    """Regions of an image that the heads are trained on, a quarter of them objects."""
    proposals: int = 1000
    """Regions of an image that the heads look at, before training draws `rois` of them."""
    score_threshold: float = 0.05
    """Detections of a lower score are not reported."""
    detections: int = 100
    """Most detections of an image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_detector_fields(self)
        check(self.detections >= 1, self, "detections", "a whole number of 1 or more")
        check(0 <= self.score_threshold < 1, self, "score_threshold", "a number from 0 up to, not with, 1")


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(DenseConfig):
    """Semantic FPN (Kirillov et al. 2019, "Panoptic feature pyramid networks"; the paper, section 4.4)."""

    size: int = 512
    max_size: int = 2048
    head_channels: int = 128
    dropout: float = 0.1
    """Of whole channels, before the last convolution."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """A colour (red, green, blue) for each class; empty: `default_palette`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.num_classes < IGNORED, self, "num_classes", f"fewer than {IGNORED}, which marks ignored pixels")
        check_segmenter_fields(self)
        check(
            len(self.palette) in (0, self.num_classes)
            and all(0 <= value <= 255 for colour in self.palette for value in colour),
            self,
            "palette",
            f"a colour of three values from 0 to 255 for each of {self.num_classes} classes, or none",
        )

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """The palette, or the default one."""
        return self.palette or default_palette(self.num_classes)


def check_dense_fields(fields: Any) -> None:
    """Raise `ConfigError` for what no network of either task can have; also of a recipe, which has them too."""
    check(fields.max_size >= fields.size, fields, "max_size", f"size ({fields.size}) or more")
    check(fields.fpn_channels >= 1, fields, "fpn_channels", "a whole number of 1 or more")


def check_detector_fields(fields: Any) -> None:
    """The same of a detector's own fields."""
    for name in ("box_head_channels", "mask_head_channels", "mask_head_depth", "rois", "proposals"):
        check(getattr(fields, name) >= 1, fields, name, "a whole number of 1 or more")


def check_segmenter_fields(fields: Any) -> None:
    """The same of a segmenter's own fields."""
    channels = fields.head_channels
    check(
        channels >= 32 and channels % 32 == 0, fields, "head_channels", "a multiple of 32, the groups of its norms"
    )
    check(0 <= fields.dropout < 1, fields, "dropout", "a number from 0 up to, not with, 1")


def default_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours that differ, the same for every run: hues a golden angle apart at two levels of lightness."""
    import colorsys

    colours = []
    for index in range(count):
        hue, value = (index * 0.618034 + 0.1) % 1.0, (0.95, 0.65)[index % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
