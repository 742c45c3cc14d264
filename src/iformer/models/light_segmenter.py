"""A segmenter for phones: `LightPyramid` from stride 4 on, and a head of one depthwise-separable convolution.

The maps of all levels are brought to the finest one's size and added, as in Semantic FPN (Kirillov et al. 2019,
arXiv 1901.02446), but by bilinear upsampling alone, so that the pyramid's own convolutions are the only ones on
coarse levels. Batch norm folds away.

Shape letters: B batch, C channels, K classes, H and W the sides of the network's input.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.metadata import Metadata
from iformer.config.segmenter import LightSegmenterConfig
from iformer.models.backbone import Backbone
from iformer.models.folding import fold
from iformer.models.pyramid import LightPyramid, SeparableConv, fold_norms


class LightSegmenter(nn.Module):
    """Segmenter that gives each pixel of letterboxed images a class."""

    def __init__(self, config: LightSegmenterConfig, backbone: Backbone | None = None) -> None:
        """Build the network on `backbone` (None: a random one), with a random neck and a random head."""
        super().__init__()
        self.config = config
        self.metadata = Metadata(task="segment", preprocessing=config.preprocessing)
        self.pyramid = LightPyramid(
            backbone or Backbone(config.backbone),
            config.channels,
            kernel_size=config.kernel_size,
            residual=config.residual,
            finest=4,
        )
        self.head = LightSegmentationHead(config)

    def coarse_logits(self, images: Tensor) -> Tensor:
        """Map normalised images, B x 3 x H x W, to logits at a quarter of their size, B x K x H/4 x W/4."""
        logits: Tensor = self.head(self.pyramid(images))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, B x 3 x H x W, to logits of the same size, B x K x H x W."""
        logits = self.coarse_logits(images)
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)

    def fold(self) -> LightSegmenter:
        """Return a folded copy in eval mode: norms merged into convolutions."""
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        folded.pyramid.body = fold(folded.pyramid.body)
        fold_norms(folded.pyramid.neck)
        fold_norms(folded.head)
        return folded


class LightSegmentationHead(nn.Module):
    """Head that maps the levels of a pyramid, finest first, to logits of the finest level's size.

    Shape: maps B x C x h_i x w_i to B x K x h_0 x w_0.
    """

    def __init__(self, config: LightSegmenterConfig) -> None:
        super().__init__()
        channels = config.channels
        self.mix = SeparableConv(channels, channels, kernel_size=config.kernel_size, residual=config.residual)
        self.dropout = nn.Dropout2d(config.dropout)
        self.classify = nn.Conv2d(channels, config.num_classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        size = maps[0].shape[2:]
        total = maps[0]
        for x in maps[1:]:
            total = total + F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        logits: Tensor = self.classify(self.dropout(self.mix(total)))
        return logits
