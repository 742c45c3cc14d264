"""The convolution of folded networks, which uses faster kernels on x86 CPUs and on GPUs.

x86 CPUs, fp32: oneDNN needs the weights in a blocked layout. PyTorch converts them in every call, and a GELU or a
residual sum after the convolution reads and writes the whole map again. `FoldedConv` converts the weights once and
fuses the GELU or the sum, with the operators that `torch.compile` uses for frozen networks. The public ways to
these kernels are `torch.compile`, which needs a compiler and a minute, and TorchScript's `optimize_for_inference`,
which is deprecated.

GPUs, half precision: cuDNN adds the bias in a separate kernel, which takes a fifth of the time of a large batch
(`docs/benchmarks/gpu.md`). A matrix product adds the bias while it writes the result.

In all other cases, and in traced, exported and compiled graphs, `FoldedConv` is an ordinary convolution.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.layers.capture import is_capturing

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")


class FoldedConv(nn.Conv2d):
    """A convolution for inference, with weights that need no gradient."""

    _packed: tuple[Any, Tensor] | None = None
    """What the packed weight was made for (input shape, weight, threads), and the weight in oneDNN's layout. Not
    part of copies and state dicts."""

    def forward(self, x: Tensor) -> Tensor:
        if self._has_packed_kernel(x):
            return torch.ops.mkldnn._convolution_pointwise(*self._arguments(x), "none", [], "")
        if self._is_matrix_product(x):
            return as_matrix_product(x, self.weight, self.bias)
        return super().forward(x)

    def gelu(self, x: Tensor) -> Tensor:
        """Return `gelu(conv(x))`."""
        if self.can_fuse(x):
            return torch.ops.mkldnn._convolution_pointwise(*self._arguments(x), "gelu", [], "none")
        return F.gelu(self(x))

    def add_to(self, shortcut: Tensor, x: Tensor) -> Tensor:
        """Return `shortcut + conv(x)`."""
        if self.can_fuse(x) and shortcut.dtype == x.dtype:
            x, *others = self._arguments(x)
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
            return torch.ops.mkldnn._convolution_pointwise.binary(
                x, shortcut, *others, "add", None, None, [], None
            )
        return shortcut + self(x)

    def add_in_place(self, total: Tensor, x: Tensor) -> None:
        """Add `conv(x)` to a channels-last map; `can_fuse(x)` must be true."""
        x, *others = self._arguments(x)
        torch.ops.mkldnn._convolution_pointwise_.binary(total, x, *others, "add", None, None, [], None)

    def can_fuse(self, x: Tensor) -> bool:
        """Return whether the next operation may be fused into the convolution. Hooks on this module prevent it."""
        return not (self._forward_hooks or self._forward_pre_hooks) and self._has_packed_kernel(x)

    def _has_packed_kernel(self, x: Tensor) -> bool:
        return (
            _IS_X86
            and isinstance(x, Tensor)
            and not is_capturing()
            and x.device.type == self.weight.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.ndim == 4
            and x.numel() > 0
            and self.padding_mode == "zeros"
            and not torch.is_autocast_enabled("cpu")
            # the operators have no gradient
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
            and bool(torch.backends.mkldnn.enabled)
        )

    def _arguments(self, x: Tensor) -> tuple[Any, ...]:
        """Return oneDNN's arguments: input, packed weight, bias, padding, stride, dilation and groups."""
        x = x.contiguous(memory_format=torch.channels_last)
        return (x, self._packed_weight(x), self.bias, self.padding, self.stride, self.dilation, self.groups)

    def _packed_weight(self, x: Tensor) -> Tensor:
        """Return the weight in the layout that oneDNN prefers for inputs of this shape."""
        weight = self.weight
        version = 0 if weight.is_inference() else weight._version
        made_for = (x.shape, weight.data_ptr(), version, torch.get_num_threads())
        packed = self._packed
        if packed is None or packed[0] != made_for:
            layout = self.padding, self.stride, self.dilation, self.groups, list(x.shape)
            packed = made_for, torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *layout)
            self._packed = packed  # in one assignment: other threads see the old one or the new one
        return packed[1]

    def _is_matrix_product(self, x: Tensor) -> bool:
        return (
            isinstance(x, Tensor)
            and x.device.type == "cuda"
            and not is_capturing()
            and is_pointwise(self)
            and is_matrix_of_pixels(x)
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Return whether a convolution is 1x1 with stride 1, one group and a bias."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.bias is not None


def is_matrix_of_pixels(x: Tensor) -> bool:
    """Return whether x is in half precision and its pixels are the rows of a matrix in memory (channels-last)."""
    # in fp32 the product would ignore `torch.backends.cudnn.allow_tf32`, which convolutions obey
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    return is_half and x.is_contiguous(memory_format=torch.channels_last)


def as_matrix_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the 1x1 convolution of x, B x I x H x W, with a weight O x I x 1 x 1.

    x must be channels-last; the result is channels-last too.
    """
    assert bias is not None
    batch, channels, height, width = x.shape
    pixels_PI = x.permute(0, 2, 3, 1).reshape(-1, channels)
    result_PO = torch.addmm(bias, pixels_PI, weight.flatten(1).T)
    return result_PO.view(batch, height, width, len(weight)).permute(0, 3, 1, 2)


def conv_gelu(conv: nn.Module, x: Tensor) -> Tensor:
    """Return `gelu(conv(x))`."""
    return conv.gelu(x) if isinstance(conv, FoldedConv) else F.gelu(conv(x))
