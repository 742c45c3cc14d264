"""Configs of segmenters: Semantic FPN, and a light one for phones. Does not import torch."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Annotated

from iformer.config.checking import Range, ShareBelowOne, check
from iformer.config.network import Pixels
from iformer.config.preprocessing import Byte
from iformer.config.pyramid import LightConfig, LightOptions, PyramidConfig, PyramidOptions

IGNORED = 255
"""Mask value of pixels without a class; training and metrics leave these pixels out."""

Palette = tuple[tuple[Byte, Byte, Byte], ...]


@dataclass(frozen=True, kw_only=True)
class SegmenterOptions(PyramidOptions):
    """The options of a segmenter that a recipe may set. The defaults are the paper's on ADE20K (section 4.4)."""

    head_channels: Annotated[int, Range(32, 4096, step=32)] = 128
    """Channels of the head; a multiple of 32, the number of groups of its norms."""
    dropout: ShareBelowOne = 0.1
    """Probability that a whole channel is dropped before the last convolution."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(PyramidConfig, SegmenterOptions):
    """A whole Semantic FPN (Kirillov et al. 2019, "Panoptic feature pyramid networks")."""

    size: Pixels = 512
    max_size: Pixels = 2048
    palette: Palette = ()
    """A colour (red, green, blue) for each class. Empty: `default_palette`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_classes(self)

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """Colour (red, green, blue) of each class: `palette`, or `default_palette` if `palette` is empty."""
        return self.palette or default_palette(self.num_classes)


@dataclass(frozen=True, kw_only=True)
class LightSegmenterOptions(LightOptions):
    """The options of the light segmenter that a recipe may set."""

    dropout: ShareBelowOne = 0.1
    """Probability that a whole channel is dropped before the last convolution."""


@dataclass(frozen=True, kw_only=True)
class LightSegmenterConfig(LightConfig, LightSegmenterOptions):
    """A whole light segmenter: backbone, light pyramid and head."""

    palette: Palette = ()
    """A colour (red, green, blue) for each class. Empty: `default_palette`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_classes(self)

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """Colour (red, green, blue) of each class: `palette`, or `default_palette` if `palette` is empty."""
        return self.palette or default_palette(self.num_classes)


def _check_classes(config: SegmenterConfig | LightSegmenterConfig) -> None:
    check(config.num_classes < IGNORED, config, "num_classes", f"less than {IGNORED}, which marks ignored pixels")
    colours = f"a colour for each of {config.num_classes} classes, or none"
    check(len(config.palette) in (0, config.num_classes), config, "palette", colours)


def default_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return distinct colours, the same in every run: hues a golden angle apart, in two levels of brightness."""
    colours = []
    for index in range(count):
        hue, value = (index * 0.618034 + 0.1) % 1.0, (0.95, 0.65)[index % 2]
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
