"""The stride-2 convolution between two stages."""

from __future__ import annotations

from typing import Literal

from torch import nn

from iformer.layers.conv_norm import ConvNorm, LayerNormConv, Norm


def build_downsample(
    in_channels: int, out_channels: int, *, kind: Literal["overlapping", "patch"], norm: Norm
) -> nn.Module:
    """Build a convolution, B x C_in x H x W to B x C_out x H/2 x W/2.

    "overlapping" is 3x3 and rounds sides up, "patch" is 2x2 and rounds sides down. Batch norm follows the
    convolution; layer norm precedes it, as in ConvNeXt.
    """
    kernel_size = 3 if kind == "overlapping" else 2
    layer = ConvNorm if norm == "batch" else LayerNormConv
    return layer(in_channels, out_channels, kernel_size, stride=2)
