"""Config of a detector, Mask R-CNN or Faster R-CNN. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from iformer.config.checking import Range, ShareBelowOne
from iformer.config.network import Channels, Pixels
from iformer.config.pyramid import PyramidConfig, PyramidOptions

Regions = Annotated[int, Range(1, 100_000)]


@dataclass(frozen=True, kw_only=True)
class DetectorOptions(PyramidOptions):
    """The options of a detector that a recipe may set. The defaults are the paper's on COCO (section 4.3)."""

    masks: bool = True
    """Mask R-CNN, which also predicts a mask for each object. False: Faster R-CNN, boxes only."""
    box_head_channels: Channels = 1024
    """Channels of the two fully connected layers that classify a region."""
    mask_head_channels: Channels = 256
    """Channels of the mask head."""
    mask_head_depth: Annotated[int, Range(1, 64)] = 4
    """Number of 3x3 convolutions in the mask head."""
    rois: Regions = 512
    """Regions of an image that the heads are trained on; up to a quarter of them contain objects."""
    proposals: Regions = 1000
    """Regions of an image that the region proposal network passes on."""
    score_threshold: ShareBelowOne = 0.05
    """Detections with a lower score are dropped."""
    detections: Regions = 100
    """Most detections of an image."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(PyramidConfig, DetectorOptions):
    """A whole detector: backbone, pyramid and heads."""

    size: Pixels = 800
    max_size: Pixels = 1333
