"""What the configs and recipes of detectors and segmenters share: a backbone, a feature pyramid and preprocessing.

At inference, images are resized and not cropped. `PyramidConfig` uses torchvision's feature pyramid and accepts
images of any size. `LightConfig` uses the light pyramid and letterboxes images to a fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from iformer.config.checking import Config, Range, check
from iformer.config.network import Channels, NetworkConfig, Pixels
from iformer.config.preprocessing import IMAGENET_MEAN, IMAGENET_STD, PixelValue, Preprocessing
from iformer.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class PyramidOptions(Config):
    """The options of a pyramid that a recipe may set."""

    fpn_channels: Channels = 256
    """Channels of every level of the feature pyramid."""
    value_range: tuple[PixelValue, PixelValue] | None = None
    """Values of black and white in images of more than 8 bits, such as [0, 4095]. None: the rules of
    `iformer.data.images.read_image` apply."""


@dataclass(frozen=True, kw_only=True)
class PyramidConfig(PyramidOptions):
    """A backbone with a feature pyramid. An image is resized with its aspect ratio kept."""

    backbone: NetworkConfig
    num_classes: Annotated[int, Range(1, 100_000)]
    """Number of classes, without the background."""
    size: Pixels
    """Images are resized so that the shorter side has this many pixels."""
    max_size: Pixels
    """Largest length of the longer side, in pixels; an image that would exceed it is made smaller."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.max_size >= self.size, self, "max_size", f"size ({self.size}) or more")
        check(self.backbone.num_classes == 0, self, "backbone", "a network with 0 classes: feature maps only")
        check(self.backbone.in_chans == 3, self, "backbone", "a network for images with 3 channels")
        assert self.preprocessing  # building it checks mean and std

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing for a checkpoint's metadata. Its `size` is (`size`, `max_size`); nothing is cropped."""
        return Preprocessing(
            size=(self.size, self.max_size),
            crop_pct=1.0,
            interpolation="bilinear",
            mean=self.mean,
            std=self.std,
            value_range=self.value_range,
        )


Side = Annotated[int, Range(32, 4096, step=32)]


@dataclass(frozen=True, kw_only=True)
class LightOptions(Config):
    """The options of a light pyramid that a recipe may set."""

    value_range: tuple[PixelValue, PixelValue] | None = None
    """Values of black and white in images of more than 8 bits, such as [0, 4095]. None: the rules of
    `iformer.data.images.read_image` apply."""
    channels: Annotated[int, Range(8, 1024)] = 96
    """Channels of the neck and of the heads."""
    kernel_size: Literal[3, 5, 7] = 5
    """Side of the depthwise kernels of neck and heads."""
    residual: bool = False
    """Add the input of each block in neck and heads to the block's output if both have the same shape."""


@dataclass(frozen=True, kw_only=True)
class LightConfig(LightOptions):
    """A backbone with a light pyramid. Its input has a fixed size, into which images are letterboxed."""

    backbone: NetworkConfig
    num_classes: Annotated[int, Range(1, 100_000)]
    """Number of classes, without the background."""
    input_size: tuple[Side, Side] = (320, 320)
    """Height and width of the network's input in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.backbone.num_classes == 0, self, "backbone", "a network with 0 classes: feature maps only")
        check(self.backbone.in_chans == 3, self, "backbone", "a network for images with 3 channels")
        assert self.preprocessing  # building it checks mean and std

    @property
    def fill(self) -> tuple[int, int, int]:
        """Colour (0 to 255) that fills the input outside the image: the mean, which normalisation turns into 0."""
        red, green, blue = (min(255, max(0, round(255 * value))) for value in self.mean)
        return red, green, blue

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing for a checkpoint's metadata. Its `size` is `input_size`; nothing is cropped."""
        return Preprocessing(
            size=self.input_size,
            crop_pct=1.0,
            interpolation="bilinear",
            mean=self.mean,
            std=self.std,
            value_range=self.value_range,
            letterbox=self.fill,
        )


@dataclass(frozen=True, kw_only=True)
class PyramidRecipe(Recipe):
    """Base class of recipes for networks with a feature pyramid: detection and segmentation."""

    max_size: Pixels
    """Limit of an image's longer side, in pixels, when the shorter side is resized to `size`."""
    freeze: Literal["none", "norms", "weights"] = "norms"
    """Frozen parts of the backbone: none; norms (scales, shifts and statistics of batch norms); or weights (all
    weights, while the statistics adapt)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.max_size >= self.size, self, "max_size", f"size ({self.size}) or more")

    def _check_light_sizes(self, network: str) -> None:
        check(self.size % 32 == 0, self, "size", f"a multiple of 32 for the {network}")
        sizes = (size for _, size in self.size_schedule)
        check(all(size % 32 == 0 for size in sizes), self, "size_schedule", f"multiples of 32 for the {network}")

    def _network_fields(self, options: PyramidOptions) -> dict[str, Any]:
        return {"size": self.size, "max_size": self.max_size, **vars(options)}
