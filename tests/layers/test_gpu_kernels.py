"""What folded networks compute on a GPU, checked on the CPU against what they compute there."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from iformer.layers.attention import fused_attention, stored_attention
from iformer.layers.pointwise import PointwiseConv, as_matrix_product, is_matrix_of_pixels


def test_the_matrix_product_is_the_convolution() -> None:
    torch.manual_seed(0)
    conv = PointwiseConv(8, 12, 1)
    x = torch.randn(3, 8, 5, 7).to(memory_format=torch.channels_last)
    assert conv.bias is not None
    product = as_matrix_product(x, conv.weight, conv.bias)
    torch.testing.assert_close(product, F.conv2d(x, conv.weight, conv.bias))
    assert product.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("dtype", "layout", "expected"),
    [
        (torch.bfloat16, torch.channels_last, True),
        (torch.float16, torch.channels_last, True),
        (torch.float32, torch.channels_last, False),
        (torch.bfloat16, torch.contiguous_format, False),
    ],
)
def test_only_half_precision_in_channels_last_is_a_matrix(
    dtype: torch.dtype, layout: torch.memory_format, expected: bool
) -> None:
    assert is_matrix_of_pixels(torch.randn(2, 8, 4, 4).to(dtype).contiguous(memory_format=layout)) is expected


def test_the_fused_kernel_is_the_attention() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 40, 8).unbind()
    v = torch.randn(2, 40, 24)
    torch.testing.assert_close(fused_attention(q, k, v), stored_attention(q, k, v))
