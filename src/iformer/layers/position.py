"""Conditional position encoding, CPE: the position of a token from its neighbours (Section 3.3, "PE")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.layers.conv_norm import ConvNorm, convolution
from iformer.layers.residual import ResidualAdd
from iformer.layers.windows import Windows


class PositionEncoding(nn.Module):
    """`x + depthwise(x)` with a 3x3 depthwise ConvNorm, B x C x H x W to the same shape.

    With windows, x is a strip, and each window is padded with zeros.
    """

    def __init__(self, channels: int, *, residual: ResidualAdd) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, 3, groups=channels)
        self.residual = residual

    def forward(self, x: Tensor, windows: Windows | None = None) -> Tensor:
        branch = self.depthwise(x) if windows is None else windows.each(self.depthwise, x)
        return self.residual(x, branch)

    def fold(self) -> FoldedPositionEncoding:
        """Return one depthwise convolution: the residual becomes a 1 at the centre of each kernel."""
        conv = self.depthwise.fold()
        centre = conv.kernel_size[0] // 2
        # in float64, like the fold itself: the centre becomes 1 + w
        weight = conv.weight.detach().double()
        weight[:, 0, centre, centre] += 1.0
        assert conv.bias is not None
        bias = torch.clone(conv.bias.detach())
        return FoldedPositionEncoding(convolution(weight.to(conv.weight), bias, like=conv))


class FoldedPositionEncoding(nn.Module):
    """The position encoding for inference, as one depthwise convolution."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, windows: Windows | None = None) -> Tensor:
        return self.conv(x) if windows is None else windows.convolve(self.conv, x)
