"""Batch norm for training on GPUs, in as few passes over memory as it takes.

With torch's kernels for channels last, batch norm is 40 % of the time of a training step of iFormer-M on an H100,
about twice what reading and writing the tensors takes (`docs/benchmarks/gpu.md`). cuDNN's batch norm does not take
bf16. Here each direction is one pass for the sums and one for the result.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from iformer.layers.capture import is_capturing

_TYPES = (torch.bfloat16, torch.float16, torch.float32)
_ELEMENTS = 4096
"""Elements of the tile that a program of `column_sums` reads at once; half as many for `scale_columns`."""
_PARTS = (512, 128)
"""Number of partial sums of a column, powers of 2, where one tile is as wide as the matrix, and elsewhere: enough
programs for all multiprocessors of a large GPU."""


def train_norms_fast(network: nn.Module, device: torch.device) -> None:
    """Use the faster kernels in the batch norms of a network, in place, for training on a CUDA GPU with Triton.

    State dict keys, eval mode and exported graphs stay the same.
    """
    if device.type != "cuda" or torch.version.cuda is None or importlib.util.find_spec("triton") is None:
        return
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats and module.momentum:
            module.__class__ = _BatchNorm2d


class _BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the faster kernels in training mode."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled() and _takes(input, self.weight)) or is_capturing():
            return super().forward(input)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        output: Tensor = BatchNormPass.apply(
            input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self.momentum
        )
        return output


def _takes(input: Tensor, weight: Tensor) -> bool:
    return (
        input.is_cuda
        and input.ndim == 4
        and input.dtype in _TYPES
        and weight.dtype == torch.float32
        and input.is_contiguous(memory_format=torch.channels_last)
        and 1 < input.numel() // max(input.shape[1], 1) < 2**31  # one value a channel has no variance
    )


class BatchNormPass(torch.autograd.Function):
    """`batch_norm(x, running_mean, running_var, weight, bias, training=True)` of a batch with channels last.

    Shape: x and its gradient B x C x H x W in bf16, fp16 or fp32; the rest C, in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        momentum: float,
    ) -> Tensor:
        from iformer.training.network import norm_kernels as kernels

        rows, columns = _sizes(x)
        sums, parts = _column_sums(x, None, running_mean)
        # mean, 1 / standard deviation, and scale and shift of the output
        statistics = torch.empty(4, columns, device=x.device)
        kernels.finish_forward[(-(-columns // 16),)](
            sums, weight, bias, running_mean, running_var, statistics, rows, columns, eps, momentum, parts, 16
        )
        ctx.save_for_backward(x, weight, statistics)
        return _scaled(x, None, statistics[2:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from iformer.training.network import norm_kernels as kernels

        x, weight, statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        rows, columns = _sizes(x)
        sums, parts = _column_sums(x, gradient, statistics)
        # gradients of weight and bias, and the factors of the input's gradient
        factors = torch.empty(5, columns, device=x.device)
        kernels.finish_backward[(-(-columns // 16),)](sums, statistics, weight, factors, rows, columns, parts, 16)
        return _scaled(x, gradient, factors[2:]), factors[0], factors[1], None, None, None, None


def _sizes(x: Tensor) -> tuple[int, int]:
    """Return the rows and columns of a batch as a matrix."""
    return x.numel() // x.shape[1], x.shape[1]


def _width(columns: int, limit: int) -> int:
    return min(limit, 1 << (columns - 1).bit_length())


def _scaled(x: Tensor, y: Tensor | None, factors: Tensor) -> Tensor:
    """Return the result of `scale_columns`, like `x`."""
    from iformer.training.network import norm_kernels as kernels

    rows, columns = _sizes(x)
    width = _width(columns, 128)
    height = _ELEMENTS // 2 // width
    output = torch.empty_like(x)
    kernels.scale_columns[(-(-rows // height), -(-columns // width))](
        x, x if y is None else y, factors, output, rows, columns, height, width, y is not None, num_warps=4
    )
    return output


def _column_sums(x: Tensor, y: Tensor | None, shift: Tensor) -> tuple[Tensor, int]:
    """Return the partial sums of `column_sums`, 2 x P x C in fp32, and P."""
    from iformer.training.network import norm_kernels as kernels

    rows, columns = _sizes(x)
    width = _width(columns, 64)
    parts = _PARTS[0] if columns <= width else _PARTS[1]
    sums = torch.empty(2, parts, columns, device=x.device)
    kernels.column_sums[(parts, -(-columns // width))](
        x,
        x if y is None else y,
        shift,
        sums,
        rows,
        columns,
        parts,
        _ELEMENTS // width,
        width,
        y is not None,
        num_warps=8 if y is None else 4,
    )
    return sums, parts
