"""Batch norm over the images of all ranks: `torch.nn.SyncBatchNorm` on GPUs, and an equivalent for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_norms(network: nn.Module, device: torch.device) -> None:
    """Make each batch norm of a network use the statistics of all ranks, in place. State dict keys stay the same.

    Gradients averaged over the ranks by DistributedDataParallel then equal those of one process with the whole
    batch. Eval mode does not change.
    """
    for name, child in list(network.named_children()):
        if isinstance(child, _BatchNorm):
            if device.type == "cpu":
                child.__class__ = _synchronised(type(child))
            else:
                setattr(network, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]
        else:
            synchronise_norms(child, device)


class _SyncBatchNorm(_BatchNorm):
    """Batch norm for CPUs with training statistics over the images of all ranks."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.running_mean is None or self.momentum is None:
            return super().forward(input)
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        x = input if input.dtype == torch.float64 else input.float()
        dims = [dim for dim in range(x.ndim) if dim != 1]
        count = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype, device=x.device)
        sum_C, count = _sum_over_ranks(torch.cat([x.sum(dims), count])).split([x.shape[1], 1])  # type: ignore[no-untyped-call]
        mean_C = sum_C / count
        shape = [1, -1, *[1] * (x.ndim - 2)]
        centred = x - mean_C.view(shape)
        # a second all-reduce, because E[x^2] - E[x]^2 would lose digits
        variance_C = _sum_over_ranks(centred.square().sum(dims)) / count
        with torch.no_grad():
            unbiased_C = variance_C * (count / (count - 1))
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        scaled: Tensor = centred * torch.rsqrt(variance_C + self.eps).view(shape)
        if self.affine:
            scaled = scaled * self.weight.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)


class _SyncBatchNorm1d(_SyncBatchNorm, nn.BatchNorm1d):
    pass


class _SyncBatchNorm2d(_SyncBatchNorm, nn.BatchNorm2d):
    pass


def _sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum of `values` over the ranks, with gradients."""
    total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
    return total


def _synchronised(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    return _SyncBatchNorm1d if issubclass(kind, nn.BatchNorm1d) else _SyncBatchNorm2d
