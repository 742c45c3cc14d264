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
    """Predict a mask for each object (Mask R-CNN). False: predict boxes only (Faster R-CNN)."""
    box_head_channels: Channels = 1024
    """Channels of the two fully connected layers that classify a region."""
    mask_head_channels: Channels = 256
    """Channels of the mask head."""
    mask_head_depth: Annotated[int, Range(1, 64)] = 4
    """Number of 3x3 convolutions in the mask head."""
    rois: Regions = 512
    """Number of regions per image that the heads are trained on; up to a quarter of them contain objects."""
    proposals: Regions = 1000
    """Number of regions per image that the region proposal network passes to the heads."""
    score_threshold: ShareBelowOne = 0.05
    """Detections with a lower score are dropped."""
    detections: Regions = 100
    """Largest number of detections per image."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(PyramidConfig, DetectorOptions):
    """A whole detector: backbone, pyramid and heads."""

    size: Pixels = 800
    max_size: Pixels = 1333
