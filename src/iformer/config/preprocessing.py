"""Config of the steps from an image to a network's input, stored with the weights and in every artifact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from iformer.config.checking import Config, Length, Range, check
from iformer.config.network import MAX_INPUT_SIZE
from iformer.errors import listed

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Side = Annotated[int, Range(1, MAX_INPUT_SIZE)]
PixelValue = Annotated[float, Range(-1e9, 1e9)]
Byte = Annotated[int, Range(0, 255)]


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Config):
    """Resize, centre crop, scale to 0..1, then `(x - mean) / std` per channel.

    The shorter side is resized to `size / crop_pct`, then the centre `size` is cut out; with `letterbox` the whole
    image is shown instead. The defaults are those of the released ImageNet weights.
    """

    size: tuple[Side, Side] = (224, 224)
    """Height and width of the network's input, in pixels."""
    crop_pct: Annotated[float, Range(0.05, 1)] = 0.875
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: Annotated[tuple[Annotated[float, Range(-1000, 1000)], ...], Length(1, 1024)] = IMAGENET_MEAN
    std: tuple[Annotated[float, Range(0, 1000, above=True)], ...] = IMAGENET_STD
    value_range: tuple[PixelValue, PixelValue] | None = None
    """Values of black and white in images of more than 8 bits, such as [0, 4095] for 12-bit data in 16-bit
    files. None: the rules of `iformer.data.images.read_image` apply."""
    letterbox: tuple[Byte, Byte, Byte] | None = None
    """A colour (red, green, blue): the image is resized by one factor so that it just fits into `size` and placed
    at the top left; the rest is filled with this colour (`iformer.models.letterbox`). None: resize and crop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        most = 2 * MAX_INPUT_SIZE
        check(max(self.size) / self.crop_pct <= most, self, "crop_pct", f"size / crop_pct up to {most} pixels")
        rising = self.value_range is None or self.value_range[0] < self.value_range[1]
        check(rising, self, "value_range", "two rising numbers, or null")
        check(len(self.std) == len(self.mean), self, "std", f"{len(self.mean)} numbers, one for each of mean")
        check(self.letterbox is None or len(self.mean) == 3, self, "letterbox", "null unless mean has 3 values")

    def describe(self) -> str:
        """Return the steps as text, such as `224 x 224, bicubic, crop 0.875, mean 0.485 …, std 0.229 …`."""
        parts = [f"{self.size[0]} x {self.size[1]}", self.interpolation]
        if self.letterbox is None:
            parts.append(f"crop {self.crop_pct:g}")
        else:
            parts.append(f"letterbox {' '.join(map(str, self.letterbox))}")
        if self.value_range is not None:
            parts.append(f"values {self.value_range[0]:g} to {self.value_range[1]:g}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            parts.append(f"{name} {listed([str(number) for number in numbers], limit=4, separator=' ')}")
        return ", ".join(parts)

    def with_normalization_of(self, known: Preprocessing) -> Preprocessing:
        """Return this preprocessing with mean, std and, unless it has one, the value range of `known`."""
        value_range = self.value_range or known.value_range
        return replace(self, mean=known.mean, std=known.std, value_range=value_range)

    def with_channels(self, channels: int) -> Preprocessing:
        """Return this preprocessing for images with another number of channels; unchanged unless it is for RGB.

        Mean and std of gray images are averages over RGB; further channels repeat RGB, like the adapted kernels.
        """
        if channels == len(self.mean) or len(self.mean) != len(IMAGENET_MEAN):
            return self
        mean, std = (
            (round(sum(values) / 3, 6),) if channels == 1 else tuple(values[i % 3] for i in range(channels))
            for values in (self.mean, self.std)
        )
        return replace(self, mean=mean, std=std)
