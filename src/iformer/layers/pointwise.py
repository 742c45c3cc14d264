"""The 1x1 convolution of folded networks, by the fastest kernel of its device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iformer.layers.capture import is_capturing


class PointwiseConv(nn.Conv2d):
    """A 1x1 convolution that always uses oneDNN's kernel on CPUs, and a matrix product in half precision on GPUs.

    CPU: for fewer than 16 images on one thread, PyTorch computes a 1x1 convolution as a matrix product, which runs
    at half the rate on CPUs without that library's best kernels (`docs/benchmarks/inference.md`).

    GPU: cuDNN's convolution is followed by a kernel of its own that adds the bias, a fifth of the time of a large
    batch (`docs/benchmarks/gpu.md`). The matrix product adds it as it writes its result.

    Traced, exported and compiled graphs contain the ordinary convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_capturing():
            return super().forward(x)
        if _is_for_onednn(x):
            return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), (1, 1), (1, 1), 1)
        if x.device.type == "cuda" and is_matrix_of_pixels(x) and self.bias is not None:
            return as_matrix_product(x, self.weight, self.bias)
        return super().forward(x)


def is_matrix_of_pixels(x: Tensor) -> bool:
    """Whether x is in half precision and its pixels are the rows of a matrix in memory (channels-last)."""
    # in fp32 the product would ignore `torch.backends.cudnn.allow_tf32`, which convolutions obey
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    return is_half and x.is_contiguous(memory_format=torch.channels_last)


def as_matrix_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the 1x1 convolution of x, B x I x H x W, with a weight O x I x 1 x 1; both maps are channels-last."""
    batch, channels, height, width = x.shape
    pixels_PI = x.permute(0, 2, 3, 1).reshape(-1, channels)
    result_PO = torch.addmm(bias, pixels_PI, weight.flatten(1).T)
    return result_PO.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _is_for_onednn(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
    )
