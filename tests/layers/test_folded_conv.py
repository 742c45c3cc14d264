"""The convolution of folded networks computes the ordinary convolution, whichever kernel it takes."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iformer.layers.attention import fused_attention, stored_attention
from iformer.layers.conv_norm import ConvNorm
from iformer.layers.folded_conv import FoldedConv, as_matrix_product, conv_gelu, is_matrix_of_pixels

KINDS = {
    "1x1": ConvNorm(8, 12, 1),
    "depthwise": ConvNorm(8, 8, 7, groups=8),
    "stride 2": ConvNorm(8, 16, 3, stride=2),
}


def folded(kind: str = "1x1") -> FoldedConv:
    torch.manual_seed(0)
    norm = copy.deepcopy(KINDS[kind])
    norm.norm.running_mean.normal_()  # type: ignore[union-attr]
    norm.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return norm.eval().fold()


def image(batch: int = 2, side: int = 9) -> Tensor:
    return torch.randn(batch, 8, side, side, generator=torch.Generator().manual_seed(1))


def plain(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_three_forms_are_those_of_the_ordinary_convolution(kind: str, layout: torch.memory_format) -> None:
    conv, x = folded(kind), image().contiguous(memory_format=layout)
    expected = plain(conv, x)
    shortcut = torch.randn_like(expected)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv.gelu(x), F.gelu(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv_gelu(conv, x), F.gelu(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv.add_to(shortcut, x), shortcut + expected, atol=1e-5, rtol=1e-5)


def test_neither_input_nor_shortcut_is_changed() -> None:
    conv, x = folded("depthwise"), image()
    shortcut = image()
    before = x.clone(), shortcut.clone()
    conv.gelu(x)
    conv.add_to(shortcut, x)
    assert torch.equal(x, before[0])
    assert torch.equal(shortcut, before[1])


def test_other_shapes_and_new_weights_are_packed_anew() -> None:
    conv = folded("stride 2")
    for batch, side in ((2, 9), (1, 9), (3, 17), (2, 9)):
        x = image(batch, side)
        torch.testing.assert_close(conv(x), plain(conv, x), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        conv.weight.mul_(3)
    x = image()
    torch.testing.assert_close(conv(x), plain(conv, x), atol=1e-5, rtol=1e-5)
    conv.load_state_dict({name: 0.5 * value for name, value in conv.state_dict().items()})
    torch.testing.assert_close(conv(x), plain(conv, x), atol=1e-5, rtol=1e-5)
    conv.weight = nn.Parameter(torch.randn_like(conv.weight), requires_grad=False)
    torch.testing.assert_close(conv(x), plain(conv, x), atol=1e-5, rtol=1e-5)


def test_used_convolutions_copy_pickle_and_move() -> None:
    conv, x = folded(), image()
    expected = conv(x)
    assert list(conv.state_dict()) == ["weight", "bias"]
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other._packed is None
        torch.testing.assert_close(other(x), expected)
    torch.testing.assert_close(conv.double()(x.double()).float(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(conv.bfloat16()(x.bfloat16()).float(), expected, atol=5e-2, rtol=5e-2)
    torch.testing.assert_close(folded()(x), expected)


def test_inputs_keep_their_gradient() -> None:
    conv, x = folded(), image().requires_grad_()
    (conv.gelu(x) + conv.add_to(conv(x), x)).sum().backward()
    assert x.grad is not None
    y = image().requires_grad_()
    (F.gelu(plain(conv, y)) + 2 * plain(conv, y)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)


def test_hooks_see_the_convolution() -> None:
    conv, x = folded(), image()
    seen: list[Tensor] = []
    conv.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    conv.gelu(x)
    conv.add_to(plain(conv, x), x)
    assert len(seen) == 2
    for output in seen:
        torch.testing.assert_close(output, plain(conv, x), atol=1e-5, rtol=1e-5)


def test_autocast_decides_the_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert folded()(image()).dtype == torch.bfloat16


def test_threads_share_a_convolution() -> None:
    conv = folded("depthwise")
    images = [image(1, side) for side in (7, 9, 11, 13)]
    expected = [plain(conv, x) for x in images]
    wrong: list[int] = []

    def call(index: int) -> None:
        for _ in range(50):
            if not torch.allclose(conv(images[index]), expected[index], atol=1e-5):
                wrong.append(index)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_captured_graphs_have_the_ordinary_convolution() -> None:
    conv, x = folded(), image()
    conv(x)
    graph = torch.export.export(conv, (x,)).graph
    operators = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert operators == {"aten.conv2d.default"}
    torch.testing.assert_close(torch.jit.trace(conv, x)(image(1)), plain(conv, image(1)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.fx.symbolic_trace(conv)(x), conv(x), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------- what GPUs compute, checked on the CPU


def test_the_matrix_product_is_the_convolution() -> None:
    conv, x = folded(), image().to(memory_format=torch.channels_last)
    product = as_matrix_product(x, conv.weight, conv.bias)
    torch.testing.assert_close(product, plain(conv, x), atol=1e-5, rtol=1e-5)
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
