"""A faster weight gradient for depthwise convolutions in bf16 on CPUs.

oneDNN computes the weight gradient in blocks of 16 x 16 channels, of which only the diagonals are needed. For 7 x
7 kernels the gradient takes 15 to 20 times as long as the forward pass, a fifth of a training step
(`docs/benchmarks/training.md`). Here it is computed as another depthwise convolution, whose kernels are the
gradients of the output:

    dL/dw[c, i, j] = sum over n, y, x of input[n, c, y + i - p, x + j - p] * dL/doutput[n, c, y, x]

Each pair of image and channel becomes one channel of that convolution; the sum over the images comes last.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iformer.layers.capture import is_capturing
from iformer.training.network.precision import Precision

_ONEDNN_IS_FAST_TO = 3
"""Largest kernel size for which oneDNN has a fast weight gradient. Only layers with larger kernels are changed."""

_TYPES = (torch.float32, torch.bfloat16)
"""Input types that autocast converts to bf16."""

_TILE = 28
"""Largest side, in pixels, of an output gradient that is used as a kernel; larger maps are cut into tiles."""


def train_depthwise_fast(network: nn.Module, device: torch.device, precision: Precision) -> None:
    """Use the faster weight gradient in large depthwise convolutions, in place, for training in bf16 on a CPU.

    Only layers with odd square kernels, stride 1 and "same" padding are changed. State dict keys stay the same.
    Inference and exported graphs do not change.
    """
    if device.type != "cpu" or precision != "bf16":
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_large_depthwise(module):
            module.__class__ = _DepthwiseConv2d


def _is_large_depthwise(conv: nn.Conv2d) -> bool:
    height, width = conv.kernel_size
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and height == width > _ONEDNN_IS_FAST_TO
        and height % 2 == 1
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (height // 2, height // 2)
        and conv.padding_mode == "zeros"
    )


class _DepthwiseConv2d(nn.Conv2d):
    """Depthwise `nn.Conv2d` with the faster weight gradient."""

    def forward(self, input: Tensor) -> Tensor:
        fast = torch.is_grad_enabled() and torch.is_autocast_enabled("cpu") and not is_capturing()
        if not fast or input.ndim != 4 or input.numel() == 0 or input.dtype not in _TYPES:
            return super().forward(input)
        output: Tensor = _Depthwise.apply(input.to(torch.bfloat16), self.weight)
        return output if self.bias is None else output + self.bias.to(output.dtype).view(-1, 1, 1)


class _Depthwise(torch.autograd.Function):
    """`conv2d(input, weight, padding=K // 2, groups=C)` in bf16; the weight's gradient has the weight's type."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor) -> Tensor:
        return _same_conv(input, weight.to(input.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        gradient = gradient.to(input.dtype)
        of_input = _same_conv(gradient, weight.to(input.dtype).flip(2, 3)) if ctx.needs_input_grad[0] else None
        of_weight = weight_gradient(input, gradient, weight.shape[-1]) if ctx.needs_input_grad[1] else None
        return of_input, None if of_weight is None else of_weight.to(weight.dtype)


def _same_conv(input: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(input, weight, padding=weight.shape[-1] // 2, groups=len(weight))


def weight_gradient(input: Tensor, gradient: Tensor, kernel_size: int) -> Tensor:
    """Return the weight gradient of a depthwise convolution with stride 1 and padding `kernel_size // 2`.

    Args:
        input: B x C x H x W.
        gradient: gradient of the output, of the same shape and type.
        kernel_size: side of the kernel, an odd number.

    Returns:
        C x 1 x kernel_size x kernel_size, summed over images and tiles in fp32 (fp64 if the input is fp64).
    """
    batch, channels, height, width = input.shape
    pad = kernel_size // 2
    rows, columns = -(-height // _TILE), -(-width // _TILE)
    tile_height, tile_width = -(-height // rows), -(-width // columns)
    below, right = rows * tile_height - height, columns * tile_width - width
    # channels stay innermost, so that copies are contiguous and both operands are channels-last
    input_BHWC = F.pad(input.permute(0, 2, 3, 1), (0, 0, pad, pad + right, pad, pad + below))
    gradient_BHWC = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, right, 0, below))
    patches = (
        input_BHWC.unfold(1, tile_height + 2 * pad, tile_height)
        .unfold(2, tile_width + 2 * pad, tile_width)  # batch, rows, columns, channels, height, width
        .permute(4, 5, 0, 1, 2, 3)
        .reshape(1, tile_height + 2 * pad, tile_width + 2 * pad, -1)
        .permute(0, 3, 1, 2)
    )
    kernels = (
        gradient_BHWC.reshape(batch, rows, tile_height, columns, tile_width, channels)
        .permute(0, 1, 3, 5, 2, 4)
        .reshape(-1, 1, tile_height, tile_width)
    )
    parts = F.conv2d(patches, kernels, groups=len(kernels))  # 1 x (batch, rows, columns, channels) x K x K
    total = parts.permute(0, 2, 3, 1).reshape(kernel_size, kernel_size, -1, channels)
    wide = torch.promote_types(input.dtype, torch.float32)
    return total.sum(2, dtype=wide).permute(2, 0, 1).unsqueeze(1)
