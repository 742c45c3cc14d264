"""The stride-4 stem: three early convolutions (Section 3.2), or one patch convolution as in ConvNeXt."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from iformer.layers.conv_norm import Norm, conv_norm, fold_part
from iformer.layers.folded_conv import conv_gelu


class Stem(nn.Module):
    """K x K stride 2, GELU, K x K stride 2, GELU, 1x1: B x C_in x H x W to B x C x ceil(H/4) x ceil(W/4).

    K is 5 in iFormer and 3 before the step "kernel size" in Figure 2. A norm follows each convolution.
    """

    def __init__(self, *, conv1: nn.Module, conv2: nn.Module, conv3: nn.Module) -> None:
        super().__init__()
        self.conv1 = conv1
        self.conv2 = conv2
        self.conv3 = conv3

    @classmethod
    def build(cls, in_channels: int, channels: int, *, kernel_size: int = 5, norm: Norm = "batch") -> Self:
        """Build a trainable stem whose convolutions have C/2, 2C and C output channels; C is `channels`."""
        return cls(
            conv1=conv_norm(in_channels, channels // 2, kernel_size, stride=2, norm=norm),
            conv2=conv_norm(channels // 2, 2 * channels, kernel_size, stride=2, norm=norm),
            conv3=conv_norm(2 * channels, channels, 1, norm=norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(conv_gelu(self.conv2, conv_gelu(self.conv1, x)))
        return y

    def fold(self) -> Stem:
        """Return the stem for inference, with batch norms inside the convolutions."""
        return Stem(conv1=fold_part(self.conv1), conv2=fold_part(self.conv2), conv3=fold_part(self.conv3))


class PatchStem(nn.Module):
    """One 4x4 convolution of stride 4, then a norm (baseline of Figure 2).

    Shape: B x C_in x H x W to B x C x floor(H/4) x floor(W/4).
    """

    def __init__(self, *, conv1: nn.Module) -> None:
        super().__init__()
        # conv1: the first convolution has the same name in both stems
        self.conv1 = conv1

    @classmethod
    def build(cls, in_channels: int, channels: int, *, norm: Norm) -> Self:
        """Build a trainable stem with `channels` output channels."""
        return cls(conv1=conv_norm(in_channels, channels, 4, stride=4, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x)

    def fold(self) -> PatchStem:
        """Return the stem for inference, with the batch norm inside the convolution."""
        return PatchStem(conv1=fold_part(self.conv1))
