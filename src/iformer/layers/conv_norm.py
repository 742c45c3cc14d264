"""Convolution and batch norm, and their exact merge into one convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.layers.pointwise import PointwiseConv


class ConvNorm(nn.Module):
    """Bias-free convolution with `kernel_size // 2` padding, then batch norm (eps 1e-5).

    Maps B x C_in x H x W to B x C_out x ceil(H / stride) x ceil(W / stride) for odd kernels.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold(self, gain: Tensor | None = None) -> nn.Conv2d:
        """One convolution with bias that computes `gain * self(x)` in eval mode.

        Args:
            gain: a factor per output channel (a layer scale, an attention's 1/sqrt(D)), or None for 1.
        """
        # double precision: the product of three rounded factors would cost parity with the unfolded form
        scale_C = self.norm.weight.detach().double() / (_running(self.norm.running_var) + self.norm.eps).sqrt()
        bias_C = self.norm.bias.detach().double() - _running(self.norm.running_mean) * scale_C
        if gain is not None:
            scale_C = scale_C * gain.detach().double()
            bias_C = bias_C * gain.detach().double()
        weight = self.conv.weight.detach().double() * scale_C[:, None, None, None]
        return convolution(weight.to(self.conv.weight), bias_C.to(self.conv.weight), like=self.conv)


def fold_conv(conv: nn.Module, gain: Tensor | None = None) -> nn.Conv2d:
    """`conv.fold(gain)` of a part that has to be a trainable `ConvNorm`; a folded part has nothing to fold."""
    if not isinstance(conv, ConvNorm):
        raise TypeError(f"{type(conv).__name__} cannot be folded into one convolution")
    return conv.fold(gain)


def _running(statistic: Tensor | None) -> Tensor:
    assert statistic is not None, "ConvNorm always tracks running statistics"
    return statistic.double()


def convolution(weight: Tensor, bias: Tensor, *, like: nn.Conv2d) -> nn.Conv2d:
    """A convolution with the given weight (O x I/groups x K x K) and bias (O), strided and padded as `like`."""
    out_channels, in_per_group, kernel_size, _ = weight.shape
    is_pointwise = kernel_size == 1 and like.groups == 1 and like.stride == (1, 1)
    conv = (PointwiseConv if is_pointwise else nn.Conv2d)(
        in_per_group * like.groups,
        out_channels,
        kernel_size,
        stride=like.stride,  # type: ignore[arg-type]
        padding=like.padding,  # type: ignore[arg-type]
        groups=like.groups,
        device="meta",
    )
    # channels-last: convolutions then need no reordering between them and the attention's tokens are views
    weight = weight.contiguous(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


def concatenate(convs: list[nn.Conv2d]) -> nn.Conv2d:
    """One convolution whose output channels are those of `convs`, in order; they share input and shape."""
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
    return convolution(weight.detach(), bias.detach(), like=convs[0])
