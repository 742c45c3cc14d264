"""Layer norm over the channels of a feature map (the first steps of Figure 2, and "pre-LN" of Table 6)."""

from __future__ import annotations

from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels at each position, B x C x H x W to the same shape; eps 1e-6 as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
