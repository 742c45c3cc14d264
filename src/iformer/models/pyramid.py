"""The backbone with a feature pyramid, for detection and segmentation.

Shape letters: B batch, C channels of the pyramid, H and W the image's sides.
"""

from __future__ import annotations

from typing import Literal, Self

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from iformer.models.backbone import Backbone

Frozen = Literal["none", "norms", "weights"]


class FreezableBackbone(nn.Module):
    """A backbone, `body`, whose weights or norms can be frozen."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.body = backbone
        self._frozen: Frozen = "none"

    def freeze(self, what: Frozen) -> None:
        """Freeze parts of the backbone.

        Args:
            what: "norms" keeps statistics, scales and shifts of batch norms, because the statistics of a few large
                images are noisy. "weights" trains no parameter, while statistics adapt, so that even a random
                backbone computes features of a sound scale. "none" trains everything.
        """
        self._frozen = what
        for module in self.body.modules():
            is_norm = isinstance(module, nn.BatchNorm2d)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(what == "none" or (what == "norms" and not is_norm))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or eval mode; frozen norms always use their running statistics."""
        super().train(mode)
        if self._frozen == "norms":
            for module in self.body.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


class Pyramid(FreezableBackbone):
    """Backbone with four feature maps, followed by torchvision's FPN (Lin et al. 2017).

    `forward` maps B x 3 x H x W to a dict of maps B x C x H/s x W/s, s = 4, 8, 16, 32 under the names "0" to
    "3", and with `pooled` a fifth one, "pool", at stride 64.
    """

    def __init__(self, backbone: Backbone, channels: int, *, pooled: bool) -> None:
        super().__init__(backbone)
        self.fpn = FeaturePyramidNetwork(
            list(backbone.config.channels), channels, extra_blocks=LastLevelMaxPool() if pooled else None
        )
        self.out_channels = channels
        """Number of channels of every map; torchvision's detectors read this attribute."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x)
        pyramid: dict[str, Tensor] = self.fpn({str(index): value for index, value in enumerate(maps)})
        return pyramid
