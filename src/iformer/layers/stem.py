"""The stride-4 stem: three early convolutions (Section 3.2)."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from iformer.layers.conv_norm import ConvNorm, fold_conv


class Stem(nn.Module):
    """5x5 stride 2, GELU, 5x5 stride 2, GELU, 1x1: B x 3 x H x W to B x C x ceil(H/4) x ceil(W/4)."""

    def __init__(self, *, conv1: nn.Module, conv2: nn.Module, conv3: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.conv3 = conv3

    @classmethod
    def build(cls, in_channels: int, channels: int) -> Self:
        """A trainable stem of widths C/2, 2C and C."""
        return cls(
            conv1=ConvNorm(in_channels, channels // 2, 5, stride=2),
            conv2=ConvNorm(channels // 2, 2 * channels, 5, stride=2),
            conv3=ConvNorm(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))

    def fold(self) -> Stem:
        """The same function in eval mode, norms inside the convolutions."""
        return Stem(conv1=fold_conv(self.conv1), conv2=fold_conv(self.conv2), conv3=fold_conv(self.conv3))
