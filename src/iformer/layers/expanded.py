"""A depthwise convolution between the two 1x1 convolutions of a block (Table 11)."""

from __future__ import annotations

from torch import Tensor, nn

from iformer.layers.conv_norm import Norm, conv_norm, fold_part
from iformer.layers.folded_conv import conv_gelu


class ExpandedDepthwise(nn.Module):
    """`gelu(depthwise(x))` on a block's expanded channels, B x rC x H x W to the same shape.

    The paper does not say where the activation is. Here every convolution on expanded channels has one.
    """

    def __init__(self, depthwise: nn.Module) -> None:
        super().__init__()
        self.depthwise = depthwise

    def forward(self, x: Tensor) -> Tensor:
        return conv_gelu(self.depthwise, x)


def build_expanded(channels: int, kernel_size: int | None, *, norm: Norm = "batch") -> nn.Module:
    """Build a trainable `ExpandedDepthwise`, or the identity if `kernel_size` is None."""
    if kernel_size is None:
        return nn.Identity()
    return ExpandedDepthwise(conv_norm(channels, channels, kernel_size, groups=channels, norm=norm))


def fold_expanded(expanded: nn.Module) -> nn.Module:
    """Return an `ExpandedDepthwise`, or the identity, for inference, with the norm folded."""
    if isinstance(expanded, ExpandedDepthwise):
        return ExpandedDepthwise(fold_part(expanded.depthwise))
    return nn.Identity()
