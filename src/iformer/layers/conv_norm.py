"""Convolutions with a norm, and the exact fold of a convolution and its batch norm into one convolution."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from iformer.layers.folded_conv import FoldedConv
from iformer.layers.norm import LayerNorm2d

Norm = Literal["batch", "layer"]


class ConvNorm(nn.Module):
    """Bias-free convolution, then batch norm (eps 1e-5).

    Maps B x C_in x H x W to B x C_out x ceil(H / stride) x ceil(W / stride) for odd kernels, which are padded by
    `kernel_size // 2`. Even kernels are for patches and are not padded.
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
            padding=same_padding(kernel_size),
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold(self, gain: Tensor | None = None) -> FoldedConv:
        """Return one convolution with bias that computes `gain * self(x)` in eval mode.

        Args:
            gain: a factor per output channel, such as a layer scale. None: 1.
        """
        # double precision: the product of three rounded factors would cost parity with the unfolded form
        scale_C = self.norm.weight.detach().double() / (_running(self.norm.running_var) + self.norm.eps).sqrt()
        bias_C = self.norm.bias.detach().double() - _running(self.norm.running_mean) * scale_C
        if gain is not None:
            scale_C = scale_C * gain.detach().double()
            bias_C = bias_C * gain.detach().double()
        weight = self.conv.weight.detach().double() * scale_C[:, None, None, None]
        return convolution(weight.to(self.conv.weight), bias_C.to(self.conv.weight), like=self.conv)


class ConvLayerNorm(nn.Module):
    """Convolution with bias, padded as in `ConvNorm`, then layer norm over the channels."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = same_padding(kernel_size)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups
        )
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fold(self) -> nn.Sequential:
        """Return convolution and layer norm for inference.

        The layer norm stays separate, because its statistics depend on the input.
        """
        return nn.Sequential(fold_conv(self.conv), frozen(self.norm))


class LayerNormConv(nn.Module):
    """Layer norm over the channels, then a convolution with bias, padded as in `ConvNorm`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels)
        padding = same_padding(kernel_size)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))

    def fold(self) -> nn.Sequential:
        """Return layer norm and convolution for inference; the layer norm stays separate."""
        return nn.Sequential(frozen(self.norm), fold_conv(self.conv))


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, *, norm: Norm, stride: int = 1, groups: int = 1
) -> ConvNorm | ConvLayerNorm:
    """Build a convolution followed by a norm.

    Odd kernels are padded so that stride 1 keeps the size; even kernels are not padded. See `same_padding`.

    Shape: B x C_in x H x W to B x C_out x ceil(H / stride) x ceil(W / stride), for odd kernels.

    Args:
        norm: "batch" for `ConvNorm`, without bias, which folds away, or "layer" for `ConvLayerNorm`, with bias.
    """
    kind = ConvNorm if norm == "batch" else ConvLayerNorm
    return kind(in_channels, out_channels, kernel_size, stride=stride, groups=groups)


def pointwise(in_channels: int, out_channels: int, *, norm: Norm) -> ConvNorm | nn.Conv2d:
    """Build a 1x1 convolution: with batch norm if `norm` is "batch", else with a bias and without a norm."""
    return ConvNorm(in_channels, out_channels, 1) if norm == "batch" else nn.Conv2d(in_channels, out_channels, 1)


def same_padding(kernel_size: int) -> int:
    """Return the padding that keeps the size at stride 1; 0 for even kernels, which are for separate patches."""
    return kernel_size // 2 if kernel_size % 2 == 1 else 0


def frozen(norm: nn.Module) -> nn.Module:
    """Return a copy for inference of a norm that cannot be folded."""
    return copy.deepcopy(norm).eval().requires_grad_(False)


def fold_conv(conv: nn.Module, gain: Tensor | None = None) -> FoldedConv:
    """Return one convolution that computes `gain * conv(x)` in eval mode.

    Args:
        conv: a `ConvNorm`, or a convolution with bias.
        gain: a factor per output channel. None: 1.

    Raises:
        TypeError: `conv` is another module.
    """
    if isinstance(conv, ConvNorm):
        return conv.fold(gain)
    if not isinstance(conv, nn.Conv2d) or conv.bias is None:
        raise TypeError(f"{type(conv).__name__} cannot be folded into one convolution")
    weight, bias_C = conv.weight.detach().clone(), conv.bias.detach().clone()
    if gain is not None:
        weight = (weight.double() * gain.detach().double()[:, None, None, None]).to(weight)
        bias_C = (bias_C.double() * gain.detach().double()).to(bias_C)
    return convolution(weight, bias_C, like=conv)


def fold_part(part: nn.Module) -> nn.Module:
    """Return the folded form of a module: one convolution, or if it has a layer norm, convolution and norm."""
    if isinstance(part, ConvLayerNorm | LayerNormConv):
        return part.fold()
    return nn.Identity() if isinstance(part, nn.Identity) else fold_conv(part)


def _running(statistic: Tensor | None) -> Tensor:
    assert statistic is not None, "ConvNorm always tracks running statistics"
    return statistic.double()


def convolution(weight: Tensor, bias: Tensor, *, like: nn.Conv2d) -> FoldedConv:
    """Return a convolution with a given weight and bias, and with the stride, padding and groups of `like`.

    Args:
        weight: O x I/groups x K x K.
        bias: O.
        like: convolution that defines the other settings.
    """
    out_channels, in_per_group, kernel_size, _ = weight.shape
    conv = FoldedConv(
        in_per_group * like.groups,
        out_channels,
        kernel_size,
        stride=like.stride,  # type: ignore[arg-type]
        padding=like.padding,  # type: ignore[arg-type]
        groups=like.groups,
        device="meta",
    )
    # channels-last: no reordering between convolutions, and the attention's tokens are views
    weight = weight.contiguous(memory_format=torch.channels_last)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    return conv


def concatenate(convs: list[FoldedConv]) -> FoldedConv:
    """Return one convolution that computes the output channels of all `convs`, in order, from their common input.

    Kernel size, stride, padding and groups of all `convs` must be equal.
    """
    weight = torch.cat([conv.weight for conv in convs])
    bias = torch.cat([conv.bias for conv in convs if conv.bias is not None])
    return convolution(weight.detach(), bias.detach(), like=convs[0])
