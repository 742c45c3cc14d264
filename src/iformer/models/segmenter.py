"""Semantic FPN: a class for each pixel.

Shape letters: B batch, C channels, K classes, H and W the image's sides.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from iformer.config.metadata import Metadata
from iformer.config.segmenter import SegmenterConfig
from iformer.models.backbone import Backbone
from iformer.models.folding import fold
from iformer.models.pyramid import Pyramid

_GROUPS = 32


class Segmenter(nn.Module):
    """Backbone, feature pyramid and the head of Semantic FPN."""

    def __init__(self, config: SegmenterConfig, backbone: Backbone | None = None) -> None:
        """Build the network on `backbone` (None: a random one), with a random head."""
        super().__init__()
        self.config = config
        self.metadata = Metadata(task="segment", preprocessing=config.preprocessing)
        self.pyramid = Pyramid(backbone or Backbone(config.backbone), config.fpn_channels, pooled=False)
        self.head = SemanticHead(
            config.fpn_channels, config.head_channels, config.num_classes, dropout=config.dropout
        )

    def coarse_logits(self, images: Tensor) -> Tensor:
        """Map normalised images, B x 3 x H x W, to logits at a quarter of their size, B x K x H/4 x W/4."""
        logits: Tensor = self.head(list(self.pyramid(images).values()))
        return logits

    def fold(self) -> Segmenter:
        """Return a copy in eval mode with a folded backbone; the group norms of the head stay."""
        folded = copy.deepcopy(self).eval().requires_grad_(False)
        folded.pyramid.body = fold(folded.pyramid.body)
        return folded

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, B x 3 x H x W, to logits of the same size, B x K x H x W."""
        logits = self.coarse_logits(images)
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


class SemanticHead(nn.Module):
    """Head that maps the levels of a pyramid, finest first, to logits of the finest level's size.

    Steps of convolution, group norm, ReLU and bilinear upsampling bring each map to the size of the finest map,
    which takes one step without upsampling. A 1x1 convolution of the sum of the maps computes the logits.

    Source: Kirillov et al. 2019, Figure 3.
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.ModuleList(
                _step(in_channels if number == 0 else channels, channels) for number in range(max(1, level))
            )
            for level in range(4)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Map four maps, B x C x H/s x W/s for s = 4, 8, 16, 32, to B x K x H/4 x W/4."""
        total: Tensor | None = None
        for level, (branch, x) in enumerate(zip(self.branches, maps, strict=True)):
            assert isinstance(branch, nn.ModuleList)
            for number, step in enumerate(branch):
                x = step(x)
                if level > 0:
                    # to the size of the next finer map, which is not twice this one if a side was rounded up
                    x = F.interpolate(
                        x, size=maps[level - 1 - number].shape[2:], mode="bilinear", align_corners=False
                    )
            total = x if total is None else total + x  # ncnn cannot sum a stack
        logits: Tensor = self.classify(self.dropout(total))
        return logits


def _step(in_channels: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, channels),
        nn.ReLU(inplace=True),
    )
