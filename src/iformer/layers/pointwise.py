"""The 1x1 convolution of folded networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.layers.capture import is_capturing


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution that always uses oneDNN's kernel on CPUs.

    For fewer than 16 images on one thread, PyTorch computes a 1x1 convolution as a matrix product, which runs at
    half the rate on CPUs without that library's best kernels (`benchmarks/inference.md`). Traced, exported and
    compiled graphs contain the ordinary convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _runs_eagerly_on_cpu(x):
            return super().forward(x)
        return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), (1, 1), (1, 1), 1)


def _runs_eagerly_on_cpu(x: Tensor) -> bool:
    return (
        not is_capturing()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
    )
